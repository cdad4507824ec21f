//! What pixfleet declares on the broker: exchanges, queues and bindings, as data.
//!
//! Arguments that correctness rests on are in the declaration, under versioned names (`.v1`): other arguments
//! are another name, never a mismatch. Per-message TTL is not used (it expires only at the queue's head): each
//! retry delay has a queue of its own.

use std::time::Duration;

use lapin::{
    ExchangeKind,
    types::{AMQPValue, FieldTable},
};

use crate::{
    batch::BatchName,
    job::Priority,
    queue::{Filter, QueueError, Reason},
    result::word,
};

/// Direct exchange: routing key `<priority>.<lane>`.
pub const JOBS_EXCHANGE: &str = "pixfleet.jobs";
/// Topic exchange: routing key `<reason>`.
pub const DEAD_EXCHANGE: &str = "pixfleet.dead";
/// The queue of every dead letter.
pub const DEAD_QUEUE: &str = "pixfleet.dead.v2";
/// Where earlier releases kept them: with no delivery limit of its own, which RabbitMQ 4 reads as 20, and then drops.
pub const DEAD_QUEUE_BEFORE: &str = "pixfleet.dead.v1";
/// Direct exchange: routing key `<batch>`, for the jobs of paused batches.
pub const PAUSED_EXCHANGE: &str = "pixfleet.paused";
/// Topic exchange: routing key `<provider>.<model>.<outcome>.<batch>`.
pub const RESULTS_EXCHANGE: &str = "pixfleet.results";
/// The stream of every result, always bound: replay, and no result is ever unroutable.
pub const RESULTS_LOG: &str = "pixfleet.results.log.v1";

/// Deliveries of a job that nobody settled before the broker dead-letters it.
const DELIVERY_LIMIT: i64 = 20;
/// The limit of a queue whose messages are looked at and given back: each look counts as a delivery.
const LOOKS_LIMIT: i64 = 1_000_000_000;
/// How long the stream keeps results; an operator's policy may keep less.
const LOG_MAX_AGE: &str = "7D";
/// How much of them it keeps at most, in bytes.
const LOG_MAX_BYTES: i64 = 20_000_000_000;

/// The retry delays: the exchange and queue name's last word, and the delay.
pub const RETRY_TIERS: [(&str, Duration); 6] = [
    ("1s", Duration::from_secs(1)),
    ("5s", Duration::from_secs(5)),
    ("30s", Duration::from_secs(30)),
    ("2m", Duration::from_secs(120)),
    ("10m", Duration::from_secs(600)),
    ("1h", Duration::from_secs(3600)),
];

/// The queue of one lane.
pub fn job_queue(priority: Priority, lane: u8) -> String {
    format!("pixfleet.jobs.v1.{priority}.{lane}")
}

/// The queue that holds the jobs of a paused batch.
pub fn paused_queue(batch: &BatchName) -> String {
    format!("pixfleet.paused.v1.{batch}")
}

/// The queue of a durable subscriber.
pub fn subscriber_queue(name: &str) -> String {
    format!("pixfleet.results.v1.{}", word(name))
}

/// The fanout exchange that brings a job back after about `delay`: the shortest tier that is long enough. No
/// delay is no tier: the jobs exchange itself.
pub(super) fn exchange_after(delay: Duration) -> String {
    if delay.is_zero() {
        return JOBS_EXCHANGE.to_owned();
    }
    let long_enough = RETRY_TIERS.iter().find(|(_, tier)| *tier >= delay);
    format!("pixfleet.retry.{}", long_enough.map_or("1h", |(name, _)| name))
}

/// The binding keys of a durable subscriber: its results, and the news of its batches.
pub(super) fn subscriber_keys(filter: &Filter) -> [String; 2] {
    let or_any = |text: Option<String>| text.unwrap_or_else(|| "*".to_owned());
    let batch = or_any(filter.batch.as_ref().map(ToString::to_string));
    let provider = or_any(filter.provider.as_deref().map(word));
    let model = or_any(filter.model.as_deref().map(word));
    let outcome = filter.outcome.map_or("*", |outcome| outcome.as_str());
    [format!("{provider}.{model}.{outcome}.{batch}"), format!("pixfleet.batch.*.{batch}")]
}

/// A queue as it has to be.
pub(super) struct Queue {
    pub(super) name: String,
    pub(super) arguments: FieldTable,
    /// Exchange and key of each.
    pub(super) bindings: Vec<(String, String)>,
}

/// A durable subscriber's queue with its bindings.
pub(super) fn of_subscriber(name: &str, filter: &Filter) -> Queue {
    let bindings = subscriber_keys(filter).map(|key| (RESULTS_EXCHANGE.to_owned(), key)).to_vec();
    Queue { name: subscriber_queue(name), arguments: quorum(), bindings }
}

/// The queue of a paused batch with its binding.
pub(super) fn of_paused(batch: &BatchName) -> Queue {
    let bindings = vec![(PAUSED_EXCHANGE.to_owned(), batch.to_string())];
    Queue { name: paused_queue(batch), arguments: kept(), bindings }
}

/// The exchanges that there have to be.
pub(super) fn exchanges() -> Vec<(String, ExchangeKind)> {
    let mut exchanges = vec![
        (JOBS_EXCHANGE.to_owned(), ExchangeKind::Direct),
        (DEAD_EXCHANGE.to_owned(), ExchangeKind::Topic),
        (PAUSED_EXCHANGE.to_owned(), ExchangeKind::Direct),
        (RESULTS_EXCHANGE.to_owned(), ExchangeKind::Topic),
    ];
    exchanges.extend(RETRY_TIERS.map(|(tier, _)| (format!("pixfleet.retry.{tier}"), ExchangeKind::Fanout)));
    exchanges
}

/// The queues, in the order of need: where dead letters and results go exists before anything can die or be answered.
pub(super) fn queues(lanes: u8) -> Vec<Queue> {
    let mut queues = vec![
        Queue {
            name: DEAD_QUEUE.to_owned(),
            arguments: kept(),
            bindings: vec![(DEAD_EXCHANGE.to_owned(), "#".to_owned())],
        },
        Queue {
            name: RESULTS_LOG.to_owned(),
            arguments: stream(),
            bindings: vec![(RESULTS_EXCHANGE.to_owned(), "#".to_owned())],
        },
    ];
    for priority in Priority::ALL {
        queues.extend((0..lanes).map(|lane| Queue {
            name: job_queue(priority, lane),
            arguments: jobs(),
            bindings: vec![(JOBS_EXCHANGE.to_owned(), format!("{priority}.{lane}"))],
        }));
    }
    queues.extend(RETRY_TIERS.map(|(tier, delay)| Queue {
        name: format!("pixfleet.retry.v1.{tier}"),
        arguments: retry(delay),
        bindings: vec![(format!("pixfleet.retry.{tier}"), String::new())],
    }));
    queues
}

fn quorum() -> FieldTable {
    table([("x-queue-type", text("quorum"))])
}

/// For messages that wait for a person: a full queue refuses, and what is there stays.
fn kept() -> FieldTable {
    table([
        ("x-queue-type", text("quorum")),
        ("x-delivery-limit", AMQPValue::LongLongInt(LOOKS_LIMIT)),
        ("x-overflow", text("reject-publish")),
    ])
}

fn stream() -> FieldTable {
    table([
        ("x-queue-type", text("stream")),
        ("x-max-age", text(LOG_MAX_AGE)),
        ("x-max-length-bytes", AMQPValue::LongLongInt(LOG_MAX_BYTES)),
    ])
}

/// At-least-once dead-lettering needs `reject-publish`: with `drop-head` the broker falls back silently to
/// at-most-once, and a letter can vanish.
fn dead_lettering(exchange: &'static str) -> [(&'static str, AMQPValue); 4] {
    [
        ("x-queue-type", text("quorum")),
        ("x-dead-letter-exchange", text(exchange)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ]
}

fn jobs() -> FieldTable {
    let mut arguments = table(dead_lettering(DEAD_EXCHANGE));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
    arguments.insert("x-dead-letter-routing-key".into(), text(Reason::DeliveryLimit.as_str()));
    arguments
}

/// No dead-letter routing key: the message keeps `<priority>.<lane>` and finds its way back.
fn retry(delay: Duration) -> FieldTable {
    let mut arguments = table(dead_lettering(JOBS_EXCHANGE));
    arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(delay.as_millis() as i64));
    arguments
}

fn text(value: &'static str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn table<const N: usize>(entries: [(&'static str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in entries {
        table.insert(key.into(), value);
    }
    table
}

/// A broker that could not be asked.
pub(super) fn away(error: lapin::Error) -> QueueError {
    QueueError::Away(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::Outcome;

    #[test]
    fn a_delay_takes_the_shortest_tier_that_is_long_enough() {
        for (ms, exchange) in [
            (0, "pixfleet.jobs"),
            (1, "pixfleet.retry.1s"),
            (1000, "pixfleet.retry.1s"),
            (1001, "pixfleet.retry.5s"),
            (86_400_000, "pixfleet.retry.1h"),
        ] {
            assert_eq!(exchange_after(Duration::from_millis(ms)), exchange, "{ms} ms");
        }
    }

    #[test]
    fn a_filter_becomes_binding_keys_and_news_of_the_batch_always_come() {
        let filter = Filter {
            batch: Some("b1".parse().unwrap()),
            model: Some("a.b".into()),
            outcome: Some(Outcome::Dead),
            ..Filter::default()
        };
        assert_eq!(subscriber_keys(&filter), ["*.a_b.dead.b1", "pixfleet.batch.*.b1"]);
    }
}
