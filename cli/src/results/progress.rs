//! What people see while results are read: how many are here, and what is waited for.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pixfleet_shared::batch::BatchName;

use super::{tally::Counts, terminal};

/// A batch of which nothing came for so long may be mistyped.
const PATIENCE: Duration = Duration::from_secs(3);

/// The live count on stderr, and what is said there once.
pub(crate) struct Progress {
    bar: ProgressBar,
    said: bool,
}

impl Progress {
    /// Begins; with `live`, a count is drawn where stderr is a terminal.
    pub(super) fn start(live: bool) -> Self {
        let bar = if live {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
        } else {
            ProgressBar::hidden()
        };
        let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} results, {msg}, {elapsed}");
        Self { bar: bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())), said: false }
    }

    /// Shows where the counts stand.
    pub(super) fn show(&self, counts: &Counts) {
        if let Some(expected) = counts.expected {
            self.bar.set_length(expected);
        }
        self.bar.set_position(counts.results);
        self.bar.set_message(counts.in_words());
    }

    /// Says once what is waited for, when nothing of `batch` came `since` the beginning.
    pub(super) fn nothing_of(&mut self, batch: &BatchName, since: Duration) {
        if !self.is_due(since) {
            return;
        }
        let line = format!(
            "waiting for batch {batch}: nothing of it is in the log yet (is the name right?); \
             --timeout 30s ends the wait, Ctrl-C too"
        );
        self.bar.suspend(|| eprintln!("{}", terminal::folded(&line, terminal::stderr_width())));
    }

    fn is_due(&mut self, since: Duration) -> bool {
        let due = !self.said && since >= PATIENCE;
        self.said |= due;
        due
    }

    /// Takes the count away.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_said_once_and_not_of_a_batch_that_comes_soon() {
        let mut progress = Progress::start(false);
        let said: Vec<bool> = [0, 1, 3, 4, 60].map(|s| progress.is_due(Duration::from_secs(s))).to_vec();
        assert_eq!(said, [false, false, true, false, false]);
    }
}
