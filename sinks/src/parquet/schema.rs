//! The columns of a Parquet file, with their types.

use std::sync::Arc;

use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};

/// The columns, in the order in which [`columns`](super::columns) fills them.
pub(super) fn schema() -> SchemaRef {
    let text = |name| Field::new(name, DataType::Utf8, false);
    let maybe = |name, kind| Field::new(name, kind, true);
    let fields = vec![
        text("id"),
        text("job"),
        text("batch"),
        text("image"),
        maybe("source", DataType::Utf8),
        text("provider"),
        text("model"),
        text("outcome"),
        maybe("label", DataType::Utf8),
        maybe("confidence", DataType::Float64),
        Field::new("labels", DataType::List(Arc::new(label())), false),
        maybe("value_text", DataType::Utf8),
        maybe("value_number", DataType::Float64),
        maybe("value_json", DataType::Utf8),
        maybe("failure_class", DataType::Utf8),
        maybe("failure_message", DataType::Utf8),
        maybe("call_id", DataType::Utf8),
        maybe("sent_at", moment()),
        maybe("duration_ms", DataType::Float64),
        maybe("status", DataType::Int32),
        maybe("attempt", DataType::Int32),
        maybe("throttled", DataType::Int32),
        maybe("cost", DataType::Float64),
        maybe("limit_per_s", DataType::Float64),
        maybe("worker", DataType::Utf8),
        Field::new("enqueued_at", moment(), false),
        Field::new("completed_at", moment(), false),
        Field::new("metadata", DataType::Map(Arc::new(entry()), false), false),
        // Later columns stand behind those of the first build.
        Field::new("cached", DataType::Boolean, false),
    ];
    Arc::new(Schema::new(fields))
}

/// The columns that have few different values: they are kept as a dictionary of those.
pub(super) const WORDED: [&str; 13] = [
    "batch",
    "provider",
    "model",
    "outcome",
    "label",
    "labels.list.element.label",
    "failure_class",
    "status",
    "attempt",
    "throttled",
    "limit_per_s",
    "worker",
    "metadata.key_value.key",
];

/// Microseconds since 1970, in UTC.
pub(super) fn moment() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// An element of `labels`. The names of the nested fields are those of the Parquet specification.
pub(super) fn label() -> Field {
    Field::new("element", DataType::Struct(label_fields()), false)
}

pub(super) fn label_fields() -> Fields {
    Fields::from(vec![
        Field::new("label", DataType::Utf8, false),
        Field::new("confidence", DataType::Float64, true),
    ])
}

/// An entry of `metadata`.
fn entry() -> Field {
    let pair = vec![key(), value()];
    Field::new("key_value", DataType::Struct(Fields::from(pair)), false)
}

pub(super) fn key() -> Field {
    Field::new("key", DataType::Utf8, false)
}

pub(super) fn value() -> Field {
    Field::new("value", DataType::Utf8, false)
}
