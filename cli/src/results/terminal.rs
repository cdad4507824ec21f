//! How wide the terminal is, and lines for people that fit into it.

use comfy_table::Table;

/// Columns of the terminal that stdout is; none where it is a pipe or a file.
pub(crate) fn stdout_width() -> Option<u16> {
    Table::new().width()
}

/// Columns of the terminal that stderr is; none where it is a pipe or a file.
pub(crate) fn stderr_width() -> Option<u16> {
    Table::new().use_stderr().width()
}

/// `line`, folded after a comma, a semicolon or a colon where it is wider than the terminal. What follows is indented.
pub(crate) fn folded(line: &str, width: Option<u16>) -> String {
    let width = width.map_or(usize::MAX, usize::from);
    let mut folded = String::with_capacity(line.len());
    let mut column = 0;
    for phrase in phrases(line) {
        let long = phrase.chars().count();
        if column > 0 && column + 1 + long > width {
            folded.push_str("\n  ");
            column = 2;
        } else if column > 0 {
            folded.push(' ');
            column += 1;
        }
        folded.push_str(phrase);
        column += long;
    }
    folded
}

/// The parts of `line` that stay whole, without the blanks between them.
fn phrases(mut line: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        if line.is_empty() {
            return None;
        }
        let end = [", ", "; ", ": "].iter().filter_map(|mark| line.find(mark)).min();
        let (phrase, rest) = end.map_or((line, ""), |end| (&line[..=end], &line[end + 2..]));
        line = rest;
        Some(phrase)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATISTICS: &str =
        "36 requests in 8.8 s, average 1163 ms, 3.97 requests/s, 99.2 % of the limit (4/s), 0 429s";

    #[test]
    fn the_line_that_users_know_is_one_line_wherever_it_fits() {
        assert_eq!(folded(STATISTICS, None), STATISTICS);
        assert_eq!(folded(STATISTICS, Some(100)), STATISTICS);
    }

    #[test]
    fn on_a_narrow_terminal_it_folds_between_two_figures_and_a_command_stays_whole() {
        assert_eq!(
            folded(STATISTICS, Some(80)),
            "36 requests in 8.8 s, average 1163 ms, 3.97 requests/s,\n  99.2 % of the limit (4/s), 0 429s"
        );
        assert_eq!(
            folded("see them again: pixfleet results --batch b", Some(30)),
            "see them again:\n  pixfleet results --batch b"
        );
    }
}
