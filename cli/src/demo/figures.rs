//! The demo's figures, by the one that judges: calls, times and 429s are the sandbox's, not ours. Pure.

use pixfleet_sandbox::{Bill, Line, Outcome};
use pixfleet_worker::Report;
use serde::Serialize;

use super::stage;
use crate::results::Tally;

/// What came of the job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figures {
    /// Calls that the sandbox let in.
    pub calls: u64,
    /// From the first of them to the last, by their arrival in the sandbox's access log.
    pub seconds: f64,
    /// The limit.
    pub limit_per_s: f64,
    /// `(calls - 1) / seconds`.
    pub throughput_per_s: f64,
    /// `throughput_per_s / limit_per_s`.
    pub utilisation: f64,
    /// Calls that the sandbox refused because they were over the limit.
    pub throttled_429: u64,
    /// Results that were promised and did not come.
    pub lost: u64,
    /// Results that came again; the subscriber dropped them.
    pub duplicates: u64,
}

impl Figures {
    /// The figures of `access`, with what the subscriber counted.
    pub(super) fn of(access: &[Line], tally: &Tally, duplicates: u64, expected: u64) -> Self {
        let of = |outcome: Outcome| access.iter().filter(move |line| line.outcome == outcome);
        let arrivals = || of(Outcome::Accepted).map(|line| line.at_us);
        let calls = arrivals().count() as u64;
        let span_us = arrivals().max().unwrap_or(0) - arrivals().min().unwrap_or(0);
        let seconds = span_us as f64 / 1e6;
        let throughput_per_s = if span_us > 0 { (calls - 1) as f64 / seconds } else { 0.0 };
        let limit_per_s = f64::from(stage::LIMIT_PER_S);
        Self {
            calls,
            seconds: rounded(seconds),
            limit_per_s,
            throughput_per_s: rounded(throughput_per_s),
            utilisation: rounded(throughput_per_s / limit_per_s),
            throttled_429: of(Outcome::Throttled).count() as u64,
            lost: expected.saturating_sub(tally.counts().results),
            duplicates,
        }
    }

    /// The same for people.
    pub(super) fn lines(&self, tally: &Tally, bill: &Bill, workers: &[Report]) -> Vec<String> {
        let mut lines: Vec<String> = tally
            .statistics()
            .into_iter()
            .map(|mut line| {
                line.requests = self.calls;
                line.seconds = self.seconds;
                line.throughput_per_s = Some(self.throughput_per_s);
                line.utilisation = Some(self.utilisation);
                line.throttled = self.throttled_429;
                line.to_string()
            })
            .collect();
        let counts = tally.counts();
        let shares: Vec<String> = workers.iter().map(|report| report.completed.to_string()).collect();
        lines.push(format!(
            "{} done, {} failed, {} dead; {} lost, {} duplicates; {} calls charged, {} jobs by {} workers",
            counts.done,
            counts.failed,
            counts.dead,
            self.lost,
            self.duplicates,
            bill.total.charged,
            shares.join(" + "),
            workers.len(),
        ));
        lines
    }
}

/// To the microsecond, which is what the access log knows.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at_us: u64, outcome: Outcome) -> Line {
        Line {
            at_us,
            duration_us: 1,
            connection: 1,
            key: "k".into(),
            method: "GET".into(),
            path: "/vision/v2/predict".into(),
            models: vec!["m".into()],
            image: None,
            status: Some(200),
            outcome,
        }
    }

    #[test]
    fn utilisation_is_between_the_first_and_the_last_arrival_and_a_refusal_is_no_call() {
        let mut access: Vec<Line> =
            (0..36).map(|n| line(5_000_000 + n * 252_000, Outcome::Accepted)).collect();
        access.push(line(1, Outcome::Throttled));
        let figures = Figures::of(&access, &Tally::bounded(10), 2, 36);
        assert_eq!((figures.calls, figures.throttled_429, figures.lost, figures.duplicates), (36, 1, 36, 2));
        assert_eq!((figures.seconds, figures.utilisation), (8.82, 0.992063));
    }

    #[test]
    fn the_json_has_exactly_the_documented_fields() {
        let json = serde_json::to_value(Figures::of(&[], &Tally::bounded(10), 0, 0)).unwrap();
        let names: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = [
            "calls",
            "seconds",
            "limit_per_s",
            "throughput_per_s",
            "utilisation",
            "throttled_429",
            "lost",
            "duplicates",
        ];
        let mut names = names;
        names.sort_unstable();
        expected.sort_unstable();
        assert_eq!(names, expected);
    }
}
