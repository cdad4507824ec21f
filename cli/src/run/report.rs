//! What a run came to, over all its starts: for people, and as one JSON line.

use std::path::PathBuf;

use pixfleet_producer::Tally;
use pixfleet_shared::{
    embedded::{BatchCounts, CallCounts, FailureCount},
    result::Outcome,
};
use serde::Serialize;

use crate::{
    output,
    results::{CallStatistics, terminal::folded, terminal::stdout_width},
    status::outcomes,
};

/// What a run came to.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The batch.
    pub(super) batch: String,
    /// Whether every result is there.
    pub(super) complete: bool,
    /// Why it ended before that; null when it did not.
    pub(super) stopped: Option<String>,
    /// What became of the manifest's rows in this start.
    pub(super) rows: u64,
    /// Rows that could not be used.
    pub(super) bad_rows: u64,
    /// Jobs of the batch.
    pub(super) jobs: u64,
    /// Jobs that are done: completed, or dead letters.
    pub(super) jobs_done: u64,
    /// Results that the jobs promise.
    pub(super) expected: u64,
    /// Results that are there.
    pub(super) results: u64,
    /// Answered.
    pub(super) done: u64,
    /// Those of them that were answered before: no call was made.
    pub(super) cached: u64,
    /// Refused for good.
    pub(super) failed: u64,
    /// Given up; they are kept as dead letters.
    pub(super) dead: u64,
    /// Left out because the batch was cancelled: no call was made.
    pub(super) cancelled: u64,
    /// A call left, and its answer never came; they are kept as dead letters.
    pub(super) ambiguous: u64,
    /// Results without an answer, by reason.
    pub(super) failures: Vec<FailureCount>,
    /// Time, rate and limit of the calls behind the results, for each provider.
    pub(super) calls: Vec<CallStatistics>,
    /// The currency of the costs.
    pub(super) currency: String,
    /// The files that hold the results.
    pub(super) outputs: Vec<PathBuf>,
    /// The file that holds the state.
    pub(super) state: PathBuf,
    /// The results by their ends, in words.
    #[serde(skip)]
    outcomes: String,
}

/// What the report is made of, beside the counts.
pub(super) struct Frame {
    pub(super) tally: Tally,
    pub(super) stopped: Option<String>,
    pub(super) currency: String,
    pub(super) outputs: Vec<PathBuf>,
    pub(super) state: PathBuf,
}

impl Report {
    /// The report of `counts`.
    pub(super) fn of(counts: BatchCounts, frame: Frame) -> Self {
        let Frame { tally, stopped, currency, outputs, state } = frame;
        Self {
            complete: counts.complete(),
            stopped,
            rows: tally.rows,
            bad_rows: tally.bad_rows,
            jobs: counts.jobs,
            jobs_done: counts.ended + counts.dead_letters,
            expected: counts.expected,
            results: counts.seen(),
            done: counts.of(Outcome::Ok),
            cached: counts.cached,
            failed: counts.of(Outcome::Rejected),
            dead: counts.of(Outcome::Dead),
            cancelled: counts.of(Outcome::Cancelled),
            ambiguous: counts.of(Outcome::Ambiguous),
            outcomes: outcomes(&counts),
            calls: counts.calls.iter().map(statistics).collect(),
            failures: counts.failures,
            batch: counts.batch,
            currency,
            outputs,
            state,
        }
    }

    /// Prints itself on stdout.
    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            return Ok(output::json(self)?);
        }
        let width = stdout_width();
        for line in self.lines() {
            output::line(folded(&line, width))?;
        }
        Ok(())
    }

    fn lines(&self) -> Vec<String> {
        let is = if self.complete { "complete" } else { "not complete" };
        let Self { batch, results, expected, outcomes, .. } = self;
        let mut lines = vec![format!("batch {batch} is {is}: {results} of {expected} results: {outcomes}")];
        lines.extend(
            self.failures
                .iter()
                .map(|failure| format!("{}: {}", failure.in_words(), shortened(&failure.example))),
        );
        lines.extend(self.calls.iter().map(|calls| {
            let cost = if calls.cost > 0.0 {
                format!(", {:.2} {}", calls.cost, self.currency)
            } else {
                String::new()
            };
            format!("{calls}{cost}")
        }));
        if self.bad_rows > 0 {
            lines.push(format!("{} of {} rows could not be used", self.bad_rows, self.rows));
        }
        let outputs: Vec<String> = self.outputs.iter().map(|path| path.display().to_string()).collect();
        lines.push(format!("results: {}; state: {}", outputs.join(", "), self.state.display()));
        lines
    }
}

/// The first line of a message, of a length that fits beside its count.
fn shortened(message: &str) -> String {
    const MOST: usize = 160;
    let line = message.lines().next().unwrap_or_default();
    let mut short: String = line.chars().take(MOST).collect();
    if short.len() < line.len() {
        short.push('…');
    }
    short
}

fn statistics(calls: &CallCounts) -> CallStatistics {
    let statistics = CallStatistics {
        provider: calls.provider.clone(),
        requests: calls.calls,
        seconds: (calls.last_us - calls.first_us) as f64 / 1e6,
        average_ms: calls.duration_us as f64 / 1e3 / calls.calls.max(1) as f64,
        throughput_per_s: None,
        limit_per_s: calls.limit_per_s,
        utilisation: None,
        throttled: calls.throttled,
        cost: calls.cost,
    };
    statistics.with_rates()
}
