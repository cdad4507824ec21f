//! The live view: results, rate against the limit, calls in flight, 429s. Only on a terminal.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use pixfleet_sandbox::Bill;

use super::stage;

/// How often it is drawn anew.
pub(super) const EVERY: Duration = Duration::from_millis(200);
/// The rate shown is that of this much time.
const WINDOW: Duration = Duration::from_secs(5);

/// The live view.
pub(super) struct View {
    bar: ProgressBar,
    seen: VecDeque<(Instant, u64)>,
}

impl View {
    /// Begins to show a job of `results` results, on stderr. indicatif shows nothing where that is no terminal.
    pub(super) fn start(results: u64) -> Self {
        let bar = ProgressBar::new(results);
        let style = ProgressStyle::with_template("{elapsed:>4} {wide_bar} {pos:>2}/{len} results  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, seen: VecDeque::new() }
    }

    /// Shows where the job stands.
    pub(super) fn show(&mut self, results: u64, bill: &Bill) {
        let now = Instant::now();
        let calls = bill.total.calls + bill.in_flight;
        self.seen.push_back((now, calls));
        while self.seen.front().is_some_and(|(at, _)| now - *at > WINDOW) {
            self.seen.pop_front();
        }
        let (since, before) = self.seen.front().copied().unwrap_or((now, calls));
        let seconds = (now - since).as_secs_f64();
        let rate = if seconds > 0.0 { (calls - before) as f64 / seconds } else { 0.0 };
        self.bar.set_position(results);
        self.bar.set_message(format!(
            "{rate:.1} of {} calls/s, {} in flight, {} 429s",
            stage::LIMIT_PER_S,
            bill.in_flight,
            bill.total.throttled
        ));
    }

    /// Takes the view away: the table comes in its place.
    pub(super) fn end(self) {
        self.bar.finish_and_clear();
    }
}
