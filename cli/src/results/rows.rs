//! Results and summaries as rows of text. Rows wait here until the reader drains them towards the output.

use pixfleet_shared::result::ImageResult;

use super::{csv_rows::CsvRows, gather::Summary, table_rows::TableRows};

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// One JSON object a line: the result as it is on the wire, without its envelope.
    #[default]
    Jsonl,
    /// One row a result, flattened.
    Csv,
    /// For people.
    Table,
}

/// The rows that are not yet written.
pub(crate) struct Rows {
    kind: Kind,
    waiting: usize,
    total: u64,
}

enum Kind {
    Jsonl(Vec<u8>),
    Csv(Box<CsvRows>),
    Table(TableRows),
}

impl Rows {
    /// No rows yet. `metadata` names the metadata columns of a CSV; without it, the first row does.
    /// `models` names the model columns of summaries; without it, the first rows do.
    /// `terminal` is the width of the terminal that tables go to, if they do.
    pub(crate) fn new(
        format: Format,
        metadata: Option<Vec<String>>,
        models: Vec<String>,
        terminal: Option<u16>,
    ) -> Self {
        let kind = match format {
            Format::Jsonl => Kind::Jsonl(Vec::new()),
            Format::Csv => Kind::Csv(Box::new(CsvRows::new(metadata, models))),
            Format::Table => Kind::Table(TableRows::new(models, terminal)),
        };
        Self { kind, waiting: 0, total: 0 }
    }

    /// Rows that follow those of an earlier run, whose CSV header was `header`.
    pub(crate) fn following(header: &[String]) -> Self {
        Self { kind: Kind::Csv(Box::new(CsvRows::following(header))), waiting: 0, total: 0 }
    }

    /// Adds a result.
    pub(crate) fn result(&mut self, result: &ImageResult) -> anyhow::Result<()> {
        match &mut self.kind {
            Kind::Jsonl(lines) => json_line(lines, result)?,
            Kind::Csv(rows) => rows.result(result)?,
            Kind::Table(rows) => rows.result(result),
        }
        self.count(1);
        Ok(())
    }

    /// Adds summaries.
    pub(crate) fn summaries(&mut self, summaries: &[Summary]) -> anyhow::Result<()> {
        if summaries.is_empty() {
            return Ok(());
        }
        match &mut self.kind {
            Kind::Jsonl(lines) => summaries.iter().try_for_each(|summary| json_line(lines, summary))?,
            Kind::Csv(rows) => rows.summaries(summaries)?,
            Kind::Table(rows) => rows.summaries(summaries),
        }
        self.count(summaries.len());
        Ok(())
    }

    /// Takes the waiting rows as bytes.
    pub(crate) fn drain(&mut self) -> anyhow::Result<Vec<u8>> {
        self.waiting = 0;
        match &mut self.kind {
            Kind::Jsonl(lines) => Ok(std::mem::take(lines)),
            Kind::Csv(rows) => rows.drain(),
            Kind::Table(rows) => Ok(rows.drain()),
        }
    }

    /// How many rows wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many rows there were so far.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    fn count(&mut self, rows: usize) {
        self.waiting += rows;
        self.total += rows as u64;
    }
}

fn json_line(lines: &mut Vec<u8>, row: &impl serde::Serialize) -> anyhow::Result<()> {
    serde_json::to_writer(&mut *lines, row)?;
    lines.push(b'\n');
    Ok(())
}

/// The columns of summaries when nobody named them: every model, under its provider where two are asked.
pub(crate) fn model_columns(summaries: &[Summary]) -> Vec<String> {
    let mut pairs: Vec<(&str, &str)> = summaries
        .iter()
        .flat_map(|summary| &summary.results)
        .map(|seen| (seen.provider.as_str(), seen.model.as_str()))
        .collect();
    pairs.sort_unstable();
    pairs.dedup();
    let one_provider = pairs.windows(2).all(|pair| pair[0].0 == pair[1].0);
    let name = |(provider, model): (&str, &str)| {
        if one_provider { model.to_owned() } else { format!("{provider}/{model}") }
    };
    pairs.into_iter().map(name).collect()
}
