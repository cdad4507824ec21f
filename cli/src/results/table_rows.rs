//! Results and summaries as tables for people.
//!
//! A long run is printed in pages as it comes, so memory stays constant; every page keeps the first one's widths
//! unless its own rows are wider, and only the first has a header.

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use pixfleet_shared::result::ImageResult;

use super::{
    cell,
    gather::{Seen, Summary},
    rows::model_columns,
};

/// The waiting rows of a table.
pub(crate) struct TableRows {
    page: Option<Table>,
    models: Vec<String>,
    widths: Vec<u16>,
}

const RESULT_HEADER: [&str; 6] = ["outcome", "image", "provider", "model", "answer", "ms"];

impl TableRows {
    /// No rows yet. `models` names the columns of summaries; without it, the first summaries do.
    pub(crate) fn new(models: Vec<String>) -> Self {
        Self { page: None, models, widths: Vec::new() }
    }

    /// Adds a result.
    pub(crate) fn result(&mut self, result: &ImageResult) {
        let answer = cell::short(result.answer.as_ref(), None);
        let answer = result.failure.as_ref().map_or(answer, cell::failure);
        let ms = result.call.as_ref().map_or_else(String::new, |call| format!("{:.0}", call.duration_ms));
        let row = [result.outcome.as_str(), &result.image, &result.provider, &result.model, &answer, &ms];
        self.page(|| RESULT_HEADER.map(str::to_owned).to_vec()).add_row(row);
    }

    /// Adds summaries: a row an image, a column a model.
    pub(crate) fn summaries(&mut self, summaries: &[Summary]) {
        if self.models.is_empty() {
            self.models = model_columns(summaries);
        }
        let models = self.models.clone();
        let page = self.page(|| ["image".to_owned()].into_iter().chain(models.iter().cloned()).collect());
        for summary in summaries {
            let short = |seen: &Seen| cell::short(seen.answer.as_ref(), seen.failure.as_ref());
            let cells = models.iter().map(|model| summary.find(model).map_or_else(|| "-".to_owned(), short));
            page.add_row([summary.image.clone()].into_iter().chain(cells));
        }
    }

    /// Takes the waiting rows as one page.
    pub(crate) fn drain(&mut self) -> Vec<u8> {
        let Some(mut page) = self.page.take() else {
            return Vec::new();
        };
        let widest = page.column_max_content_widths();
        self.widths.resize(widest.len(), 0);
        for (known, wide) in self.widths.iter_mut().zip(widest) {
            *known = wide.max(*known);
        }
        for (column, width) in page.column_iter_mut().zip(&self.widths) {
            // The padding of one blank on each side is part of a column's width.
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + 2)));
        }
        format!("{page}\n").into_bytes()
    }

    fn page(&mut self, header: impl FnOnce() -> Vec<String>) -> &mut Table {
        let first = self.widths.is_empty();
        self.page.get_or_insert_with(|| {
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
            if first {
                table.set_header(header());
            }
            table
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::sample;
    use pixfleet_shared::result::Outcome;

    #[test]
    fn the_second_page_stands_under_the_first_ones_columns_without_a_header() {
        let mut rows = TableRows::new(Vec::new());
        rows.result(&sample("a-rather-long-name", "m", Outcome::Ok, 1));
        let first = String::from_utf8(rows.drain()).unwrap();
        rows.result(&sample("2", "m", Outcome::Ok, 1));
        let second = String::from_utf8(rows.drain()).unwrap();
        assert_eq!((first.lines().count(), second.lines().count()), (2, 1));
        let place = |line: &str| line.find("kitchen");
        assert_eq!(
            first.lines().last().and_then(place),
            second.lines().next().and_then(place),
            "{first}{second}"
        );
        assert_eq!(rows.drain(), b"");
    }
}
