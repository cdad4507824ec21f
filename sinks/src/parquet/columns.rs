//! Results as columns in memory, until they are encoded.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, RecordBatch,
    builder::{
        BooleanBuilder, Float64Builder, Int32Builder, ListBuilder, MapBuilder, MapFieldNames, StringBuilder,
        StructBuilder, TimestampMicrosecondBuilder,
    },
};
use arrow_schema::ArrowError;
use pixfleet_shared::result::{Answer, Call, ImageResult, Label};
use serde_json::{Number, Value};

use super::schema;

/// Integers beyond this lose digits as a double.
const EXACT: u64 = 1 << 53;

/// The columns of the results that wait, in the order of the schema.
pub(super) struct Columns {
    /// `id` to `outcome`.
    names: [StringBuilder; 8],
    label: StringBuilder,
    confidence: Float64Builder,
    labels: ListBuilder<StructBuilder>,
    value_text: StringBuilder,
    value_number: Float64Builder,
    value_json: StringBuilder,
    failure_class: StringBuilder,
    failure_message: StringBuilder,
    calls: Calls,
    enqueued_at: TimestampMicrosecondBuilder,
    completed_at: TimestampMicrosecondBuilder,
    metadata: MapBuilder<StringBuilder, StringBuilder>,
    cached: BooleanBuilder,
    rows: usize,
    bytes: usize,
}

/// `call_id` to `worker`.
#[derive(Default)]
struct Calls {
    id: StringBuilder,
    sent_at: TimestampMicrosecondBuilder,
    duration_ms: Float64Builder,
    status: Int32Builder,
    attempt: Int32Builder,
    throttled: Int32Builder,
    cost: Float64Builder,
    limit_per_s: Float64Builder,
    worker: StringBuilder,
}

impl Default for Columns {
    fn default() -> Self {
        let labels = StructBuilder::from_fields(schema::label_fields(), 0);
        let names = MapFieldNames { entry: "key_value".into(), key: "key".into(), value: "value".into() };
        Self {
            names: Default::default(),
            label: StringBuilder::new(),
            confidence: Float64Builder::new(),
            labels: ListBuilder::new(labels).with_field(schema::label()),
            value_text: StringBuilder::new(),
            value_number: Float64Builder::new(),
            value_json: StringBuilder::new(),
            failure_class: StringBuilder::new(),
            failure_message: StringBuilder::new(),
            calls: Calls::default(),
            enqueued_at: moments(),
            completed_at: moments(),
            metadata: MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new())
                .with_keys_field(schema::key())
                .with_values_field(schema::value()),
            cached: BooleanBuilder::new(),
            rows: 0,
            bytes: 0,
        }
    }
}

impl Columns {
    /// How many results wait.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// How much text they hold that has no bound of its own, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a result.
    pub(super) fn push(&mut self, result: &ImageResult) {
        self.names(result);
        self.answer(result.answer.as_ref());
        let failure = result.failure.as_ref();
        self.failure_class.append_option(failure.map(|failure| &failure.class));
        self.failure_message.append_option(failure.map(|failure| &failure.message));
        self.calls.push(result.call.as_ref());
        self.enqueued_at.append_value(result.enqueued_at.as_microsecond());
        self.completed_at.append_value(result.completed_at.as_microsecond());
        for (key, value) in &result.metadata {
            self.metadata.keys().append_value(key);
            self.metadata.values().append_value(value);
            self.bytes += key.len() + value.len();
        }
        self.cached.append_value(result.cached);
        // Keys and values are as many: that is all that it could refuse.
        let _ = self.metadata.append(true);
        self.bytes += result.image.len() + result.source.as_ref().map_or(0, String::len);
        self.bytes += failure.map_or(0, |failure| failure.message.len());
        self.rows += 1;
    }

    /// Takes what waits.
    pub(super) fn take(&mut self) -> Result<RecordBatch, ArrowError> {
        (self.rows, self.bytes) = (0, 0);
        let calls = &mut self.calls;
        let mut columns: Vec<ArrayRef> =
            self.names.iter_mut().map(|name| Arc::new(name.finish()) as ArrayRef).collect();
        columns.extend([
            Arc::new(self.label.finish()) as ArrayRef,
            Arc::new(self.confidence.finish()),
            Arc::new(self.labels.finish()),
            Arc::new(self.value_text.finish()),
            Arc::new(self.value_number.finish()),
            Arc::new(self.value_json.finish()),
            Arc::new(self.failure_class.finish()),
            Arc::new(self.failure_message.finish()),
            Arc::new(calls.id.finish()),
            Arc::new(calls.sent_at.finish().with_data_type(schema::moment())),
            Arc::new(calls.duration_ms.finish()),
            Arc::new(calls.status.finish()),
            Arc::new(calls.attempt.finish()),
            Arc::new(calls.throttled.finish()),
            Arc::new(calls.cost.finish()),
            Arc::new(calls.limit_per_s.finish()),
            Arc::new(calls.worker.finish()),
            Arc::new(self.enqueued_at.finish()),
            Arc::new(self.completed_at.finish()),
            Arc::new(self.metadata.finish()),
            Arc::new(self.cached.finish()),
        ]);
        RecordBatch::try_new(schema::schema(), columns)
    }

    fn names(&mut self, result: &ImageResult) {
        let [id, job, batch, image, source, provider, model, outcome] = &mut self.names;
        id.append_value(result.id.to_string());
        job.append_value(result.job.to_string());
        batch.append_value(result.batch.as_str());
        image.append_value(&result.image);
        source.append_option(result.source.as_ref());
        provider.append_value(&result.provider);
        model.append_value(&result.model);
        outcome.append_value(result.outcome.as_str());
    }

    fn answer(&mut self, answer: Option<&Answer>) {
        let labels = answer.map_or(&[][..], |answer| &answer.labels);
        self.label.append_option(labels.first().map(|label| &label.label));
        self.confidence.append_option(labels.first().and_then(|label| label.confidence));
        labels.iter().for_each(|label| self.one_label(label));
        self.labels.append(true);
        self.value(answer.and_then(|answer| answer.value.as_ref()));
    }

    fn one_label(&mut self, label: &Label) {
        let element = self.labels.values();
        // The fields are those of the schema: both are there.
        if let Some(name) = element.field_builder::<StringBuilder>(0) {
            name.append_value(&label.label);
        }
        if let Some(confidence) = element.field_builder::<Float64Builder>(1) {
            confidence.append_option(label.confidence);
        }
        element.append(true);
        self.bytes += label.label.len();
    }

    fn value(&mut self, value: Option<&Value>) {
        let text = value.and_then(Value::as_str);
        let number = value.and_then(Value::as_number).and_then(double);
        let other = value.filter(|_| text.is_none() && number.is_none()).map(Value::to_string);
        self.bytes += text.or(other.as_deref()).map_or(0, str::len);
        self.value_text.append_option(text);
        self.value_number.append_option(number);
        self.value_json.append_option(other);
    }
}

impl Calls {
    fn push(&mut self, call: Option<&Call>) {
        let count = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        self.id.append_option(call.map(|call| call.id.to_string()));
        self.sent_at.append_option(call.map(|call| call.sent_at.as_microsecond()));
        self.duration_ms.append_option(call.map(|call| call.duration_ms));
        self.status.append_option(call.and_then(|call| call.status).map(i32::from));
        self.attempt.append_option(call.map(|call| count(call.attempt)));
        self.throttled.append_option(call.map(|call| count(call.throttled)));
        self.cost.append_option(call.map(|call| call.cost));
        self.limit_per_s.append_option(call.and_then(|call| call.limit_per_s));
        self.worker.append_option(call.map(|call| &call.worker));
    }
}

fn moments() -> TimestampMicrosecondBuilder {
    TimestampMicrosecondBuilder::new().with_data_type(schema::moment())
}

/// The number as a double, where it has no more digits than that.
fn double(number: &Number) -> Option<f64> {
    let integer = number.as_i64().map(i64::unsigned_abs).or_else(|| number.as_u64());
    if integer.is_some_and(|integer| integer > EXACT) { None } else { number.as_f64() }
}
