//! A table for people: its cells, the narrower forms that it can take, and its lines. Pure.

use comfy_table::{ColumnConstraint, Table, Width, presets};

/// The blank on each side of a column.
const PADDING: u16 = 2;
/// A name that is no longer is not broken, however narrow its column.
const NAME: u16 = 14;

/// Rows of cells under a header.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Grid {
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Grid {
    pub(crate) fn under(header: Vec<String>) -> Self {
        Self { header, rows: Vec::new() }
    }

    /// The same without a column.
    pub(super) fn without(mut self, column: &str) -> Self {
        if let Some(at) = self.header.iter().position(|name| name == column) {
            self.header.remove(at);
            for row in &mut self.rows {
                row.remove(at);
            }
        }
        self
    }

    /// The same with the header's names on several lines, each broken after a `_` or `/` to the width of its column.
    pub(super) fn under_broken_names(mut self) -> Self {
        let below = Self { header: vec![String::new(); self.header.len()], rows: self.rows.clone() };
        for (name, width) in self.header.iter_mut().zip(below.words()) {
            *name = broken(name, width.max(NAME).into());
        }
        self
    }

    /// A line for each cell, under the first cell of its row: `kitchen`, then `  re_logo  watermark`.
    pub(super) fn listed(self) -> Self {
        let models = self.header.iter().skip(1);
        let names: Vec<String> = models.map(|model| format!("  {model}")).collect();
        let mut list = Self::under(vec!["image, model".to_owned(), "answer".to_owned()]);
        for row in self.rows {
            let mut cells = row.into_iter();
            list.rows.push(vec![cells.next().unwrap_or_default(), String::new()]);
            let named = names.iter().cloned().zip(cells);
            list.rows.extend(named.map(|(name, cell)| vec![name, cell]));
        }
        list
    }

    /// The width of each column that keeps every word whole.
    pub(super) fn words(&self) -> Vec<u16> {
        let a_word_a_line = |cell: &String| cell.replace(' ', "\n");
        let line = |cells: &Vec<String>| cells.iter().map(a_word_a_line).collect();
        Self { header: line(&self.header), rows: self.rows.iter().map(line).collect() }.contents()
    }

    /// The width of each column that keeps every cell on one line.
    pub(super) fn contents(&self) -> Vec<u16> {
        self.table(true).column_max_content_widths()
    }

    /// The lines, without the blanks at their ends, with columns as wide as `widths` says.
    pub(super) fn lines(&self, widths: &[u16], header: bool) -> String {
        let mut table = self.table(header);
        for (column, width) in table.column_iter_mut().zip(widths) {
            column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width + PADDING)));
        }
        table.trim_fmt() + "\n"
    }

    /// The lines under their header, no wider than the terminal as long as words stay whole.
    pub(crate) fn fitted(&self, terminal: Option<u16>) -> String {
        let widths = match terminal {
            None => self.contents(),
            Some(terminal) => shared_out(&self.words(), &self.contents(), terminal.into()),
        };
        self.lines(&widths, true)
    }

    fn table(&self, header: bool) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).force_no_tty();
        if header {
            table.set_header(&self.header);
        }
        table.add_rows(&self.rows);
        table
    }
}

/// What columns of these widths take of a terminal.
pub(super) fn total(widths: &[u16]) -> usize {
    widths.iter().map(|width| usize::from(width + PADDING)).sum()
}

/// `least`, with what is left of `terminal` given to the columns in order, up to `most`.
pub(super) fn shared_out(least: &[u16], most: &[u16], terminal: usize) -> Vec<u16> {
    let mut left = terminal.saturating_sub(total(least));
    let widened = least.iter().zip(most).map(|(least, most)| {
        let more = usize::from(most.saturating_sub(*least)).min(left);
        left -= more;
        least + more as u16
    });
    widened.collect()
}

fn broken(name: &str, width: usize) -> String {
    let pieces = || name.split_inclusive(['_', '/']);
    let width = pieces().map(|piece| piece.chars().count()).fold(width, usize::max);
    let (mut broken, mut column) = (String::new(), 0);
    for piece in pieces() {
        let long = piece.chars().count();
        if column > 0 && column + long > width {
            broken.push('\n');
            column = 0;
        }
        broken.push_str(piece);
        column += long;
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(lines: &[&[&str]]) -> Grid {
        let cells = |line: &[&str]| line.iter().map(|cell| (*cell).to_owned()).collect();
        let mut grid = Grid::under(cells(lines[0]));
        grid.rows = lines[1..].iter().map(|line| cells(line)).collect();
        grid
    }

    #[test]
    fn a_name_breaks_where_its_column_ends_and_only_between_words() {
        assert_eq!(broken("re_roomtype_global_v2", 9), "re_\nroomtype_\nglobal_v2");
        assert_eq!(broken("re_roomtype_global_v2", 12), "re_roomtype_\nglobal_v2");
        assert_eq!(broken("re_logo", 12), "re_logo");
    }

    #[test]
    fn a_list_has_an_image_over_its_models() {
        let list = grid(&[&["image", "room", "style"], &["1", "kitchen", "ranch"]]).listed();
        let widths = list.contents();
        assert_eq!(list.lines(&widths, false), " 1\n   room        kitchen\n   style       ranch\n");
    }

    #[test]
    fn what_is_left_of_the_terminal_goes_to_those_that_need_it() {
        assert_eq!(shared_out(&[4, 4], &[4, 30], 30), [4, 22]);
        assert_eq!(shared_out(&[4, 4], &[6, 7], 100), [6, 7]);
        assert_eq!(shared_out(&[40, 40], &[60, 60], 30), [40, 40], "words stay whole");
    }
}
