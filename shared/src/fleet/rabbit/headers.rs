//! The headers of a delivered message. Whoever may publish writes what he likes into them, so any value of any type is one to
//! expect.

use lapin::{
    message::Delivery as Message,
    types::{AMQPValue, FieldTable},
};

use crate::trace::TraceParent;

/// Headers as they are published: all of them text.
pub fn table(headers: &[(&'static str, String)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert((*name).into(), AMQPValue::LongString(value.as_str().into()));
    }
    table
}

/// How often a quorum queue delivered the message before.
pub fn deliveries(message: &Message) -> i64 {
    header(message, "x-delivery-count").and_then(AMQPValue::as_long_long_int).unwrap_or(0)
}

/// The trace that the sender is in.
pub fn traceparent(message: &Message) -> Option<TraceParent> {
    text(message.properties.headers().as_ref()?, "traceparent")?.parse().ok()
}

/// Where in a stream a reader goes on after this message.
pub fn next_offset(message: &Message) -> Option<i64> {
    let offset = header(message, "x-stream-offset")?.as_long_long_int()?;
    // Messages of other queues may say anything.
    Some(offset.saturating_add(1))
}

fn header<'a>(message: &'a Message, name: &str) -> Option<&'a AMQPValue> {
    message.properties.headers().as_ref()?.inner().get(name)
}

/// The text of this name; what is no UTF-8 of it is replaced.
pub(super) fn text(table: &FieldTable, name: &str) -> Option<String> {
    match table.inner().get(name)? {
        AMQPValue::LongString(value) => Some(value.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;

    use super::*;

    #[test]
    fn counts_at_their_ends_and_of_other_types_are_read() {
        let message = |value: AMQPValue| {
            let mut headers = FieldTable::default();
            headers.insert("x-stream-offset".into(), value.clone());
            headers.insert("x-delivery-count".into(), value);
            let mut message = Message::mock(1, "".into(), "".into(), false, Vec::new());
            message.properties = BasicProperties::default().with_headers(headers);
            message
        };
        for (said, offset, count) in [
            (AMQPValue::LongLongInt(41), Some(42), 41),
            (AMQPValue::LongLongInt(i64::MAX), Some(i64::MAX), i64::MAX),
            (AMQPValue::LongLongInt(-1), Some(0), -1),
            (AMQPValue::LongString("41".into()), None, 0),
            (AMQPValue::Void, None, 0),
        ] {
            let message = message(said);
            assert_eq!((next_offset(&message), deliveries(&message)), (offset, count));
        }
    }
}
