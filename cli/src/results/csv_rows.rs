//! Results and summaries as CSV whose header is fixed with its first row, so that it can be streamed.
//!
//! Metadata has a column a key, `metadata.<key>`: the named ones or, without names, the first row's. What has no
//! column of its own travels in the last one, `more`, as a JSON object: nothing is dropped.

use std::collections::BTreeMap;

use anyhow::Context as _;
use pixfleet_shared::result::ImageResult;
use serde_json::{Map, Value};

use super::{cell, gather::Summary, rows::model_columns};

/// The columns of a result, before its metadata.
pub(crate) const RESULT_COLUMNS: [&str; 17] = [
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
];
const SUMMARY_COLUMNS: [&str; 4] = ["batch", "image", "source", "complete"];
const METADATA: &str = "metadata.";
const MORE: &str = "more";

/// The waiting rows of a CSV.
pub(crate) struct CsvRows {
    writer: csv::Writer<Vec<u8>>,
    metadata: Option<Vec<String>>,
    models: Vec<String>,
    begun: bool,
}

impl CsvRows {
    /// A new file's rows.
    pub(crate) fn new(metadata: Option<Vec<String>>, models: Vec<String>) -> Self {
        Self { writer: writer(), metadata, models, begun: false }
    }

    /// Rows below the `header` of an earlier run.
    pub(crate) fn following(header: Vec<String>) -> Self {
        let key = |column: &String| column.strip_prefix(METADATA).map(str::to_owned);
        let metadata = header.iter().filter_map(key).collect();
        Self { begun: true, ..Self::new(Some(metadata), Vec::new()) }
    }

    /// Whether `header` begins a file of results as this build writes them.
    pub(crate) fn knows(header: &[String]) -> bool {
        header.len() > RESULT_COLUMNS.len()
            && header.iter().zip(RESULT_COLUMNS).all(|(column, ours)| column == ours)
            && header.last().is_some_and(|last| last == MORE)
    }

    /// Adds a result.
    pub(crate) fn result(&mut self, result: &ImageResult) -> anyhow::Result<()> {
        let keys = self.metadata_keys(&result.metadata);
        self.begin(&RESULT_COLUMNS.map(str::to_owned), &keys)?;
        let mut fields = fields(result);
        let more = metadata_fields(&mut fields, &result.metadata, &keys);
        fields.push(object(more));
        Ok(self.writer.write_record(&fields)?)
    }

    /// Adds summaries; the first ones name the models where nobody did.
    pub(crate) fn summaries(&mut self, summaries: &[Summary]) -> anyhow::Result<()> {
        if !self.begun && self.models.is_empty() {
            self.models = model_columns(summaries);
        }
        for summary in summaries {
            let keys = self.metadata_keys(&summary.metadata);
            let columns: Vec<String> = SUMMARY_COLUMNS
                .iter()
                .map(|name| (*name).to_owned())
                .chain(self.models.iter().cloned())
                .collect();
            self.begin(&columns, &keys)?;
            self.writer.write_record(self.summary_fields(summary, &keys))?;
        }
        Ok(())
    }

    /// Takes the waiting rows.
    pub(crate) fn drain(&mut self) -> anyhow::Result<Vec<u8>> {
        let full = std::mem::replace(&mut self.writer, writer());
        full.into_inner().context("CSV rows in memory")
    }

    fn summary_fields(&self, summary: &Summary, keys: &[String]) -> Vec<String> {
        let mut fields = vec![
            summary.batch.to_string(),
            summary.image.clone(),
            summary.source.clone().unwrap_or_default(),
            summary.complete.to_string(),
        ];
        let short = |seen: &super::gather::Seen| cell::short(seen.answer.as_ref(), seen.failure.as_ref());
        fields.extend(self.models.iter().map(|model| summary.find(model).map(short).unwrap_or_default()));
        let mut more = metadata_fields(&mut fields, &summary.metadata, keys);
        for seen in &summary.results {
            if !self.models.iter().any(|model| seen.is(model)) {
                more.insert(format!("{}/{}", seen.provider, seen.model), Value::String(short(seen)));
            }
        }
        fields.push(object(more));
        fields
    }

    fn metadata_keys(&mut self, first: &BTreeMap<String, String>) -> Vec<String> {
        self.metadata.get_or_insert_with(|| first.keys().cloned().collect()).clone()
    }

    fn begin(&mut self, columns: &[String], keys: &[String]) -> anyhow::Result<()> {
        if !std::mem::replace(&mut self.begun, true) {
            let keys = keys.iter().map(|key| format!("{METADATA}{key}"));
            let header = columns.iter().cloned().chain(keys).chain([MORE.to_owned()]);
            self.writer.write_record(header.collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

fn writer() -> csv::Writer<Vec<u8>> {
    csv::WriterBuilder::new().buffer_capacity(4096).from_writer(Vec::new())
}

/// The fields of [`RESULT_COLUMNS`]; what does not apply is empty.
fn fields(result: &ImageResult) -> Vec<String> {
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

/// Adds the metadata that has a column of its own, and returns the rest.
fn metadata_fields(
    fields: &mut Vec<String>,
    metadata: &BTreeMap<String, String>,
    keys: &[String],
) -> Map<String, Value> {
    fields.extend(keys.iter().map(|key| metadata.get(key).cloned().unwrap_or_default()));
    let rest = metadata.iter().filter(|(key, _)| !keys.contains(key));
    rest.map(|(key, value)| (key.clone(), Value::String(value.clone()))).collect()
}

fn object(more: Map<String, Value>) -> String {
    if more.is_empty() { String::new() } else { Value::Object(more).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{gather::Gather, sample};
    use pixfleet_shared::result::Outcome;

    fn with(image: &str, metadata: &[(&str, &str)]) -> ImageResult {
        let mut result = sample(image, "m", Outcome::Ok, 1);
        result.metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        result
    }

    fn parse(rows: &mut CsvRows) -> Vec<BTreeMap<String, String>> {
        let bytes = rows.drain().unwrap();
        csv::Reader::from_reader(&bytes[..]).deserialize().map(Result::unwrap).collect()
    }

    #[test]
    fn the_first_rows_metadata_makes_columns_and_what_comes_later_is_kept_in_the_last_one() {
        let mut rows = CsvRows::new(None, Vec::new());
        rows.result(&with("1", &[("price", "10"), ("text", "a \"b\",\nc")])).unwrap();
        rows.result(&with("2", &[("price", "20"), ("city", "Riga")])).unwrap();
        let rows = parse(&mut rows);
        assert_eq!((&rows[0]["metadata.price"][..], &rows[0]["metadata.text"][..]), ("10", "a \"b\",\nc"));
        assert_eq!((&rows[1]["metadata.text"][..], &rows[1]["more"][..]), ("", r#"{"city":"Riga"}"#));
        assert_eq!(rows[0]["sent_at"], "1970-01-01T00:00:01Z");
    }

    #[test]
    fn a_second_run_writes_below_the_first_ones_header() {
        let mut rows = CsvRows::new(None, Vec::new());
        rows.result(&with("1", &[("price", "10")])).unwrap();
        let first = rows.drain().unwrap();
        let header: Vec<String> =
            csv::Reader::from_reader(&first[..]).headers().unwrap().iter().map(str::to_owned).collect();
        assert!(CsvRows::knows(&header));
        let mut rows = CsvRows::following(header);
        rows.result(&with("2", &[("city", "Riga"), ("price", "20")])).unwrap();
        let both = [first, rows.drain().unwrap()].concat();
        let rows: Vec<BTreeMap<String, String>> =
            csv::Reader::from_reader(&both[..]).deserialize().map(Result::unwrap).collect();
        assert_eq!((&rows[1]["image"][..], &rows[1]["metadata.price"][..]), ("2", "20"));
    }

    #[test]
    fn a_summary_is_one_row_with_a_column_a_model() {
        let mut gather = Gather::new(Vec::new(), 100);
        for model in ["b", "a"] {
            gather.add(&sample("1", model, Outcome::Ok, 1));
        }
        gather.add(&sample("2", "a", Outcome::Dead, 1));
        let mut rows = CsvRows::new(None, Vec::new());
        rows.summaries(&gather.finish(true)).unwrap();
        let text = String::from_utf8(rows.drain().unwrap()).unwrap();
        assert_eq!(
            text,
            "batch,image,source,complete,a,b,more\nb,1,https://example.com/1.jpg,true,kitchen,kitchen,\n\
             b,2,https://example.com/2.jpg,true,[transient],,\n"
        );
    }
}
