//! What has to be on the broker, as it is shown, and what of it differs.

use std::collections::BTreeMap;

use lapin::types::{AMQPValue, FieldTable};
use serde::Serialize;
use serde_json::Value;
use tokio::time::timeout;

use super::{
    config::Config,
    declare::{bounded, differences},
    link,
    topology::{exchanges, queues},
};
use crate::queue::QueueError;

/// An exchange or a queue that there has to be, durable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Needed {
    /// Its name.
    pub name: String,
    /// `direct`, `fanout` or `topic` for an exchange; `quorum` or `stream` for a queue.
    pub kind: String,
    /// A queue's other arguments.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub arguments: BTreeMap<String, Value>,
    /// What a queue is bound to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bindings: Vec<Bound>,
}

/// One binding of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bound {
    /// The exchange.
    pub exchange: String,
    /// The routing key.
    pub key: String,
}

/// The exchanges, then the queues, for so many lanes of each priority. Those of durable subscribers and of paused batches
/// come and go.
pub fn needed(lanes: u8) -> Vec<Needed> {
    let exchanges = exchanges().into_iter().map(|(name, kind)| Needed {
        name,
        kind: format!("{kind:?}").to_lowercase(),
        arguments: BTreeMap::new(),
        bindings: Vec::new(),
    });
    let queues = queues(lanes).into_iter().map(|queue| {
        let mut arguments = shown(&queue.arguments);
        let kind = arguments.remove("x-queue-type");
        Needed {
            name: queue.name,
            kind: kind.as_ref().and_then(Value::as_str).unwrap_or("classic").to_owned(),
            arguments,
            bindings: queue.bindings.into_iter().map(|(exchange, key)| Bound { exchange, key }).collect(),
        }
    });
    exchanges.chain(queues).collect()
}

fn shown(table: &FieldTable) -> BTreeMap<String, Value> {
    let value = |value: &AMQPValue| match value {
        AMQPValue::LongString(text) => Value::String(text.to_string()),
        AMQPValue::LongLongInt(number) => Value::from(*number),
        other => Value::String(format!("{other:?}")),
    };
    table.inner().iter().map(|(name, argument)| (name.to_string(), value(argument))).collect()
}

/// Compares what is on the broker with what is needed. What is missing is declared, as every process does that connects;
/// answers each difference in words.
///
/// # Errors
/// [`QueueError::Away`] when the broker can't be asked.
pub async fn verify(config: &Config) -> Result<Vec<String>, QueueError> {
    let compared = async {
        let connection = link::connect(config, "verify").await?;
        let differences = differences(&connection, config.lanes).await?;
        bounded(connection.close(200, "verified".into())).await?;
        Ok(differences)
    };
    timeout(config.connect_timeout(), compared)
        .await
        .unwrap_or_else(|_| Err(QueueError::Away(format!("{} did not answer in time", config.endpoint()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_shown_with_its_arguments_and_where_it_is_bound() {
        let needed = needed(2);
        let find = |name: &str| needed.iter().find(|one| one.name == name).unwrap();
        assert_eq!(find("pixfleet.jobs").kind, "direct");
        let lane = find("pixfleet.jobs.v1.high.1");
        assert_eq!((lane.kind.as_str(), &lane.arguments["x-delivery-limit"]), ("quorum", &Value::from(20)));
        assert_eq!(lane.bindings, [Bound { exchange: "pixfleet.jobs".into(), key: "high.1".into() }]);
        assert_eq!(find("pixfleet.results.log.v1").kind, "stream");
        assert!(
            !needed.iter().any(|one| one.name == "pixfleet.jobs.v1.high.2"),
            "more lanes than were asked for"
        );
    }
}
