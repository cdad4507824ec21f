//! How many jobs a worker needs in hand: its rate times how long a job keeps it busy. Pure.
//!
//! Too few starve the slots. Too many hide jobs from the rest of the fleet, and come back late when this worker
//! dies. The time that a job waits for its slot is not part of it: it grows with the jobs in hand.

use std::time::Duration;

/// Never fewer than this: a burst has to begin with something.
const FEWEST: usize = 8;
/// Room to grow when other workers leave.
const HEADROOM: f64 = 1.5;
/// A job's way through the broker, the ledger and the limiter.
const CUSHION: Duration = Duration::from_millis(250);

/// What a worker has seen lately.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seen {
    /// Jobs ended per second.
    pub(crate) rate_per_s: f64,
    /// The 95th percentile of preparing and calling, without the wait for a slot.
    pub(crate) busy: Duration,
    /// Whether a limit stands between the worker and the API. Without one, more jobs are more throughput.
    pub(crate) limited: bool,
}

/// The jobs to have in hand, from [`FEWEST`] to `concurrency`; at most twice as many as `now`.
pub(crate) fn wanted(seen: Seen, now: usize, concurrency: usize) -> usize {
    if !seen.limited {
        return concurrency;
    }
    let busy = (seen.busy + CUSHION).as_secs_f64();
    let need = (seen.rate_per_s * HEADROOM * busy).ceil() as usize + FEWEST / 2;
    need.min(now.saturating_mul(2)).clamp(FEWEST.min(concurrency), concurrency)
}

/// The jobs to begin with, under a limit of `rate_per_s` calls a second, or of `in_flight` calls at once, for the whole fleet:
/// as many as it would need alone. What is too much is found out within a second.
pub(crate) fn first(rate_per_s: Option<f64>, in_flight: Option<u32>, concurrency: usize) -> usize {
    let by_rate = rate_per_s.map(|rate| (rate * CUSHION.as_secs_f64() * HEADROOM).ceil() as usize);
    let by_places = in_flight.map(|calls| calls as usize + FEWEST / 2);
    match (by_rate, by_places) {
        (None, None) => concurrency,
        (Some(need), None) | (None, Some(need)) => need.clamp(FEWEST.min(concurrency), concurrency),
        (Some(rate), Some(places)) => rate.min(places).clamp(FEWEST.min(concurrency), concurrency),
    }
}

/// Whether a new prefetch is worth replacing the consumers for.
pub(crate) fn worth_a_change(now: usize, wanted: usize) -> bool {
    wanted.abs_diff(now) * 4 > now
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(rate_per_s: f64, busy_ms: u64) -> Seen {
        Seen { rate_per_s, busy: Duration::from_millis(busy_ms), limited: true }
    }

    #[test]
    fn a_slow_api_at_a_low_rate_needs_few_jobs() {
        assert_eq!(wanted(seen(2.0, 1_160), 8, 64), 9);
    }

    #[test]
    fn the_need_follows_rate_times_latency_up_to_the_concurrency() {
        assert_eq!(wanted(seen(50.0, 50), 64, 64), 27);
        assert_eq!(wanted(seen(50.0, 5_000), 64, 64), 64);
        assert_eq!(wanted(seen(50.0, 5_000), 8, 64), 16, "it grows by doubling");
    }

    #[test]
    fn without_a_limit_the_concurrency_is_used() {
        assert_eq!(wanted(Seen { limited: false, ..seen(0.0, 0) }, 8, 200), 200);
    }

    #[test]
    fn it_begins_with_what_the_limit_lets_one_worker_use() {
        assert_eq!(first(Some(4.0), None, 64), 8);
        assert_eq!(first(Some(100.0), None, 64), 38);
        assert_eq!(first(None, Some(40), 64), 44);
        assert_eq!(first(Some(1_000.0), Some(10), 64), 14);
        assert_eq!(first(None, None, 64), 64);
    }

    #[test]
    fn small_changes_do_not_replace_the_consumers() {
        assert!(!worth_a_change(20, 25));
        assert!(worth_a_change(20, 26));
        assert!(worth_a_change(20, 14));
    }
}
