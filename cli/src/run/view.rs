//! What people see while a run is under way: on a terminal a bar, the rate and the failures; elsewhere a line now and
//! then.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use pixfleet_shared::{
    batch::BatchName,
    embedded::{BatchCounts, FailureCount, Store},
    result::Outcome,
};
use pixfleet_worker::Board;
use tokio_util::sync::CancellationToken;

use super::meter::Meter;
use crate::enqueue::view::say;

/// How a run is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    None,
    /// One line each ten seconds.
    Lines,
    /// Drawn anew five times a second.
    Live,
}

/// The rate shown is that of this much time.
const WINDOW: Duration = Duration::from_secs(5);
/// Reasons for failures that are shown; the summary has all.
const REASONS: usize = 3;

/// What is shown.
pub(super) struct View {
    pub(super) style: Style,
    pub(super) store: Arc<Store>,
    pub(super) batch: BatchName,
    pub(super) board: Arc<Board>,
    pub(super) meter: Meter,
}

impl View {
    /// Shows the run until `end`, and says once that it was told to `stop`.
    pub(super) async fn show(self, stop: CancellationToken, end: CancellationToken) {
        let (every, screen) = match self.style {
            Style::None => return,
            Style::Lines => (Duration::from_secs(10), None),
            Style::Live => (Duration::from_millis(200), Some(Screen::new())),
        };
        let mut pace = Pace::default();
        let mut told = false;
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = end.cancelled() => break,
                () = stop.cancelled(), if !told => {
                    told = true;
                    let text = "stopping: calls in flight are finished; once more stops at once";
                    match &screen {
                        Some(screen) => screen.say(text),
                        None => say(text),
                    }
                }
            }
            let Ok(Some(counts)) = self.store.batch(&self.batch).await else { continue };
            let now = self.meter.read(&self.board);
            let rate = pace.per_s(now.calls, Instant::now());
            let left = counts.jobs.saturating_sub(counts.ended + counts.dead_letters);
            match &screen {
                Some(screen) => screen.draw(&counts, &self.rate_line(&now, rate), left, rate),
                None => say(&format!("run: {}", line(&counts, &self.rate_line(&now, rate)))),
            }
        }
        if let Some(screen) = screen {
            screen.end();
        }
    }

    fn rate_line(&self, now: &super::meter::Reading, rate: f64) -> String {
        let of = self.meter.limit_per_s().map_or(String::new(), |limit| format!(" of {}", short(limit)));
        let cost = if self.meter.has_a_price() {
            format!(", {:.2} {}", now.cost, self.meter.currency())
        } else {
            String::new()
        };
        format!("{rate:.1}{of} calls/s, {} in flight, {} 429s{cost}", now.in_flight, now.throttled)
    }
}

fn line(counts: &BatchCounts, rate: &str) -> String {
    let done = counts.ended + counts.dead_letters;
    let mut line = format!("{done}/{} jobs, {rate}", counts.jobs);
    if let Some(failures) = failures(counts) {
        line += &format!(", {failures}");
    }
    line
}

/// `12 rejected (422), 3 dead: transient (500)`
fn failures(counts: &BatchCounts) -> Option<String> {
    let mut shown: Vec<String> = counts.failures.iter().take(REASONS).map(FailureCount::in_words).collect();
    if counts.failures.len() > REASONS {
        shown.push("…".to_owned());
    }
    (!shown.is_empty()).then(|| shown.join(", "))
}

/// The terminal's lines.
struct Screen {
    all: MultiProgress,
    bar: ProgressBar,
    rate: ProgressBar,
    failures: ProgressBar,
}

impl Screen {
    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let add = |template: &str| {
            let bar = all.add(ProgressBar::new(0));
            match ProgressStyle::with_template(template) {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        };
        Self {
            bar: add("{elapsed:>4} {wide_bar} {percent:>3}%  {pos}/{len} jobs  {msg}"),
            rate: add("     {wide_msg}"),
            failures: add("     {wide_msg}"),
            all,
        }
    }

    fn draw(&self, counts: &BatchCounts, rate: &str, left: u64, per_s: f64) {
        self.bar.set_length(counts.jobs);
        self.bar.set_position(counts.ended + counts.dead_letters);
        self.bar.set_message(eta(left, per_s));
        let answered = counts.of(Outcome::Ok);
        self.rate.set_message(format!("{rate}, {answered} answers"));
        self.failures.set_message(failures(counts).unwrap_or_default());
    }

    /// One line above the others. An error here is a terminal that is gone.
    fn say(&self, text: &str) {
        let _ = self.all.println(text);
    }

    fn end(self) {
        for bar in [self.bar, self.rate, self.failures] {
            bar.finish_and_clear();
        }
        // An error here is a terminal that is gone.
        let _ = self.all.clear();
    }
}

fn eta(left: u64, per_s: f64) -> String {
    if left == 0 || per_s <= 0.0 {
        return String::new();
    }
    let seconds = Duration::from_secs_f64((left as f64 / per_s).min(1e9).ceil());
    format!("eta {}", indicatif::HumanDuration(seconds))
}

/// A rate with at most one decimal, and none that says nothing.
fn short(rate: f64) -> String {
    format!("{rate:.1}").trim_end_matches(".0").to_owned()
}

/// Calls a second lately.
#[derive(Default)]
struct Pace {
    seen: VecDeque<(Instant, u64)>,
}

impl Pace {
    fn per_s(&mut self, calls: u64, now: Instant) -> f64 {
        self.seen.push_back((now, calls));
        while self.seen.len() > 2 && self.seen.front().is_some_and(|(at, _)| now - *at > WINDOW) {
            self.seen.pop_front();
        }
        let (since, before) = self.seen.front().copied().unwrap_or((now, calls));
        let seconds = (now - since).as_secs_f64();
        if seconds > 0.0 { (calls - before) as f64 / seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(outcome: &'static str, reason: &str, results: u64) -> FailureCount {
        FailureCount { outcome, reason: reason.to_owned(), results, example: String::new() }
    }

    #[test]
    fn a_line_says_how_far_it_is_and_why_some_failed() {
        let mut counts = BatchCounts { jobs: 100, ended: 40, dead_letters: 3, ..BatchCounts::default() };
        assert_eq!(line(&counts, "4.0 of 4 calls/s"), "43/100 jobs, 4.0 of 4 calls/s");
        counts.failures =
            vec![failure("rejected", "rejected (422)", 12), failure("dead", "transient (500)", 3)];
        assert!(line(&counts, "x").ends_with("x, 12 rejected (422), 3 dead: transient (500)"));
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        assert_eq!(pace.per_s(0, start), 0.0);
        assert_eq!(pace.per_s(20, start + Duration::from_secs(5)), 4.0);
        assert_eq!(pace.per_s(20, start + Duration::from_secs(15)), 0.0);
        assert_eq!((short(4.0), short(0.25)), ("4".to_owned(), "0.2".to_owned()));
    }
}
