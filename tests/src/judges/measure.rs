//! What a judge's log says of a fleet. Pure.

use super::{Call, Setting};
use crate::fleet::busiest;

/// The figures of one log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Measured {
    /// Calls that arrived.
    pub(crate) calls: usize,
    /// Calls that were refused.
    pub(crate) throttled: usize,
    /// Calls that passed in the fullest window of the limit, or that were in flight at once.
    pub(crate) busiest: usize,
    /// From the first to the last call that passed.
    pub(crate) seconds: f64,
    /// The share of the quota that was used in that time.
    pub(crate) utilisation: f64,
}

/// Reads a log against the limit that its judge keeps.
///
/// # Panics
/// When fewer than two calls passed: there is nothing to measure.
pub(crate) fn measure(log: &[Call], setting: &Setting) -> Measured {
    let mut passed: Vec<Call> = log.iter().copied().filter(|call| call.passed).collect();
    passed.sort_unstable_by_key(|call| call.at_us);
    assert!(passed.len() > 1, "{} calls passed", passed.len());
    let (first, last) = (passed[0].at_us, passed[passed.len() - 1].at_us);
    let seconds = (last - first) as f64 / 1e6;
    let (busiest, used) = if setting.is_in_flight() {
        let until_last = passed.iter().map(|call| call.until_us.min(last) - call.at_us);
        (most_in_flight(&passed), until_last.sum::<u64>() as f64 / 1e6)
    } else {
        let arrivals: Vec<u64> = passed.iter().map(|call| call.at_us).collect();
        // The first call opens the time that is measured; each one after it used up a share of it.
        let used = (passed.len() - 1) as f64 * f64::from(setting.calls) / setting.rate_per_s();
        (busiest(&arrivals, setting.window_us()), used)
    };
    Measured {
        calls: log.len(),
        throttled: log.len() - passed.len(),
        busiest,
        seconds,
        utilisation: used / seconds / f64::from(setting.calls),
    }
}

/// The most calls at once; one that ends in the moment in which another arrives makes room for it.
fn most_in_flight(calls: &[Call]) -> usize {
    let mut steps: Vec<(u64, i64)> =
        calls.iter().flat_map(|call| [(call.at_us, 1), (call.until_us, -1)]).collect();
    steps.sort_unstable();
    let in_flight = steps.iter().scan(0, |level, (_, step)| {
        *level += step;
        Some(*level)
    });
    usize::try_from(in_flight.max().unwrap_or(0)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(at_ms: u64, took_ms: u64, passed: bool) -> Call {
        Call { at_us: at_ms * 1_000, until_us: (at_ms + took_ms) * 1_000, passed }
    }

    #[test]
    fn calls_as_far_apart_as_the_rate_says_use_all_of_it_and_a_refused_one_none() {
        let mut log: Vec<Call> = (0..21).map(|n| call(n * 100, 5, true)).collect();
        log.push(call(150, 0, false));
        let measured = measure(&log, &Setting::rate(10, 1_000, "sliding", None));
        assert!((measured.utilisation - 1.0).abs() < 1e-9, "{measured:?}");
        assert_eq!((measured.calls, measured.throttled, measured.busiest), (22, 1, 10));
        let measured = measure(&log, &Setting::rate(40, 2_000, "sliding", None));
        assert!((measured.utilisation - 0.5).abs() < 1e-9, "{measured:?}");
        assert_eq!(measured.busiest, 20);
    }

    #[test]
    fn a_limit_of_calls_in_flight_is_used_by_the_time_that_they_take() {
        // One place of two is always taken, the other half of the time; the last call counts to its arrival only.
        let log: Vec<Call> =
            (0..10).map(|n| call(n * 10, 10, true)).chain((0..10).map(|n| call(n * 10, 5, true))).collect();
        let measured = measure(&log, &Setting::in_flight(2));
        assert_eq!(measured.busiest, 2);
        assert!((measured.utilisation - 0.75).abs() < 1e-9, "{measured:?}");
    }
}
