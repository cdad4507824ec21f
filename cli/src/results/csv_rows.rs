//! Results and summaries as CSV whose header is fixed with its first row, so that it can be streamed.
//!
//! Which columns a result has, and what becomes of metadata, is said once for every CSV: in [`pixfleet_sinks::row`].

use std::collections::BTreeMap;

use anyhow::Context as _;
use pixfleet_shared::result::ImageResult;
use pixfleet_sinks::row;
use serde_json::Value;

use super::{cell, gather::Summary, rows::model_columns};

const SUMMARY_COLUMNS: [&str; 4] = ["batch", "image", "source", "complete"];

/// The waiting rows of a CSV.
pub(crate) struct CsvRows {
    writer: csv::Writer<Vec<u8>>,
    metadata: Option<Vec<String>>,
    models: Vec<String>,
    /// Whether the header has the column `cached`: an earlier build wrote none.
    cached: bool,
    begun: bool,
}

impl CsvRows {
    /// A new file's rows.
    pub(crate) fn new(metadata: Option<Vec<String>>, models: Vec<String>) -> Self {
        Self { writer: writer(), metadata, models, cached: true, begun: false }
    }

    /// Rows below the `header` of an earlier run.
    pub(crate) fn following(header: &[String]) -> Self {
        Self {
            begun: true,
            cached: row::has_cached(header),
            ..Self::new(Some(row::keys(header)), Vec::new())
        }
    }

    /// Adds a result.
    pub(crate) fn result(&mut self, result: &ImageResult) -> anyhow::Result<()> {
        let keys = self.metadata_keys(&result.metadata);
        self.begin(&row::COLUMNS, &keys)?;
        Ok(self.writer.write_record(row::fields(result, &keys, self.cached))?)
    }

    /// Adds summaries; the first ones name the models where nobody did.
    pub(crate) fn summaries(&mut self, summaries: &[Summary]) -> anyhow::Result<()> {
        if !self.begun && self.models.is_empty() {
            self.models = model_columns(summaries);
        }
        for summary in summaries {
            let keys = self.metadata_keys(&summary.metadata);
            let models = self.models.clone();
            let columns: Vec<&str> =
                SUMMARY_COLUMNS.into_iter().chain(models.iter().map(String::as_str)).collect();
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
        let mut more = row::metadata_fields(&mut fields, &summary.metadata, keys);
        for seen in &summary.results {
            if !self.models.iter().any(|model| seen.is(model)) {
                more.insert(format!("{}/{}", seen.provider, seen.model), Value::String(short(seen)));
            }
        }
        fields.push(row::more(more));
        fields
    }

    fn metadata_keys(&mut self, first: &BTreeMap<String, String>) -> Vec<String> {
        self.metadata.get_or_insert_with(|| first.keys().cloned().collect()).clone()
    }

    fn begin(&mut self, columns: &[&str], keys: &[String]) -> anyhow::Result<()> {
        if !std::mem::replace(&mut self.begun, true) {
            self.writer.write_record(row::header(columns.iter().copied(), keys))?;
        }
        Ok(())
    }
}

fn writer() -> csv::Writer<Vec<u8>> {
    csv::WriterBuilder::new().buffer_capacity(4096).from_writer(Vec::new())
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
        assert!(row::knows(&header));
        let mut rows = CsvRows::following(&header);
        rows.result(&with("2", &[("city", "Riga"), ("price", "20")])).unwrap();
        let both = [first, rows.drain().unwrap()].concat();
        let rows: Vec<BTreeMap<String, String>> =
            csv::Reader::from_reader(&both[..]).deserialize().map(Result::unwrap).collect();
        assert_eq!((&rows[1]["image"][..], &rows[1]["metadata.price"][..]), ("2", "20"));
    }

    #[test]
    fn below_the_header_of_an_earlier_build_what_has_no_column_there_is_in_the_last_one() {
        let all = row::header(row::COLUMNS, &[]);
        let old: Vec<String> = all.iter().filter(|column| *column != "cached").cloned().collect();
        assert!(row::knows(&old) && row::knows(&all) && all.len() == old.len() + 1);
        let before = ImageResult { cached: true, ..with("1", &[]) };
        let last = |rows: &mut CsvRows| {
            rows.result(&before).unwrap();
            let text = String::from_utf8(rows.drain().unwrap()).unwrap();
            let row = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
            row.into_records().next().unwrap().unwrap().iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let row = last(&mut CsvRows::following(&old));
        assert_eq!((row.len(), &row[17][..]), (18, r#"{"cached":true}"#));
        let row = last(&mut CsvRows::following(&all));
        assert_eq!((row.len(), &row[17][..], &row[18][..]), (19, "true", ""));
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
