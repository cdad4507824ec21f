//! What a run came to, for programs and for people.

use pixfleet_shared::batch::{BatchName, Tally};
use serde::Serialize;

use super::{calls::CallStatistics, ending::Ended, tally::Counts, terminal};

/// What a run came to.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The batch, if one was asked for.
    pub batch: Option<BatchName>,
    /// Why it ended.
    pub ended: Ended,
    /// Whether the batch is complete.
    pub complete: bool,
    /// The counts of the batch, or of what was read.
    #[serde(flatten)]
    pub counts: Counts,
    /// What its results count as, as its end was announced; null until then.
    pub tally: Option<Tally>,
    /// Rows written.
    pub written: u64,
    /// Deliveries of a result that was here already; they were dropped.
    pub repeated: u64,
    /// Results of the batch that did not come to this subscriber: taken by an earlier run, or older than its name.
    pub elsewhere: u64,
    /// Time, rate and limit, for each provider.
    pub calls: Vec<CallStatistics>,
}

impl Report {
    /// Counts and statistics for people, on stderr.
    pub(super) fn tell(&self) {
        for line in self.lines() {
            eprintln!("{}", terminal::folded(&line, terminal::stderr_width()));
        }
    }

    fn lines(&self) -> Vec<String> {
        let counts = &self.counts;
        let of = counts.expected.map_or_else(String::new, |expected| format!(" of {expected}"));
        let what = match &self.batch {
            Some(batch) if self.complete => format!("batch {batch} is complete: "),
            Some(batch) => format!("batch {batch} is not complete: "),
            None => String::new(),
        };
        let mut lines = vec![format!("{what}{}{of} results: {}", counts.results, counts.in_words())];
        if self.elsewhere > 0 {
            lines.push(format!(
                "{} of them did not come to this reader: written by an earlier run, or published before it began; \
                 --batch alone replays all",
                self.elsewhere
            ));
        }
        let alone = self.calls.len() == 1;
        lines.extend(self.calls.iter().map(|calls| match alone {
            true => calls.to_string(),
            false => format!("{}: {calls}", calls.provider),
        }));
        lines
    }
}
