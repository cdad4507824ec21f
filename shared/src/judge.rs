//! What each judge demands of a caller, and the best that it allows. Pure.
//!
//! W is the window, n its calls, J the arrival jitter, B the burst. A GCRA of interval T and tolerance tau lets
//! at most `floor((W + tau) / T) + 1` units go in any window W, however they are spread over calls.

use std::collections::HashSet;

use crate::{
    gcra::{HORIZON_US, cost},
    limiter::{Judge, Limit, LimiterError, Stack, Unit},
};

/// The most limits that one stack may have.
pub const MAX_LIMITS: usize = 16;

/// The spacing that keeps one judge content, in whole microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spacing<'a> {
    /// The limit's name: what is known of it is kept under this name.
    pub name: &'a str,
    /// Interval between units in the long run: T.
    pub interval_us: u64,
    /// How far ahead of that pace a burst may run: tau.
    pub tolerance_us: u64,
    /// What a call takes.
    pub unit: Unit,
    /// The most units that one call may take: more than this, the judge refuses however long one waits.
    pub heaviest: u32,
}

/// The spacing that `limit`'s judge answers without a 429, given its jitter.
///
/// * `sliding`, `fixed`: T = (W + J) / (n - B + 1), tau = (B - 1) T: at most n in any window, even when one call
///   arrives J late and another on time.
/// * `bucket`: T = W / n; the bucket forgives a jitter of (B - 1) T. Half of that is spent on catching up after
///   an idle moment (tau), half is left for the jitter.
/// * `leaky` (nginx): T = W / n with the same halves when the burst is at least 1; without burst a late call
///   can't be made up for, and nginx counts in whole milliseconds: T = W / n + max(J, 1 ms).
pub fn spacing(limit: &Limit) -> Spacing<'_> {
    let window = limit.per_ms as f64 * 1000.0;
    let jitter = limit.jitter_ms * 1000.0;
    let calls = f64::from(limit.calls);
    let burst = f64::from(limit.burst);
    let (interval, tolerance) = match limit.judge {
        Judge::Sliding | Judge::Fixed => {
            let interval = (window + jitter) / (calls - burst.max(1.0) + 1.0);
            (interval, (burst - 1.0).max(0.0) * interval)
        }
        Judge::Bucket => (window / calls, (burst - 1.0).max(0.0) * window / calls / 2.0),
        Judge::Leaky if limit.burst == 0 => (window / calls + jitter.max(1000.0), 0.0),
        Judge::Leaky => (window / calls, burst * window / calls / 2.0),
    };
    // Rounded so that the sum of rounding errors never adds a call: T up, tau down.
    Spacing {
        name: &limit.name,
        interval_us: interval.ceil() as u64,
        tolerance_us: tolerance.floor() as u64,
        unit: limit.unit,
        heaviest: heaviest(limit),
    }
}

/// How late after its slot a call may still leave without upsetting any judge of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lateness {
    /// So late it may just leave, in microseconds.
    pub free_us: u64,
    /// So late it may leave once every later slot is moved back by the excess
    /// ([`RateLimiter::late`](crate::limiter::RateLimiter::late)), in microseconds. Later, its slot is forfeited.
    pub mended_us: u64,
    /// What a forfeited slot costs, in microseconds: mending that moves the others further is not worth it.
    pub forfeit_us: u64,
}

/// The longest lateness that is mended: one answer of the limiter has to come within it.
const MOST_MENDED_US: u64 = 80_000;

/// How late a call of this stack may leave.
///
/// Free is half of what the judges forgive, the other half is for the way to the API: `sliding`, `fixed` and a
/// `leaky` without burst forgive J; a bucket forgives what [`spacing`] did not spend on catching up.
///
/// Mended is what `sliding` and `fixed` allow beyond that: the n-th call after a late one is `W + J` away, and as
/// slots are booked only [`HORIZON_US`] ahead, it is not booked yet when the late one leaves. A `leaky` without
/// burst looks at the very next call, which is.
pub fn lateness(stack: &Stack) -> Lateness {
    let least = |of: fn(&Limit) -> f64| {
        let least = stack.limits.iter().map(of).fold(f64::INFINITY, f64::min);
        if least.is_finite() { least.max(0.0) as u64 } else { u64::MAX }
    };
    // A bucket of one token forgives nothing; a timer can't do better than a millisecond.
    let free_us = least(|limit| forgiven_us(limit) / 2.0).max(1_000);
    Lateness {
        free_us,
        mended_us: least(mendable_us).min(MOST_MENDED_US).max(free_us),
        forfeit_us: stack.limits.iter().map(|limit| spacing(limit).interval_us).max().unwrap_or(0),
    }
}

fn forgiven_us(limit: &Limit) -> f64 {
    let Spacing { interval_us, tolerance_us, .. } = spacing(limit);
    let burst = f64::from(limit.burst);
    match limit.judge {
        Judge::Sliding | Judge::Fixed => limit.jitter_ms * 1000.0,
        Judge::Leaky if limit.burst == 0 => limit.jitter_ms * 1000.0,
        Judge::Bucket => (burst - 1.0) * interval_us as f64 - tolerance_us as f64,
        Judge::Leaky => burst * interval_us as f64 - tolerance_us as f64,
    }
}

fn mendable_us(limit: &Limit) -> f64 {
    match limit.judge {
        // Half of the way between the horizon and the n-th call, so that there is time to say it.
        Judge::Sliding | Judge::Fixed => (limit.per_ms as f64 * 1000.0 - HORIZON_US as f64) / 2.0,
        Judge::Bucket | Judge::Leaky => forgiven_us(limit) / 2.0,
    }
}

/// The most units that one call may take: the burst; nginx admits one more than its `burst`.
pub fn heaviest(limit: &Limit) -> u32 {
    match limit.judge {
        Judge::Sliding | Judge::Fixed | Judge::Bucket => limit.burst.max(1),
        Judge::Leaky => limit.burst.saturating_add(1),
    }
}

/// The spacings of a whole stack.
///
/// # Errors
/// [`LimiterError::Impossible`] for a limit of no calls, no window, a negative jitter, or a burst above the calls;
/// for two limits of one name, and for more than [`MAX_LIMITS`].
pub fn spacings(stack: &Stack) -> Result<Vec<Spacing<'_>>, LimiterError> {
    let mut names = HashSet::new();
    let twice = stack.limits.iter().find(|limit| !names.insert(&limit.name));
    let why = if stack.limits.len() > MAX_LIMITS {
        Some(format!("it has {} limits: give at most {MAX_LIMITS}", stack.limits.len()))
    } else if let Some(limit) = twice {
        Some(format!("two limits are named `{}`: give each its own name", limit.name))
    } else {
        stack.limits.iter().find_map(fault)
    };
    match why {
        Some(why) => Err(impossible(stack, why)),
        None => Ok(stack.limits.iter().map(spacing).collect()),
    }
}

/// Whether a call of `models` models can ever pass every limit of the stack.
///
/// # Errors
/// [`LimiterError::Impossible`] naming the limit, what the call takes and what would make room for it.
pub fn fits(stack: &Stack, models: u32) -> Result<(), LimiterError> {
    let too_heavy = |limit: &&Limit| cost(limit.unit, models) > u64::from(heaviest(limit));
    match stack.limits.iter().find(too_heavy) {
        None => Ok(()),
        Some(limit) => Err(impossible(
            stack,
            format!(
                "a call of {models} models takes {models} units of limit `{}`, which gives at most {} at once: \
                 raise its burst (calls = {}, burst = {}), or put fewer models into a call",
                limit.name,
                heaviest(limit),
                limit.calls,
                limit.burst
            ),
        )),
    }
}

fn impossible(stack: &Stack, why: String) -> LimiterError {
    LimiterError::Impossible { stack: stack.name.clone(), why }
}

/// What is wrong with a limit, if anything, in words for its author.
pub fn fault(limit: &Limit) -> Option<String> {
    let name = &limit.name;
    if name.is_empty() || name.len() > 64 || name.contains(char::is_whitespace) {
        return Some(format!(
            "a limit is named `{}`: give 1 to 64 bytes without blanks",
            name.chars().take(64).collect::<String>()
        ));
    }
    if limit.calls == 0 {
        return Some(format!("limit `{name}` allows 0 calls: give calls = 1 or more"));
    }
    if limit.per_ms == 0 || limit.per_ms > 366 * 86_400_000 {
        return Some(format!("limit `{name}` has per_ms = {}: give 1 ms to a year", limit.per_ms));
    }
    if !(0.0..=60_000.0).contains(&limit.jitter_ms) {
        return Some(format!("limit `{name}` has jitter_ms = {}: give 0 to 60000", limit.jitter_ms));
    }
    let bounded = matches!(limit.judge, Judge::Sliding | Judge::Fixed);
    (bounded && limit.burst > limit.calls).then(|| {
        format!(
            "limit `{name}` has burst = {} above calls = {}: give at most as many",
            limit.burst, limit.calls
        )
    })
}

/// The share of the quota that the spacing reaches, 0 to 1.
pub fn best_utilisation(limit: &Limit) -> f64 {
    let fair = limit.per_ms as f64 * 1000.0 / f64::from(limit.calls);
    (fair / spacing(limit).interval_us as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limit(calls: u32, judge: Judge, burst: u32, jitter_ms: f64) -> Limit {
        Limit { name: "rate".into(), calls, per_ms: 1000, judge, unit: Unit::Call, burst, jitter_ms }
    }

    #[test]
    fn four_a_second_keep_more_than_99_percent_under_a_sliding_judge() {
        let limit = limit(4, Judge::Sliding, 1, 8.0);
        assert_eq!(spacing(&limit).interval_us, 252_000);
        assert!(best_utilisation(&limit) > 0.99);
    }

    #[test]
    fn an_nginx_without_burst_costs_the_jitter_and_one_with_burst_nothing() {
        assert!(best_utilisation(&limit(100, Judge::Leaky, 0, 1.0)) < 0.91);
        assert_eq!(best_utilisation(&limit(100, Judge::Leaky, 1, 1.0)), 1.0);
    }

    #[test]
    fn a_call_may_be_as_late_as_half_of_what_its_judges_forgive_and_later_if_that_is_mended() {
        let late = |limits: Vec<Limit>| {
            let Lateness { free_us, mended_us, .. } = lateness(&Stack { name: "s".into(), limits });
            (free_us, mended_us)
        };
        assert_eq!(late(vec![limit(4, Judge::Sliding, 1, 8.0)]), (4_000, 80_000));
        assert_eq!(late(vec![limit(200, Judge::Bucket, 21, 8.0)]), (25_000, 25_000));
        assert_eq!(late(vec![limit(200, Judge::Bucket, 1, 8.0)]), (1_000, 1_000));
        assert_eq!(late(vec![limit(30, Judge::Leaky, 0, 8.0)]), (4_000, 4_000));
        let short = Limit { per_ms: 100, ..limit(4, Judge::Sliding, 1, 8.0) };
        assert_eq!(late(vec![short]), (4_000, 4_000), "its whole window is booked ahead");
        assert_eq!(late(vec![]), (u64::MAX, u64::MAX));
    }

    #[test]
    fn an_impossible_limit_is_refused_with_its_name_and_a_way_out() {
        let stack = Stack { name: "restb".into(), limits: vec![limit(4, Judge::Sliding, 9, 8.0)] };
        let message = spacings(&stack).unwrap_err().to_string();
        assert!(message.contains("restb") && message.contains("burst = 9") && message.contains("at most"));
    }

    #[test]
    fn two_limits_of_one_name_are_refused() {
        let stack = Stack {
            name: "restb".into(),
            limits: vec![limit(4, Judge::Sliding, 1, 8.0), limit(9, Judge::Bucket, 1, 8.0)],
        };
        assert!(spacings(&stack).unwrap_err().to_string().contains("two limits are named `rate`"));
    }

    #[test]
    fn a_call_heavier_than_the_burst_is_refused_with_a_way_out() {
        let per_model = Limit { unit: Unit::Model, ..limit(10, Judge::Sliding, 5, 8.0) };
        let stack = Stack { name: "restb".into(), limits: vec![per_model] };
        assert!(fits(&stack, 5).is_ok());
        let message = fits(&stack, 6).unwrap_err().to_string();
        assert!(message.contains("6 models") && message.contains("`rate`") && message.contains("burst"));
    }

    proptest! {
        /// Arrivals at the planned pace, each up to J late, never put more than n in a window.
        #[test]
        fn a_sliding_judge_never_sees_more_than_n_in_a_window(
            calls in 1u32..50, burst in 1u32..10, jitter_ms in 0.0f64..20.0,
            late in proptest::collection::vec(0.0f64..1.0, 150),
        ) {
            let burst = burst.min(calls);
            let limit = limit(calls, Judge::Sliding, burst, jitter_ms);
            let Spacing { interval_us, tolerance_us, .. } = spacing(&limit);
            let mut planned = Vec::new();
            let mut tat = 0u64;
            for _ in 0..150 {
                let slot = tat.saturating_sub(tolerance_us);
                planned.push(slot);
                tat = tat.max(slot) + interval_us;
            }
            let mut arrivals: Vec<f64> =
                planned.iter().zip(&late).map(|(at, late)| *at as f64 + late * jitter_ms * 1000.0).collect();
            arrivals.sort_by(f64::total_cmp);
            let n = calls as usize;
            for pair in arrivals.windows(n + 1) {
                prop_assert!(pair[n] - pair[0] >= 1_000_000.0 - 1.0, "{} calls in {}", n + 1, pair[n] - pair[0]);
            }
        }
    }
}
