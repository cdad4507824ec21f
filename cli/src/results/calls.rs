//! The statistics line: what the calls behind the results say of time, rate and limit. Pure.

use std::fmt;

use jiff::Timestamp;
use pixfleet_shared::result::Call;

/// The calls of one provider. Sums are integers, so that their order does not show.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Calls {
    count: u64,
    departures: Option<(Timestamp, Timestamp)>,
    duration_us: u128,
    cost_nano: i128,
    limit_per_s: Option<f64>,
    /// "Over the limit" answers that the jobs met before their last call.
    pub throttled: u64,
}

/// Time, rate and limit of one provider's calls.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct CallStatistics {
    /// The provider.
    pub provider: String,
    /// Distinct calls that settled results.
    pub requests: u64,
    /// From the first departure to the last.
    pub seconds: f64,
    /// Mean time from a departure to the answer's last byte, in milliseconds.
    pub average_ms: f64,
    /// Departures per second: `(requests - 1) / seconds`; null for fewer than two.
    pub throughput_per_s: Option<f64>,
    /// The binding limit, calls per second; where it changed in between, the highest. Null without a limit.
    pub limit_per_s: Option<f64>,
    /// `throughput_per_s / limit_per_s`, 0 to 1.
    pub utilisation: Option<f64>,
    /// "Over the limit" answers (429s) that the jobs met.
    pub throttled: u64,
    /// What the calls cost, in the provider's units.
    pub cost: f64,
}

impl Calls {
    /// Adds a call that was not counted before.
    pub(crate) fn add(&mut self, call: &Call) {
        self.count += 1;
        self.departures = Some(match self.departures {
            None => (call.sent_at, call.sent_at),
            Some((first, last)) => (first.min(call.sent_at), last.max(call.sent_at)),
        });
        self.duration_us += (call.duration_ms * 1e3).round().max(0.0) as u128;
        self.cost_nano += (call.cost * 1e9).round() as i128;
        self.limit_per_s = match (self.limit_per_s, call.limit_per_s) {
            (Some(one), Some(other)) => Some(one.max(other)),
            (one, other) => one.or(other),
        };
    }

    /// The figures, under the provider's name.
    pub(crate) fn statistics(&self, provider: &str) -> CallStatistics {
        let seconds = self.departures.map_or(0.0, |(first, last)| last.duration_since(first).as_secs_f64());
        let statistics = CallStatistics {
            provider: provider.to_owned(),
            requests: self.count,
            seconds,
            average_ms: self.duration_us as f64 / 1e3 / self.count.max(1) as f64,
            throughput_per_s: None,
            limit_per_s: self.limit_per_s,
            utilisation: None,
            throttled: self.throttled,
            cost: self.cost_nano as f64 / 1e9,
        };
        statistics.with_rates()
    }
}

impl CallStatistics {
    /// With the rate that requests and seconds make, and its share of the limit.
    pub(crate) fn with_rates(mut self) -> Self {
        self.throughput_per_s = (self.seconds > 0.0).then(|| (self.requests - 1) as f64 / self.seconds);
        self.utilisation = self.throughput_per_s.zip(self.limit_per_s).map(|(rate, limit)| rate / limit);
        self
    }
}

/// `36 requests in 8.8 s, average 1163 ms, 3.97 requests/s, 99.2 % of the limit (4/s), 0 429s`
impl fmt::Display for CallStatistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.requests == 1 { "" } else { "s" };
        write!(
            f,
            "{} request{plural} in {:.1} s, average {:.0} ms",
            self.requests, self.seconds, self.average_ms
        )?;
        if let Some(rate) = self.throughput_per_s {
            write!(f, ", {rate:.2} requests/s")?;
        }
        if let (Some(share), Some(limit)) = (self.utilisation, self.limit_per_s) {
            write!(f, ", {:.1} % of the limit ({}/s)", share * 100.0, short(limit))?;
        }
        write!(f, ", {} 429s", self.throttled)
    }
}

/// A rate with at most three decimals, and none that say nothing.
fn short(rate: f64) -> String {
    format!("{rate:.3}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::sample;
    use pixfleet_shared::result::Outcome;

    #[test]
    fn one_call_has_no_rate_and_a_slow_limit_keeps_its_decimals() {
        let mut calls = Calls::default();
        calls.add(&sample("1", "m", Outcome::Ok, 1).call.unwrap());
        assert_eq!(calls.statistics("p").to_string(), "1 request in 0.0 s, average 100 ms, 0 429s");
        assert_eq!((short(200.0), short(0.25)), ("200".to_owned(), "0.25".to_owned()));
    }
}
