//! What a dead letter's message says of its death: written for each publish, and read back.

use jiff::Timestamp;
use lapin::{
    message::Delivery as Message,
    types::{AMQPValue, FieldTable},
};

use crate::{
    job::Job,
    queue::{Death, Reason},
};

/// The longest text of what was said last, in characters.
const MESSAGE_CHARS: usize = 300;

/// The headers of a letter.
pub(super) fn headers(death: &Death, job: Option<&Job>) -> Vec<(&'static str, String)> {
    let mut headers = vec![("x-reason", death.reason.as_str().to_owned())];
    let optional = [
        ("x-class", death.class.clone()),
        ("x-message", Some(death.message.chars().take(MESSAGE_CHARS).collect())),
        ("x-status", death.status.map(|status| status.to_string())),
        ("x-worker", death.worker.clone()),
        ("x-died-at", death.at.map(|at| at.to_string())),
        ("x-attempts", job.map(|job| attempts(death, job).to_string())),
    ];
    headers.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
    headers
}

/// Calls that counted: the job's own number does not yet hold the one that it died of.
fn attempts(death: &Death, job: &Job) -> u32 {
    job.attempt + u32::from(death.worker.is_some())
}

/// What a letter says of its death.
pub(super) fn read(message: &Message) -> Death {
    let Some(headers) = message.properties.headers() else { return unsaid(message) };
    let Some(reason) = text(headers, "x-reason") else { return given_up(message, headers) };
    Death {
        reason: Reason::named(&reason).unwrap_or_else(|| by_key(message)),
        class: text(headers, "x-class"),
        message: text(headers, "x-message").unwrap_or_default(),
        status: text(headers, "x-status").and_then(|status| status.parse().ok()),
        worker: text(headers, "x-worker"),
        at: text(headers, "x-died-at").and_then(|at| at.parse().ok()),
    }
}

/// The broker dead-lettered it: none of our headers, but its own account, the latest first.
fn given_up(message: &Message, headers: &FieldTable) -> Death {
    let mut death = unsaid(message);
    let Some(AMQPValue::FieldArray(deaths)) = headers.inner().get("x-death") else { return death };
    let Some(AMQPValue::FieldTable(last)) = deaths.as_slice().first() else { return death };
    if let (Some(queue), Some(why)) = (text(last, "queue"), text(last, "reason")) {
        death.message = match why.as_str() {
            "delivery_limit" => format!("delivered too often from `{queue}`, and never settled"),
            other => format!("the broker took it out of `{queue}`: {other}"),
        };
    }
    if let Some(AMQPValue::Timestamp(seconds)) = last.inner().get("time") {
        death.at = i64::try_from(*seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    }
    death
}

fn unsaid(message: &Message) -> Death {
    let reason = by_key(message);
    Death { reason, class: None, message: String::new(), status: None, worker: None, at: None }
}

/// The routing key is the reason; whatever else came here was not sent by pixfleet.
fn by_key(message: &Message) -> Reason {
    Reason::named(message.routing_key.as_str()).unwrap_or(Reason::Malformed)
}

fn text(table: &FieldTable, name: &str) -> Option<String> {
    match table.inner().get(name)? {
        AMQPValue::LongString(value) => Some(value.to_string()),
        _ => None,
    }
}
