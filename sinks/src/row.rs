//! A result as a row of text: the columns of a CSV, and what goes into them. Pure.
//!
//! Metadata has a column a key, `metadata.<key>`: the named ones or, without names, the first row's. What has no
//! column of its own travels in the last one, `more`, as a JSON object: nothing is dropped.
//!
//! A file of an earlier build that is gone on with may lack the later columns: what they would say travels in `more`, too.

use std::collections::BTreeMap;

use pixfleet_shared::result::ImageResult;
use serde_json::{Map, Value};

use crate::cell;

/// The columns of a result, before its metadata.
pub const COLUMNS: [&str; 18] = [
    "id",
    "batch",
    "image",
    "source",
    "provider",
    "model",
    "outcome",
    "label",
    "confidence",
    "labels",
    "value",
    "error",
    "sent_at",
    "duration_ms",
    "status",
    "attempt",
    "cost",
    CACHED,
];
/// Those of the first build: every file has them.
const FIRST: usize = 17;
const CACHED: &str = "cached";
const METADATA: &str = "metadata.";
const MORE: &str = "more";

/// The header of rows that begin with `columns` and have a metadata column for each of `keys`.
pub fn header<T: Into<String>>(columns: impl IntoIterator<Item = T>, keys: &[String]) -> Vec<String> {
    let keys = keys.iter().map(|key| format!("{METADATA}{key}"));
    columns.into_iter().map(Into::into).chain(keys).chain([MORE.to_owned()]).collect()
}

/// The metadata keys that `header` has a column for, in order.
pub fn keys(header: &[String]) -> Vec<String> {
    header.iter().filter_map(|column| column.strip_prefix(METADATA)).map(str::to_owned).collect()
}

/// Whether `header` begins a file of results as this build writes them.
pub fn knows(header: &[String]) -> bool {
    header.len() > FIRST
        && header.iter().zip(&COLUMNS[..FIRST]).all(|(column, ours)| column == ours)
        && header.last().is_some_and(|last| last == MORE)
}

/// Whether `header` has a column that says which answers are ones of before.
pub fn has_cached(header: &[String]) -> bool {
    header.get(FIRST).is_some_and(|column| column == CACHED)
}

/// The row of a result below a [`header`] of [`COLUMNS`] and `keys`, without the column `cached` where an earlier build wrote
/// the header; what does not apply is empty.
pub fn fields(result: &ImageResult, keys: &[String], cached: bool) -> Vec<String> {
    let mut fields = own_fields(result);
    if cached {
        fields.push(result.cached.to_string());
    }
    let mut rest = metadata_fields(&mut fields, &result.metadata, keys);
    if !cached && result.cached {
        rest.insert(CACHED.to_owned(), Value::Bool(true));
    }
    fields.push(more(rest));
    fields
}

/// Adds the metadata that has a column of its own, and returns the rest.
pub fn metadata_fields(
    fields: &mut Vec<String>,
    metadata: &BTreeMap<String, String>,
    keys: &[String],
) -> Map<String, Value> {
    fields.extend(keys.iter().map(|key| metadata.get(key).cloned().unwrap_or_default()));
    let rest = metadata.iter().filter(|(key, _)| !keys.contains(key));
    rest.map(|(key, value)| (key.clone(), Value::String(value.clone()))).collect()
}

/// The last field: what has no column of its own, as a JSON object.
pub fn more(rest: Map<String, Value>) -> String {
    if rest.is_empty() { String::new() } else { Value::Object(rest).to_string() }
}

fn own_fields(result: &ImageResult) -> Vec<String> {
    fn text<T: ToString>(value: Option<T>) -> String {
        value.map_or_else(String::new, |value| value.to_string())
    }
    let labels = result.answer.as_ref().map_or(&[][..], |answer| &answer.labels);
    let value = result.answer.as_ref().and_then(|answer| answer.value.as_ref());
    let call = result.call.as_ref();
    vec![
        result.id.to_string(),
        result.batch.to_string(),
        result.image.clone(),
        result.source.clone().unwrap_or_default(),
        result.provider.clone(),
        result.model.clone(),
        result.outcome.as_str().to_owned(),
        labels.first().map(|label| label.label.clone()).unwrap_or_default(),
        text(labels.first().and_then(|label| label.confidence)),
        cell::labels(labels),
        value.map(cell::value).unwrap_or_default(),
        result.failure.as_ref().map(cell::failure).unwrap_or_default(),
        text(call.map(|call| call.sent_at)),
        text(call.map(|call| call.duration_ms)),
        text(call.and_then(|call| call.status)),
        text(call.map(|call| call.attempt)),
        text(call.map(|call| call.cost)),
    ]
}
