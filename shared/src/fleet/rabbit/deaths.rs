//! What a dead letter's message says of its death: written for each publish, and read back.

use jiff::Timestamp;
use lapin::{
    message::Delivery as Message,
    types::{AMQPValue, FieldTable},
};

use super::headers::text;
use crate::{
    job::Job,
    queue::{Death, Reason},
};

/// The headers of a letter.
pub fn headers(death: &Death, job: Option<&Job>) -> Vec<(&'static str, String)> {
    let death = death.clone().bounded();
    let mut headers = vec![("x-reason", death.reason.as_str().to_owned())];
    let optional = [
        ("x-class", death.class),
        ("x-message", Some(death.message)),
        ("x-status", death.status.map(|status| status.to_string())),
        ("x-attempts", job.map(|job| attempts(death.worker.is_some(), job).to_string())),
        ("x-worker", death.worker),
        ("x-died-at", death.at.map(|at| at.to_string())),
    ];
    headers.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
    headers
}

/// Calls that counted: the job's own number does not yet hold the one that it died of.
fn attempts(called: bool, job: &Job) -> u32 {
    job.attempt + u32::from(called)
}

/// What a letter says of its death, whoever wrote it.
pub fn read(message: &Message) -> Death {
    said(message).bounded()
}

fn said(message: &Message) -> Death {
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

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;

    use super::{super::headers::table, *};

    fn letter(key: &str, headers: FieldTable) -> Message {
        let mut message = Message::mock(1, "".into(), key.into(), false, Vec::new());
        message.properties = BasicProperties::default().with_headers(headers);
        message
    }

    fn death() -> Death {
        Death {
            reason: Reason::AttemptsExhausted,
            class: Some("transient".into()),
            message: "503: try again later".into(),
            status: Some(503),
            worker: Some("w-1".into()),
            at: Some("2026-11-26T10:00:00.123456789Z".parse().unwrap()),
        }
    }

    #[test]
    fn what_is_written_of_a_death_is_read_back() {
        let unknown = Death { class: None, message: String::new(), status: None, worker: None, ..death() };
        for death in [death(), Death { at: None, ..unknown }] {
            let written = table(&headers(&death, None));
            assert_eq!(read(&letter(death.reason.as_str(), written)), death);
        }
    }

    #[test]
    fn whoever_wrote_the_headers_what_is_shown_of_them_is_on_one_line_and_not_too_long() {
        let long = AMQPValue::LongString([b"one\ntwo\x1b[2J".as_slice(), &[0xff; 100_000]].concat().into());
        let mut headers_of_somebody = FieldTable::default();
        headers_of_somebody.insert("x-reason".into(), AMQPValue::LongString("tired".into()));
        for name in ["x-class", "x-message", "x-worker", "x-status", "x-died-at"] {
            headers_of_somebody.insert(name.into(), long.clone());
        }
        let read = read(&letter("poison", headers_of_somebody));
        assert_eq!((read.reason, read.status, read.at), (Reason::Poison, None, None));
        for text in [read.class.as_ref(), Some(&read.message), read.worker.as_ref()] {
            let text = text.unwrap();
            assert!(text.starts_with("one two [2J"), "{text}");
            assert_eq!(text.chars().count(), Death::LONGEST_TEXT);
        }
        let bytes: usize = headers(&read, None).iter().map(|(_, value)| value.len()).sum();
        assert!(bytes < 4_096, "a moved letter has headers of {bytes} bytes, more than the smallest frame");
    }

    #[test]
    fn the_name_of_a_queue_in_the_brokers_account_does_not_make_it_longer() {
        let mut account = FieldTable::default();
        account.insert("queue".into(), AMQPValue::LongString("q".repeat(1_000).into()));
        account.insert("reason".into(), AMQPValue::LongString("delivery_limit".into()));
        account.insert("time".into(), AMQPValue::Timestamp(u64::MAX));
        let deaths = AMQPValue::FieldArray(vec![AMQPValue::FieldTable(account)].into());
        let mut headers = FieldTable::default();
        headers.insert("x-death".into(), deaths);
        let read = read(&letter("delivery-limit", headers));
        assert_eq!((read.reason, read.at), (Reason::DeliveryLimit, None));
        assert!(read.message.starts_with("delivered too often from `qqq"), "{}", read.message);
        assert_eq!(read.message.chars().count(), Death::LONGEST_TEXT);
    }
}
