//! Whether the lines of a batch agree with what was promised. Pure.

use std::path::PathBuf;

use jiff::Timestamp;
use pixfleet_shared::{
    batch::{BatchName, BatchState, Tally},
    batches::{Held, Hold, Progress},
};
use serde::Serialize;

use super::{
    lines::Written,
    log::Events,
    missing::{Missing, Named},
};
use crate::{exit::Exit, words::count};

/// Names of what is missing that people are shown.
const SHOWN: usize = 20;

/// What the batch promised.
#[derive(Debug, Default)]
pub(super) struct Promise {
    /// Results to expect, once its enqueue has ended.
    expected: Option<u64>,
    closed: bool,
    /// What the fleet counted.
    tally: Option<Tally>,
    /// When its end was announced.
    completed_at: Option<Timestamp>,
    held: Option<Held>,
}

impl Promise {
    /// What the fleet knows, and where it knows nothing, what the log says.
    pub(super) fn of(progress: Option<Progress>, events: &Events) -> Self {
        let enqueue = events.enqueue.as_ref();
        let logged = enqueue.is_some_and(|event| event.state == BatchState::Closed);
        let said = enqueue.filter(|_| logged).or(events.complete.as_ref()).map(|event| event.results);
        let completed_at = events.complete.as_ref().map(|event| event.at);
        match progress {
            Some(progress) if progress.closed || progress.expected > 0 => Self {
                expected: Some(progress.expected),
                closed: progress.closed,
                tally: Some(progress.tally),
                completed_at,
                held: progress.held,
            },
            progress => Self {
                expected: said,
                closed: said.is_some(),
                tally: progress.as_ref().map(|progress| progress.tally),
                completed_at,
                held: progress.and_then(|progress| progress.held),
            },
        }
    }
}

/// How a batch ended.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    batch: BatchName,
    /// Whether every line is there, and all agrees.
    ok: bool,
    /// Whether results are still to come.
    pub(super) running: bool,
    lines: u64,
    /// Results that were promised; null where nobody knows.
    expected: Option<u64>,
    /// What the lines count as.
    counts: Tally,
    /// What the fleet counted; null where it knows nothing of the batch.
    tally: Option<Tally>,
    pub(super) missing: u64,
    /// As far as this machine can name it.
    missing_named: Vec<Missing>,
    /// What does not agree.
    problems: Vec<String>,
    /// How to know more.
    notes: Vec<String>,
    /// When its end was announced.
    completed_at: Option<Timestamp>,
    held: Option<Held>,
    /// Where the lines are.
    pub(super) out: Option<PathBuf>,
}

impl Verdict {
    /// Compares.
    pub(super) fn of(batch: BatchName, promise: &Promise, lines: &Written) -> Self {
        Self::compare(batch, promise, lines.len(), lines.tally())
    }

    fn compare(batch: BatchName, promise: &Promise, lines: u64, counts: Tally) -> Self {
        let expected = promise.expected;
        let missing = expected.map_or(0, |expected| expected.saturating_sub(lines));
        // Until the fleet has counted as many as were promised, what is not there may still come.
        let settled = promise.tally.is_none_or(|tally| Some(tally.total()) >= expected);
        let running = match expected {
            Some(_) => !promise.closed || (!settled && missing > 0),
            None => false,
        };
        let mut problems = Vec::new();
        if expected.is_none() {
            problems.push(
                "how many results to expect is not known: its enqueue has not ended, or could not say; the same enqueue \
                 again says it"
                    .to_owned(),
            );
        }
        if !running {
            problems.extend(contradictions(expected, promise.tally, lines, counts));
        }
        Self {
            batch,
            ok: problems.is_empty() && !running,
            running,
            lines,
            expected,
            counts,
            tally: promise.tally,
            missing,
            missing_named: Vec::new(),
            problems,
            notes: Vec::new(),
            completed_at: promise.completed_at,
            held: promise.held.clone(),
            out: None,
        }
    }

    /// Adds the names of what is missing.
    pub(super) fn name(&mut self, named: Named) {
        let pairs =
            named.missing.iter().filter(|missing| matches!(missing, Missing::Pair { .. })).count() as u64;
        if self.ok && pairs > 0 {
            self.ok = false;
            self.problems.push(format!("{} of the rows of --images were never in the batch", count(pairs)));
        }
        self.missing_named = named.missing;
        self.notes.extend(named.notes);
    }

    /// How the command ends.
    pub(super) fn exit(&self) -> Exit {
        match (self.running, self.ok) {
            (true, _) => Exit::WorkLeft,
            (false, true) => Exit::Done,
            (false, false) => Exit::Failed,
        }
    }

    /// In words.
    pub(super) fn lines(&self) -> Vec<String> {
        let state = match (self.running, self.ok) {
            (true, _) => "is still running",
            (false, true) => "is closed",
            (false, false) => "does not close",
        };
        let of = self.expected.map(|expected| format!(" of {}", count(expected))).unwrap_or_default();
        let tally = self.counts.named().map(|(word, number)| format!("{} {word}", count(number))).join(", ");
        let mut lines =
            vec![format!("batch {} {state}: {}{of} lines: {tally}", self.batch, count(self.lines))];
        if let Some(Held { hold, by, .. }) = &self.held {
            let word = if *hold == Hold::Paused { "paused" } else { "cancelled" };
            lines.push(format!("it was {word} by {by}"));
        }
        lines.extend(self.problems.iter().cloned());
        lines.extend(self.missing_named.iter().take(SHOWN).map(|missing| match missing {
            Missing::Pair { image, model } => format!("  missing: {image} {model}"),
            Missing::Job { job } => format!("  missing: all of job {job}"),
        }));
        if self.missing_named.len() > SHOWN {
            lines.push(format!("  and {} more; --json lists them", self.missing_named.len() - SHOWN));
        }
        lines.extend(self.notes.iter().cloned());
        lines.extend(self.out.iter().map(|out| format!("lines: {}", out.display())));
        lines
    }
}

fn contradictions(expected: Option<u64>, tally: Option<Tally>, lines: u64, counts: Tally) -> Vec<String> {
    let mut problems = Vec::new();
    match expected {
        Some(expected) if lines < expected => {
            let missing = expected - lines;
            let are = if missing == 1 { "result is" } else { "results are" };
            problems.push(format!("{} {are} missing in the log", count(missing)));
        }
        Some(expected) if lines > expected => problems.push(format!(
            "the log has {} lines more than were promised: was something enqueued under this name elsewhere?",
            count(lines - expected)
        )),
        _ => {}
    }
    let Some(tally) = tally else {
        problems
            .push("the fleet has no counts of it: they were kept for a time, or Redis lost them".to_owned());
        return problems;
    };
    let differ = counts.named().into_iter().zip(tally.named()).filter(|(log, fleet)| log.1 != fleet.1);
    problems.extend(differ.map(|((word, log), (_, fleet))| {
        format!("{word}: {} lines in the log, {} counted by the fleet", count(log), count(fleet))
    }));
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promise(expected: u64, tally: Tally) -> Promise {
        Promise { expected: Some(expected), closed: true, tally: Some(tally), ..Promise::default() }
    }

    fn verdict(promise: &Promise, lines: u64, counts: Tally) -> Verdict {
        Verdict::compare("spring".parse().unwrap(), promise, lines, counts)
    }

    fn ok(ok: u64) -> Tally {
        Tally { ok, ..Tally::default() }
    }

    #[test]
    fn lines_that_agree_with_the_promise_and_the_counts_close_a_batch() {
        let closed = verdict(&promise(10, ok(10)), 10, ok(10));
        assert_eq!((closed.exit(), closed.problems.len()), (Exit::Done, 0));
        assert!(closed.lines()[0].starts_with("batch spring is closed: 10 of 10 lines: 10 ok, 0 cached"));
    }

    #[test]
    fn what_is_missing_while_the_fleet_has_counted_it_is_a_failure_and_what_is_to_come_is_not() {
        let lost = verdict(&promise(10, ok(10)), 9, ok(9));
        assert_eq!((lost.exit(), lost.missing), (Exit::Failed, 1));
        assert!(
            lost.lines().iter().any(|line| line == "1 result is missing in the log"),
            "{:?}",
            lost.lines()
        );
        let running = verdict(&promise(10, ok(9)), 9, ok(9));
        assert_eq!((running.exit(), running.problems.len()), (Exit::WorkLeft, 0));
        let open = Promise { closed: false, ..promise(10, ok(10)) };
        assert_eq!(verdict(&open, 10, ok(10)).exit(), Exit::WorkLeft);
    }

    #[test]
    fn an_outcome_that_the_fleet_counted_otherwise_is_named_with_both_counts() {
        let counts = Tally { ok: 9, dead: 1, ..Tally::default() };
        let said = verdict(&promise(10, ok(10)), 10, counts).lines().join("\n");
        assert!(said.contains("ok: 9 lines in the log, 10 counted by the fleet"), "{said}");
        assert!(said.contains("dead: 1 lines in the log, 0 counted"), "{said}");
        let more = verdict(&promise(10, ok(11)), 11, ok(11));
        assert_eq!(more.exit(), Exit::Failed);
        assert!(more.lines().join("\n").contains("1 lines more than were promised"));
    }

    #[test]
    fn without_a_promise_nothing_can_be_closed() {
        let unknown = Promise { tally: Some(ok(3)), ..Promise::default() };
        let verdict = verdict(&unknown, 3, ok(3));
        assert_eq!(verdict.exit(), Exit::Failed);
        assert!(verdict.lines().join("\n").contains("not known"));
    }
}
