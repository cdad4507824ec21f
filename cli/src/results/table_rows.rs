//! Results and summaries as tables for people.
//!
//! A long run is printed in pages as it comes, so memory stays constant; every page keeps the widths of those before
//! it unless its own rows are wider, and only the first has a header. No word is broken: a table that is too wide for
//! the terminal takes a narrower form, under a header of its own.

use pixfleet_shared::result::ImageResult;
use pixfleet_sinks::cell::failure;

use super::{
    cell,
    gather::{Seen, Summary},
    grid::{Grid, shared_out, total},
    rows::model_columns,
};

/// The waiting rows of a table.
pub(crate) struct TableRows {
    models: Vec<String>,
    terminal: usize,
    page: Option<Page>,
    form: usize,
    widths: Vec<u16>,
}

/// Rows that wait, and the forms that they can take, the widest first.
struct Page {
    grid: Grid,
    forms: &'static [fn(Grid) -> Grid],
}

const RESULT_HEADER: [&str; 6] = ["outcome", "image", "provider", "model", "answer", "ms"];
const RESULT_FORMS: &[fn(Grid) -> Grid] =
    &[|grid| grid, |grid| grid.without("provider"), |grid| grid.without("provider").without("ms")];
const SUMMARY_FORMS: &[fn(Grid) -> Grid] = &[|grid| grid, Grid::under_broken_names, Grid::listed];

impl TableRows {
    /// No rows yet. `models` names the columns of summaries; without it, the first summaries do.
    /// `terminal` is its width in columns, none where rows may be as wide as they are.
    pub(crate) fn new(models: Vec<String>, terminal: Option<u16>) -> Self {
        Self {
            models,
            terminal: terminal.map_or(usize::MAX, usize::from),
            page: None,
            form: 0,
            widths: Vec::new(),
        }
    }

    /// Adds a result.
    pub(crate) fn result(&mut self, result: &ImageResult) {
        let answer = cell::short(result.answer.as_ref(), None);
        let answer = result.failure.as_ref().map_or(answer, failure);
        let ms = result.call.as_ref().map_or_else(String::new, |call| format!("{:.0}", call.duration_ms));
        let row = [result.outcome.as_str(), &result.image, &result.provider, &result.model, &answer, &ms];
        let page = self.page.get_or_insert_with(|| Page {
            grid: Grid::under(RESULT_HEADER.map(str::to_owned).to_vec()),
            forms: RESULT_FORMS,
        });
        page.grid.rows.push(row.map(str::to_owned).to_vec());
    }

    /// Adds summaries: a row an image, a column a model.
    pub(crate) fn summaries(&mut self, summaries: &[Summary]) {
        if self.models.is_empty() {
            self.models = model_columns(summaries);
        }
        let models = &self.models;
        let page = self.page.get_or_insert_with(|| Page {
            grid: Grid::under(std::iter::once("image".to_owned()).chain(models.iter().cloned()).collect()),
            forms: SUMMARY_FORMS,
        });
        for summary in summaries {
            let short = |seen: &Seen| cell::short(seen.answer.as_ref(), seen.failure.as_ref());
            let cells = models.iter().map(|model| summary.find(model).map_or_else(|| "-".to_owned(), short));
            let row = std::iter::once(summary.image.clone()).chain(cells);
            page.grid.rows.push(row.collect());
        }
    }

    /// Takes the waiting rows as one page.
    pub(crate) fn drain(&mut self) -> Vec<u8> {
        let Some(page) = self.page.take() else {
            return Vec::new();
        };
        let mut grid = page.forms[self.form](page.grid.clone());
        while total(&grid.words()) > self.terminal && self.form + 1 < page.forms.len() {
            self.form += 1;
            // Other columns: nothing of the pages before holds for them.
            self.widths.clear();
            grid = page.forms[self.form](page.grid.clone());
        }
        let header = self.widths.is_empty();
        self.widths = self.widths_of(&grid);
        grid.lines(&self.widths, header).into_bytes()
    }

    /// Those of the pages before, or wider where this one needs it.
    fn widths_of(&self, grid: &Grid) -> Vec<u16> {
        let least = grid.words();
        let widest = |widths: &[u16]| -> Vec<u16> {
            let known = self.widths.iter().copied().chain(std::iter::repeat(0));
            widths.iter().zip(known).map(|(width, known)| known.max(*width)).collect()
        };
        let kept = widest(&least);
        let least = if total(&kept) <= self.terminal { kept } else { least };
        shared_out(&least, &widest(&grid.contents()), self.terminal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Gather, sample};
    use pixfleet_shared::result::{ImageResult, Label, Outcome};

    const MODELS: [&str; 6] = [
        "re_roomtype_global_v2",
        "re_exterior_styles",
        "re_features_v4",
        "re_logo",
        "re_compliance_v2",
        "re_condition_r1r6_global",
    ];
    const LABELS: [&str; 3] = ["kitchen_island", "built_in_shelves", "stainless_steel"];

    fn seen(image: &str, model: &str) -> ImageResult {
        let mut result = sample(image, model, Outcome::Ok, 1);
        let label = |label: &str| Label { label: label.into(), confidence: None };
        if let Some(answer) = &mut result.answer {
            answer.labels = LABELS.map(label).to_vec();
        }
        result
    }

    fn text(rows: &mut TableRows) -> String {
        String::from_utf8(rows.drain()).unwrap()
    }

    fn assert_whole(table: &str, words: &[&str], terminal: usize) {
        for line in table.lines() {
            assert!(line.chars().count() <= terminal, "{line:?} is wider than {terminal}");
        }
        for word in words {
            let found = table.split([' ', ';', '\n']).any(|found| found == *word);
            assert!(found, "{word} is not whole in\n{table}");
        }
    }

    #[test]
    fn the_second_page_stands_under_the_first_ones_columns_without_a_header() {
        let mut rows = TableRows::new(Vec::new(), None);
        rows.result(&sample("a-rather-long-name", "m", Outcome::Ok, 1));
        let first = text(&mut rows);
        rows.result(&sample("2", "m", Outcome::Ok, 1));
        let second = text(&mut rows);
        assert_eq!((first.lines().count(), second.lines().count()), (2, 1));
        let place = |line: &str| line.find("kitchen");
        assert_eq!(
            first.lines().last().and_then(place),
            second.lines().next().and_then(place),
            "{first}{second}"
        );
        assert_eq!(rows.drain(), b"");
    }

    #[test]
    fn an_image_is_one_line_where_no_terminal_bounds_it() {
        let mut gather = Gather::new(Vec::new(), 100);
        for model in MODELS {
            gather.add(&seen("photos/2026/living-room.jpg", model));
        }
        let mut rows = TableRows::new(Vec::new(), None);
        rows.summaries(&gather.finish(true));
        assert_eq!(text(&mut rows).lines().count(), 2);
    }

    #[test]
    fn no_terminal_of_eighty_columns_or_more_breaks_a_word_of_a_summary() {
        let mut gather = Gather::new(Vec::new(), 100);
        for model in MODELS {
            gather.add(&seen("photos/2026/living-room.jpg", model));
        }
        let summaries = gather.finish(true);
        for terminal in [80, 100, 120, 200] {
            let mut rows = TableRows::new(Vec::new(), Some(terminal));
            rows.summaries(&summaries);
            let table = text(&mut rows);
            assert_whole(&table, &LABELS, terminal.into());
            assert_whole(&table, &["photos/2026/living-room.jpg", "re_logo"], terminal.into());
        }
    }

    #[test]
    fn a_narrow_terminal_leaves_out_a_results_provider_before_it_breaks_a_word() {
        let of = |terminal| {
            let mut rows = TableRows::new(Vec::new(), Some(terminal));
            rows.result(&seen("living-room", "re_condition_r1r6_global"));
            text(&mut rows)
        };
        let (wide, narrow) = (of(100), of(80));
        assert!(wide.contains("provider") && !narrow.contains("provider"), "{wide}{narrow}");
        for (table, terminal) in [(wide, 100), (narrow, 80)] {
            assert_whole(&table, &LABELS, terminal);
            assert_whole(&table, &["living-room", "re_condition_r1r6_global", "100"], terminal);
        }
    }

    #[test]
    fn a_page_with_longer_words_than_those_before_it_brings_its_own_header() {
        let mut rows = TableRows::new(Vec::new(), Some(60));
        rows.result(&sample("1", "m", Outcome::Ok, 1));
        assert!(text(&mut rows).contains("provider"));
        rows.result(&seen("living-room", "re_logo"));
        let second = text(&mut rows);
        assert!(second.starts_with(" outcome") && !second.contains("provider"), "{second}");
        rows.result(&sample("2", "m", Outcome::Ok, 1));
        assert!(text(&mut rows).starts_with(" ok"));
    }
}
