//! Progress on stderr: a bar on a terminal, a plain line now and then elsewhere.

use std::{
    io::{self, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use pixfleet_producer::{Tally, manifest::Extent};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    None,
    /// One line each ten seconds.
    Lines,
    Bar,
}

pub(super) fn style(quiet: bool, terminal: bool) -> Style {
    match (quiet, terminal) {
        (true, _) => Style::None,
        (false, true) => Style::Bar,
        (false, false) => Style::Lines,
    }
}

/// Shows `progress` until nobody tells it any more.
pub(super) fn show(
    style: Style,
    extent: Extent,
    progress: watch::Receiver<Tally>,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let every = if style == Style::Bar { Duration::from_millis(200) } else { Duration::from_secs(10) };
    let bar = match (style, extent.total()) {
        (Style::Bar, Some(total)) => bar(ProgressBar::new(total), "{bar:30} {percent:>3}%  {msg}  eta {eta}"),
        (Style::Bar, None) => bar(ProgressBar::new_spinner(), "{spinner} {elapsed}  {msg}"),
        _ => ProgressBar::hidden(),
    };
    tokio::spawn(follow(style, every, bar, extent, progress, stop))
}

async fn follow(
    style: Style,
    every: Duration,
    bar: ProgressBar,
    extent: Extent,
    mut progress: watch::Receiver<Tally>,
    stop: CancellationToken,
) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await; // the first is at once
    let mut pace = Pace::new(Instant::now());
    let mut told_to_stop = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let tally = *progress.borrow_and_update();
                let line = line(&tally, pace.jobs_per_s(&tally, Instant::now()));
                if style == Style::Lines {
                    say(&format!("enqueue: {line}"));
                }
                bar.set_message(line);
                bar.set_position(extent.read());
            }
            () = stop.cancelled(), if !told_to_stop => {
                told_to_stop = true;
                bar.suspend(|| say("stopping: waiting for the confirms of what is on its way; once more ends at once"));
            }
            () = closed(&mut progress) => break,
        }
    }
    bar.finish_and_clear();
}

async fn closed(progress: &mut watch::Receiver<Tally>) {
    while progress.changed().await.is_ok() {}
}

fn bar(bar: ProgressBar, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn line(tally: &Tally, jobs_per_s: f64) -> String {
    let mut line = format!("{} rows, {} jobs confirmed, {jobs_per_s:.0}/s", tally.rows, tally.enqueued);
    for (count, what) in
        [(tally.already, "already there"), (tally.duplicates, "duplicates"), (tally.bad_rows, "bad rows")]
    {
        if count > 0 {
            line += &format!(", {count} {what}");
        }
    }
    line
}

/// The rate since the last look.
struct Pace {
    at: Instant,
    jobs: u64,
    jobs_per_s: f64,
}

impl Pace {
    fn new(at: Instant) -> Self {
        Self { at, jobs: 0, jobs_per_s: 0.0 }
    }

    /// Smoothed over about two seconds, so that it can be read.
    fn jobs_per_s(&mut self, tally: &Tally, now: Instant) -> f64 {
        let seconds = (now - self.at).as_secs_f64();
        if seconds > 0.0 {
            let latest = (tally.enqueued - self.jobs) as f64 / seconds;
            let share = if self.jobs == 0 { 1.0 } else { (seconds / 2.0).min(1.0) };
            self.jobs_per_s += (latest - self.jobs_per_s) * share;
        }
        (self.at, self.jobs) = (now, tally.enqueued);
        self.jobs_per_s
    }
}

/// One line on stderr; a closed one is no reason to stop.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_happened_and_nothing_that_did_not() {
        let mut tally = Tally { rows: 10, enqueued: 8, ..Tally::default() };
        assert_eq!(line(&tally, 3.6), "10 rows, 8 jobs confirmed, 4/s");
        tally.bad_rows = 2;
        assert!(line(&tally, 0.0).ends_with(", 2 bad rows"));
    }

    #[test]
    fn the_rate_follows_what_was_confirmed_since_the_last_look() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let tally = |enqueued| Tally { enqueued, ..Tally::default() };
        assert_eq!(pace.jobs_per_s(&tally(100), start + Duration::from_secs(2)), 50.0);
        assert_eq!(pace.jobs_per_s(&tally(100), start + Duration::from_secs(4)), 0.0);
    }
}
