//! A batch as `batch list`, `batch show` and `status` show it. Pure, but for the queue's word on what is set aside.

use jiff::Timestamp;
use pixfleet_shared::{
    batch::{BatchName, Tally},
    batches::{Held, Hold, Progress},
};
use serde::Serialize;

use crate::{
    results::grid::Grid,
    words::{at, count, entry, moment},
};

/// A batch, as far as it is known.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Shown {
    pub(super) batch: BatchName,
    /// In one word: `complete`, `cancelled`, `paused`, `running`, or `open` while more may be put in.
    pub(super) state: &'static str,
    opened_at: Timestamp,
    /// Its jobs so far; null where nobody has said.
    jobs: Option<u64>,
    /// Results to expect; null where nobody has said.
    expected: Option<u64>,
    /// Whether its enqueue put in all that it had.
    closed: bool,
    /// Results that are there.
    results: u64,
    /// The share of them, 0 to 1.
    done: Option<f64>,
    tally: Tally,
    /// Results that were promised and are not there.
    missing: Option<u64>,
    /// Who keeps it, how and since when.
    held: Option<Held>,
    pub(super) complete: bool,
}

/// A batch, with what the queue says of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ShownAlone {
    #[serde(flatten)]
    pub(super) shown: Shown,
    /// Jobs that are set aside until it is resumed; null while the queue is away.
    pub(super) set_aside: Option<u64>,
    /// Why that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) queue_away: Option<String>,
}

impl Shown {
    /// What is shown of a batch.
    pub(crate) fn of(progress: Progress) -> Self {
        let complete = progress.is_complete();
        let Progress { batch, jobs, expected, closed, tally, held, opened_at } = progress;
        // Of a batch that has results, an expectation of nothing is none: its enqueue could not tell.
        let told = closed || expected > 0;
        let known = told.then_some(expected);
        let results = tally.total();
        Self {
            state: match (complete, held.as_ref().map(|held| held.hold), closed) {
                (true, ..) => "complete",
                (_, Some(Hold::Cancelled), _) => "cancelled",
                (_, Some(Hold::Paused), _) => "paused",
                (.., true) => "running",
                (.., false) => "open",
            },
            batch,
            opened_at,
            jobs: told.then_some(jobs),
            expected: known,
            closed,
            results,
            done: known.map(|expected| share(results, expected)),
            missing: known.map(|expected| expected.saturating_sub(results)),
            tally,
            held,
            complete,
        }
    }

    fn percent(&self) -> Option<String> {
        // Rounded down: 100 % is all of it.
        self.done.map(|done| format!("{:.1} %", (done * 1000.0).floor() / 10.0))
    }
}

fn share(results: u64, expected: u64) -> f64 {
    if expected == 0 { 1.0 } else { (results as f64 / expected as f64).min(1.0) }
}

/// The table of `batch list`.
pub(crate) fn table(batches: &[Shown]) -> Grid {
    let counts = Tally::default().named().map(|(word, _)| word);
    let header = ["batch", "opened", "jobs", "expected", "done"]
        .into_iter()
        .chain(counts)
        .chain(["held by", "complete"]);
    let mut grid = Grid::under(header.map(str::to_owned).collect());
    let unknown = || "?".to_owned();
    for shown in batches {
        let mut row = vec![
            shown.batch.to_string(),
            moment(shown.opened_at),
            shown.jobs.map_or_else(unknown, count),
            shown.expected.map_or_else(unknown, count),
            shown.percent().unwrap_or_else(unknown),
        ];
        row.extend(shown.tally.named().map(|(_, number)| count(number)));
        row.push(shown.held.as_ref().map(by).unwrap_or_default());
        row.push(if shown.complete { "yes" } else { "no" }.to_owned());
        grid.rows.push(row);
    }
    grid
}

fn by(held: &Held) -> String {
    match held.hold {
        Hold::Paused => format!("paused by {}", held.by),
        Hold::Cancelled => format!("cancelled by {}", held.by),
    }
}

/// One line, for `status`.
pub(crate) fn line(shown: &Shown) -> String {
    let of = shown.expected.map(|expected| format!(" of {}", count(expected))).unwrap_or_default();
    let held = shown.held.as_ref().map(|held| format!(", {}", by(held))).unwrap_or_default();
    format!(
        "batch {} ({}{held}): {}{of} results: {}",
        shown.batch,
        shown.state,
        count(shown.results),
        tally(&shown.tally)
    )
}

fn tally(tally: &Tally) -> String {
    tally.named().map(|(word, number)| format!("{} {word}", count(number))).join(", ")
}

impl ShownAlone {
    /// In words.
    pub(super) fn lines(&self, now: Timestamp, terminal: Option<u16>) -> Vec<String> {
        let shown = &self.shown;
        let title = format!("batch {}, opened {}: {}", shown.batch, at(shown.opened_at, now), shown.state);
        let mut lines = vec![entry("", &title, terminal)];
        let mut say =
            |label: &str, text: String| lines.push(entry(&format!("  {label:<10}"), &text, terminal));
        say("jobs", jobs(shown));
        say("results", results(shown));
        if let Some(missing) = shown.missing.filter(|missing| *missing > 0) {
            say(
                "to come",
                if missing == 1 { "1 result".to_owned() } else { format!("{} results", count(missing)) },
            );
        }
        match (self.set_aside, &self.queue_away) {
            (Some(0), _) | (None, None) => {}
            (Some(jobs), _) => say("set aside", set_aside(jobs, shown)),
            (None, Some(why)) => say("set aside", format!("not known: {why}")),
        }
        if let Some(held) = &shown.held {
            let word = if held.hold == Hold::Paused { "PAUSED" } else { "CANCELLED" };
            say(word, format!("by {}, {}", held.by, at(held.at, now)));
        }
        lines
    }
}

fn jobs(shown: &Shown) -> String {
    match (shown.jobs, shown.closed) {
        (Some(jobs), true) => format!("{}; its enqueue has ended", count(jobs)),
        (Some(jobs), false) => format!("{} so far; its enqueue has not ended", count(jobs)),
        (None, _) => {
            "not known: its enqueue is in its first run, or could not say; the same enqueue again says it"
                .to_owned()
        }
    }
}

fn results(shown: &Shown) -> String {
    let tally = tally(&shown.tally);
    match (shown.expected, shown.percent()) {
        (Some(expected), Some(percent)) => {
            format!("{} of {} ({percent}): {tally}", count(shown.results), count(expected))
        }
        _ => format!("{}, and it is not known how many to expect: {tally}", count(shown.results)),
    }
}

fn set_aside(jobs: u64, shown: &Shown) -> String {
    let noun = if jobs == 1 { "job" } else { "jobs" };
    let jobs = format!("{} {noun}", count(jobs));
    match shown.held.as_ref().map(|held| held.hold) {
        Some(Hold::Paused) => format!("{jobs}, until `pixfleet batch resume {}`", shown.batch),
        // A command that was broken off, or a worker that heard of the resumption late.
        Some(Hold::Cancelled) => {
            format!("{jobs}: `pixfleet batch cancel {}` again settles them", shown.batch)
        }
        None => format!(
            "{jobs}, though it is not paused: `pixfleet batch resume {}` again puts them back",
            shown.batch
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> Progress {
        Progress {
            batch: "spring".parse().unwrap(),
            jobs: 500,
            expected: 1_000,
            closed: true,
            tally: Tally { ok: 990, rejected: 9, ..Tally::default() },
            held: None,
            opened_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn said(progress: Progress, set_aside: Option<u64>) -> String {
        let alone = ShownAlone { shown: Shown::of(progress), set_aside, queue_away: None };
        alone.lines(Timestamp::UNIX_EPOCH, None).join("\n")
    }

    fn held(hold: Hold) -> Option<Held> {
        Some(Held { hold, by: "ann".into(), at: Timestamp::UNIX_EPOCH })
    }

    #[test]
    fn a_batch_that_lacks_one_result_is_not_at_a_hundred_percent() {
        let shown = Shown::of(progress());
        assert_eq!(
            (shown.state, shown.missing, shown.percent().as_deref()),
            ("running", Some(1), Some("99.9 %"))
        );
        let text = said(progress(), Some(0));
        assert!(text.contains("999 of 1,000 (99.9 %): 990 ok, 0 cached, 9 rejected"), "{text}");
        assert!(text.contains("to come   1 result") && !text.contains("set aside"), "{text}");
    }

    #[test]
    fn what_was_never_told_is_not_known_and_not_zero() {
        let untold = Progress { jobs: 0, expected: 0, closed: false, ..progress() };
        let shown = Shown::of(untold.clone());
        assert_eq!((shown.jobs, shown.expected, shown.done), (None, None, None));
        assert!(said(untold, None).contains("not known how many to expect"));
        let row = &table(&[shown]).rows[0];
        assert_eq!(row[2..5], ["?", "?", "?"]);
    }

    #[test]
    fn what_is_set_aside_says_what_to_do_about_it() {
        let paused = said(Progress { held: held(Hold::Paused), ..progress() }, Some(3));
        assert!(paused.contains("3 jobs, until `pixfleet batch resume spring`"), "{paused}");
        assert!(paused.contains("PAUSED    by ann"), "{paused}");
        let cancelled = said(Progress { held: held(Hold::Cancelled), ..progress() }, Some(3));
        assert!(cancelled.contains("`pixfleet batch cancel spring` again"), "{cancelled}");
        assert!(said(progress(), Some(1)).contains("1 job, though it is not paused"));
    }
}
