//! Declares the topology on the broker, and says how what is there differs.

use std::time::Duration;

use lapin::{
    Channel, Connection, ErrorKind, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    protocol::{AMQPErrorKind, AMQPSoftError},
    types::{FieldTable, ShortString},
};
use tokio::time::timeout;

use super::topology::{DEAD_EXCHANGE, DEAD_QUEUE_BEFORE, Queue, away, exchanges, queues};
use crate::queue::QueueError;

/// Time for the broker to answer a question.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// From noticing that a queue is gone to declaring it anew. RabbitMQ 3.10 tells a deleted queue's consumers so 20 ms after it is
/// gone. To those whose queue is there again by then it says nothing, and what the new queue sends them gets lost on the way: it
/// stays unacked until their channel ends.
pub(super) const ALL_ARE_TOLD: Duration = Duration::from_millis(500);

/// Declares everything; what is there already and equal is left alone.
///
/// # Errors
/// [`QueueError::Topology`] with every difference when the broker holds something else under our names;
/// [`QueueError::Away`] when it can't be asked.
pub(super) async fn declare(connection: &Connection, lanes: u8) -> Result<(), QueueError> {
    let differences = differences(connection, lanes).await?;
    if !differences.is_empty() {
        return Err(QueueError::Topology(differences.join("; ")));
    }
    let_go_of_the_earlier(connection).await
}

/// Declares everything, and says what is there already and differs.
pub(super) async fn differences(connection: &Connection, lanes: u8) -> Result<Vec<String>, QueueError> {
    let mut channel = connection.create_channel().await.map_err(away)?;
    let mut differences = Vec::new();
    for (name, kind) in exchanges() {
        if let Err(error) = declare_exchange(&channel, &name, kind).await {
            differences.push(difference(&format!("exchange `{name}`"), &error)?);
            channel = connection.create_channel().await.map_err(away)?;
        }
    }
    for queue in queues(lanes) {
        if let Err(error) = declare_queue(&channel, &queue).await {
            differences.push(difference(&format!("queue `{}`", queue.name), &error)?);
            channel = connection.create_channel().await.map_err(away)?;
        }
    }
    // The channel has served; a failure to close it is the connection's, and is seen there.
    let _ = channel.close(200, "declared".into()).await;
    Ok(differences)
}

/// The queue of an earlier release takes no more letters: each would be in both.
async fn let_go_of_the_earlier(connection: &Connection) -> Result<(), QueueError> {
    // One that this user may not see is nothing of ours.
    if let Ok(Some(_)) = depth(connection, DEAD_QUEUE_BEFORE).await {
        unbind(connection, DEAD_QUEUE_BEFORE, DEAD_EXCHANGE, "#").await?;
    }
    Ok(())
}

/// What a queue says of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Depth {
    /// Messages that nobody has in hand.
    pub(super) ready: u32,
    pub(super) consumers: u32,
}

/// Looks at one queue; none where it does not exist.
pub(super) async fn depth(connection: &Connection, queue: &str) -> Result<Option<Depth>, QueueError> {
    bounded(async {
        // Of its own: the broker closes a channel that asks for what is not there.
        let channel = connection.create_channel().await?;
        let passive = QueueDeclareOptions::durable().passive();
        match channel.queue_declare(queue.into(), passive, FieldTable::default()).await {
            Ok(there) => {
                let _ = channel.close(200, "asked".into()).await;
                Ok(Some(Depth { ready: there.message_count(), consumers: there.consumer_count() }))
            }
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
    })
    .await
}

/// Takes a binding away; one that is not there is no error.
pub(super) async fn unbind(
    connection: &Connection,
    queue: &str,
    exchange: &str,
    key: &str,
) -> Result<(), QueueError> {
    bounded(async {
        let channel = connection.create_channel().await?;
        let unbound =
            channel.queue_unbind(queue.into(), exchange.into(), key.into(), FieldTable::default()).await;
        match unbound {
            Ok(()) => channel.close(200, "unbound".into()).await,
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(error),
        }
    })
    .await
}

/// Whether the broker says that there is nothing of that name.
pub(super) fn is_not_found(error: &lapin::Error) -> bool {
    let not_found = AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND);
    matches!(error.kind(), ErrorKind::ProtocolError(said) if *said.kind() == not_found)
}

/// Declares one queue with its bindings.
pub(super) async fn declare_queue(channel: &Channel, queue: &Queue) -> Result<(), lapin::Error> {
    let name = ShortString::from(queue.name.as_str());
    channel.queue_declare(name.clone(), QueueDeclareOptions::durable(), queue.arguments.clone()).await?;
    for (exchange, key) in &queue.bindings {
        let (exchange, key) = (exchange.as_str().into(), key.as_str().into());
        channel
            .queue_bind(name.clone(), exchange, key, QueueBindOptions::default(), FieldTable::default())
            .await?;
    }
    Ok(())
}

/// Declares one queue on a channel of its own.
pub(super) async fn declare_one(connection: &Connection, queue: &Queue) -> Result<(), QueueError> {
    let declared = async {
        let channel = connection.create_channel().await.map_err(away)?;
        match declare_queue(&channel, queue).await {
            Ok(()) => {
                let _ = channel.close(200, "declared".into()).await;
                Ok(())
            }
            Err(error) => Err(QueueError::Topology(difference(&format!("queue `{}`", queue.name), &error)?)),
        }
    };
    timeout(REQUEST_TIMEOUT, declared).await.unwrap_or_else(|_| Err(silent()))
}

async fn declare_exchange(channel: &Channel, name: &str, kind: ExchangeKind) -> Result<(), lapin::Error> {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(name.into(), kind, durable, FieldTable::default()).await
}

/// The words for a refused declaration; any other failure ends the attempt.
///
/// What is not found is no difference, and passes: RabbitMQ says it of a queue that another client is in the middle of
/// declaring ("home node is down or inaccessible"), of one whose node is down, and of a binding to what was deleted meanwhile.
fn difference(what: &str, error: &lapin::Error) -> Result<String, QueueError> {
    let ErrorKind::ProtocolError(said) = error.kind() else { return Err(away(error.clone())) };
    if !error.is_amqp_soft_error() {
        return Err(away(error.clone()));
    }
    let said = said.get_message().to_string();
    if is_not_found(error) {
        return Err(QueueError::Away(format!("{what}: {said}")));
    }
    Ok(compared(&said).map_or_else(
        || format!("{what}: {said}. Mend it, or let pixfleet's user configure it"),
        |Compared { argument, needed, there }| {
            format!(
                "{what}: `{argument}` has to be {needed}, and is {there}. Delete or rename what is there, or \
                 upgrade every process to the same release"
            )
        },
    ))
}

/// One argument that differs: the broker names the first, and then looks no further.
#[derive(Debug, PartialEq, Eq)]
struct Compared<'a> {
    argument: &'a str,
    needed: String,
    there: String,
}

/// Reads the broker's `inequivalent arg 'A' for queue 'Q' in vhost 'V': received the value 'X' of type 'T' but
/// current is none`.
fn compared(said: &str) -> Option<Compared<'_>> {
    let (argument, rest) = said.split_once("inequivalent arg '")?.1.split_once('\'')?;
    let (needed, there) = rest.split_once(": received ")?.1.split_once(" but current is ")?;
    Some(Compared { argument, needed: value(needed), there: value(there) })
}

fn value(said: &str) -> String {
    let quoted = said.split_once('\'').and_then(|(_, rest)| rest.split_once('\''));
    match quoted {
        Some((value, _)) => format!("`{value}`"),
        None if said.trim() == "none" => "not set".to_owned(),
        None => said.trim().to_owned(),
    }
}

/// The answer to a request, in time.
pub(super) async fn bounded<T>(
    request: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, QueueError> {
    match timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => answer.map_err(away),
        Err(_) => Err(silent()),
    }
}

fn silent() -> QueueError {
    QueueError::Away(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()))
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;

    fn refusal(kind: AMQPSoftError, said: &str) -> lapin::Error {
        ErrorKind::ProtocolError(AMQPError::new(AMQPErrorKind::Soft(kind), said.into())).into()
    }

    #[test]
    fn a_queue_that_is_being_declared_by_another_is_waited_for_and_one_that_is_locked_is_not() {
        let absent =
            refusal(AMQPSoftError::NOTFOUND, "NOT_FOUND - home node 'n' of durable queue 'q' is down");
        let waited_for = difference("queue `q`", &absent).unwrap_err();
        assert!(
            matches!(&waited_for, QueueError::Away(why) if why.contains("queue `q`: NOT_FOUND")),
            "{waited_for}"
        );
        let locked = refusal(AMQPSoftError::RESOURCELOCKED, "RESOURCE_LOCKED - exclusive");
        assert!(difference("queue `q`", &locked).unwrap().contains("Mend it"));
    }

    #[test]
    fn a_difference_says_what_is_needed_and_what_is_there() {
        let said = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received \
                    the value 'quorum' of type 'longstr' but current is none";
        let compared = compared(said).unwrap();
        assert_eq!((compared.argument, compared.needed.as_str()), ("x-queue-type", "`quorum`"));
        assert_eq!(compared.there, "not set");
    }

    #[test]
    fn an_exchange_of_another_kind_is_compared_too_and_other_refusals_are_not() {
        let said = "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'e' in vhost '/': received 'direct' \
                    but current is 'topic'";
        let Compared { needed, there, .. } = compared(said).unwrap();
        assert_eq!((needed.as_str(), there.as_str()), ("`direct`", "`topic`"));
        assert_eq!(compared("ACCESS_REFUSED - access to queue 'q' in vhost '/' refused for user 'u'"), None);
    }
}
