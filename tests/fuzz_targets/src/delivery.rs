//! A delivered message of lines, so that mutations of it stay one.
//!
//! The first line is the routing key. Each further one is a header, `<name>=<type><value>`, the type in AMQP's own letters: `S` for
//! text, `l` for a number, `T` for a time in seconds, `x` for bytes, `t` for a boolean, `A` for an array of a text, `F` for a table;
//! anything else is `V`, nothing. In a text `\n` is a line end. A line that begins with `>` belongs to the broker's own account of the
//! deaths, `x-death`: to its last table, and a second `>` begins the next one.

use lapin::{
    BasicProperties,
    message::Delivery,
    types::{AMQPValue, FieldArray, FieldTable, ShortString},
};

/// The most bytes of a name or of a routing key: the protocol has room for no more.
const LONGEST_NAME: usize = 255;

/// The message of such lines.
pub(crate) fn of(lines: &[u8], body: &[u8]) -> Delivery {
    let mut lines = lines.split(|byte| *byte == b'\n');
    let key = name(lines.next().unwrap_or_default());
    let (mut headers, mut deaths) = (Vec::new(), Vec::new());
    for line in lines {
        match line.strip_prefix(b">") {
            None => headers.extend(header(line)),
            Some(line) => {
                let line = match line.strip_prefix(b">") {
                    Some(line) => {
                        deaths.push(FieldTable::default());
                        line
                    }
                    None => line,
                };
                if let (Some(death), Some((name, value))) = (deaths.last_mut(), header(line)) {
                    death.insert(name, value);
                }
            }
        }
    }
    let mut table = FieldTable::default();
    if !deaths.is_empty() {
        let deaths: Vec<_> = deaths.into_iter().map(AMQPValue::FieldTable).collect();
        table.insert("x-death".into(), AMQPValue::FieldArray(deaths.into()));
    }
    for (name, value) in headers {
        table.insert(name, value);
    }
    with(key.as_str(), table, body.to_vec())
}

/// The message of these headers.
pub(crate) fn with(key: &str, headers: FieldTable, body: Vec<u8>) -> Delivery {
    let mut delivery = Delivery::mock(1, "".into(), key.into(), false, body);
    delivery.properties = BasicProperties::default().with_headers(headers);
    delivery
}

fn header(line: &[u8]) -> Option<(ShortString, AMQPValue)> {
    let at = line.iter().position(|byte| *byte == b'=')?;
    Some((name(&line[..at]), value(&line[at + 1..])))
}

fn value(typed: &[u8]) -> AMQPValue {
    let Some((kind, value)) = typed.split_first() else { return AMQPValue::Void };
    let text = || AMQPValue::LongString(unescaped(value).into());
    let said = String::from_utf8_lossy(value);
    match kind {
        b'S' => text(),
        b'l' => AMQPValue::LongLongInt(said.parse().unwrap_or(i64::MIN)),
        b'T' => AMQPValue::Timestamp(said.parse().unwrap_or(u64::MAX)),
        b'x' => AMQPValue::ByteArray(value.to_vec().into()),
        b't' => AMQPValue::Boolean(!value.is_empty()),
        b'A' => AMQPValue::FieldArray(FieldArray::from(vec![text()])),
        b'F' => AMQPValue::FieldTable(FieldTable::default()),
        _ => AMQPValue::Void,
    }
}

fn unescaped(value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((byte, after)) = rest.split_first() {
        match after.strip_prefix(b"n") {
            Some(after) if *byte == b'\\' => {
                bytes.push(b'\n');
                rest = after;
            }
            _ => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    bytes
}

fn name(bytes: &[u8]) -> ShortString {
    let mut name = String::from_utf8_lossy(bytes).into_owned();
    name.truncate(name.floor_char_boundary(LONGEST_NAME));
    name.into()
}
