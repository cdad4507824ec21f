//! What each judge demands of a caller, and the best that it allows. Pure.
//!
//! W is the window, n its calls, J the arrival jitter, B the burst. A GCRA of interval T and tolerance tau lets
//! at most `floor((W + tau) / T) + 1` units go in any window W, however they are spread over calls.

use std::collections::{BTreeMap, HashSet};

use crate::{
    gcra::HORIZON_US,
    jitter::{judge_slack_us, missing_to_a_millisecond_us},
    limit::{Judge, Kind, Limit, MICRO, Stack, Unit, Weight},
    limiter::LimiterError,
    quota::{self, Count, Counted, Windows},
};

/// The most limits that one stack may have.
pub const MAX_LIMITS: usize = 16;
/// The longest window of a rate: 31 days. Longer ones are quotas.
const MAX_WINDOW_MS: u64 = 31 * 86_400_000;

/// What is wrong with a limit or a stack, in words for its author.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Problem(pub String);

/// A limit as the decision sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule<'a> {
    /// A rate.
    Paced(Spacing<'a>),
    /// A quota.
    Counted(Counted<'a>),
}

/// The spacing that keeps the judge of a rate content, in whole microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spacing<'a> {
    /// The limit's name: what is known of it is kept under this name.
    pub name: &'a str,
    /// Interval between units in the long run: T.
    pub interval_us: u64,
    /// How far ahead of that pace a burst may run: tau.
    pub tolerance_us: u64,
    /// Millionths of a unit that one call may take at most: more than this, the judge refuses however long one waits.
    pub heaviest: u64,
}

impl Spacing<'_> {
    /// What a call of so many millionths of a unit moves the TAT by, in microseconds.
    pub fn charge_us(&self, micros: u64) -> u64 {
        // A product of two numbers below 2^63 fits.
        let product = u128::from(self.interval_us) * u128::from(micros);
        u64::try_from(product.div_ceil(u128::from(MICRO))).unwrap_or(u64::MAX)
    }
}

impl Rule<'_> {
    /// The limit's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Paced(spacing) => spacing.name,
            Self::Counted(counted) => counted.name,
        }
    }
}

/// The spacing that the judge of the rate `limit` answers without a 429, given its jitter.
///
/// * `sliding`, `fixed`: T = (W + J) / (n - B + 1), tau = (B - 1) T: at most n in any window, even when one call
///   arrives J late and another on time.
/// * `bucket`, and `leaky` (nginx) with a burst: T = W / n. The burst forgives S = (B - 1) T, or B T at nginx. J of that
///   is left for the jitter, and at most half is spent on catching up after an idle moment (tau). Where S is less than J,
///   T grows by what is missing.
/// * `leaky` without burst: a late call can't be made up for, and nginx counts in whole milliseconds:
///   T = W / n + max(J, 1 ms).
pub fn spacing(limit: &Limit) -> Spacing<'_> {
    let window = limit.per_ms as f64 * 1000.0;
    let jitter = limit.jitter().as_secs_f64() * 1e6;
    let calls = f64::from(limit.calls.max(1));
    let burst = f64::from(limit.burst);
    let slack = judge_slack_us(limit) as f64;
    let (interval, tolerance) = match limit.judge {
        Judge::Sliding | Judge::Fixed | Judge::Concurrent => {
            let interval = (window + jitter) / (calls - burst.max(1.0) + 1.0);
            (interval, (burst - 1.0).max(0.0) * interval)
        }
        Judge::Leaky if limit.burst == 0 => (window / calls + jitter.max(1000.0), 0.0),
        Judge::Bucket | Judge::Leaky => {
            (window / calls + (jitter - slack).max(0.0), (slack - jitter).clamp(0.0, slack / 2.0))
        }
    };
    // Rounded so that the sum of rounding errors never adds a call: T up, tau down.
    Spacing {
        name: &limit.name,
        interval_us: interval.ceil() as u64,
        tolerance_us: tolerance.floor() as u64,
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

/// A bucket of one token forgives nothing; a busy machine can't do better than this.
const LEAST_FREE_US: u64 = 500;
/// From the last look at the clock to the request's first byte, on a busy machine.
const SENDING_US: u64 = 300;

/// How late a call of this stack may leave, where the way to the API differs by `way_us` from call to call, as far as that
/// is known.
///
/// Free is what the judges forgive, less what the way takes of it; half of it where the way is not known or takes more.
/// `sliding` and `fixed` forgive J; a bucket forgives what [`spacing`] did not spend on catching up. A `leaky` without burst
/// forgives J, too, but looks at a clock that it has read a while ago: half of it is always left to that.
///
/// Mended is what `sliding` and `fixed` allow beyond that: the n-th call after a late one is `W + J` away, and as
/// slots are booked only [`HORIZON_US`] ahead, it is not booked yet when the late one leaves. A `leaky` without
/// burst looks at the very next call, which is.
pub fn lateness(stack: &Stack, way_us: Option<u64>) -> Lateness {
    let rates = || stack.limits.iter().filter(|limit| limit.kind() == Kind::Rate);
    let least = |of: fn(&Limit) -> f64| {
        let least = rates().map(of).fold(f64::INFINITY, f64::min);
        if least.is_finite() { least.max(0.0) as u64 } else { u64::MAX }
    };
    let forgiven_us = least(forgiven_us);
    let burstless = rates().any(|limit| limit.judge == Judge::Leaky && limit.burst == 0);
    let way_us = way_us
        .filter(|_| !burstless)
        .map_or(forgiven_us / 2, |us| us.saturating_add(SENDING_US))
        .min(forgiven_us / 2);
    let free_us = forgiven_us.saturating_sub(way_us).max(LEAST_FREE_US);
    Lateness {
        free_us,
        mended_us: least(mendable_us).min(MOST_MENDED_US).max(free_us),
        forfeit_us: rates().map(|limit| spacing(limit).interval_us).max().unwrap_or(0),
    }
}

fn forgiven_us(limit: &Limit) -> f64 {
    let jitter_us = limit.jitter().as_secs_f64() * 1e6;
    match limit.judge {
        // In whole milliseconds: what T lacks to one is not forgiven.
        Judge::Leaky if limit.burst == 0 => (jitter_us - missing_to_a_millisecond_us(limit) as f64).max(0.0),
        Judge::Bucket | Judge::Leaky => {
            (judge_slack_us(limit) as f64 - spacing(limit).tolerance_us as f64).max(jitter_us)
        }
        Judge::Sliding | Judge::Fixed | Judge::Concurrent => jitter_us,
    }
}

fn mendable_us(limit: &Limit) -> f64 {
    match limit.judge {
        // Half of the way between the horizon and the n-th call, so that there is time to say it.
        Judge::Sliding | Judge::Fixed => (limit.per_ms as f64 * 1000.0 - HORIZON_US as f64) / 2.0,
        Judge::Bucket | Judge::Leaky | Judge::Concurrent => forgiven_us(limit) / 2.0,
    }
}

/// Millionths of a unit that one call may take at most: of a rate the burst (nginx admits one more than its `burst`), of a
/// quota all that it has.
pub fn heaviest(limit: &Limit) -> u64 {
    let units = match (limit.kind(), limit.judge) {
        (Kind::Quota(_), _) => limit.calls,
        (Kind::InFlight, _) => u32::MAX,
        (Kind::Rate, Judge::Leaky) => limit.burst.saturating_add(1),
        (Kind::Rate, _) => limit.burst.max(1),
    };
    u64::from(units) * MICRO
}

/// The stack's rates and quotas at `now_us`, in microseconds since 1970. `hints` is what this process remembers of the
/// quotas, by their names.
///
/// # Errors
/// [`LimiterError::Impossible`] for a stack that [`check`] refuses.
pub fn rules<'a>(
    stack: &'a Stack,
    now_us: u64,
    hints: &BTreeMap<String, Count>,
) -> Result<Vec<Rule<'a>>, LimiterError> {
    check(stack).map_err(|problem| impossible(stack, problem))?;
    let rule = |limit: &'a Limit| -> Result<Option<Rule<'a>>, LimiterError> {
        Ok(match limit.kind() {
            Kind::InFlight => None,
            Kind::Rate => Some(Rule::Paced(spacing(limit))),
            Kind::Quota(quota) => {
                let zone =
                    quota::zone(limit.zone.as_deref()).map_err(|why| impossible(stack, Problem(why)))?;
                Some(Rule::Counted(Counted {
                    name: &limit.name,
                    most: u64::from(limit.calls) * MICRO,
                    guard_us: limit.jitter().as_micros() as u64,
                    windows: Windows::around(quota, &zone, now_us),
                    hint: hints.get(&limit.name).copied(),
                }))
            }
        })
    };
    stack.limits.iter().filter_map(|limit| rule(limit).transpose()).collect()
}

/// What a call of `weight` takes from each rate and quota of the stack, in the order of [`rules`], in millionths of units.
pub fn costs(stack: &Stack, weight: Weight) -> Vec<u64> {
    let booked = stack.limits.iter().filter(|limit| limit.kind() != Kind::InFlight);
    booked.map(|limit| weight.micros(limit.unit)).collect()
}

/// Whether the stack's limits can be satisfied at all.
///
/// # Errors
/// What is wrong with one of its limits ([`fault`]); two of one name; more than [`MAX_LIMITS`].
pub fn check(stack: &Stack) -> Result<(), Problem> {
    let mut names = HashSet::new();
    if stack.limits.len() > MAX_LIMITS {
        return Err(Problem(format!("it has {} limits: give at most {MAX_LIMITS}", stack.limits.len())));
    }
    if let Some(limit) = stack.limits.iter().find(|limit| !names.insert(&limit.name)) {
        return Err(Problem(format!("two limits are named `{}`: give each its own name", limit.name)));
    }
    stack.limits.iter().find_map(fault).map_or(Ok(()), |why| Err(Problem(why)))
}

/// Whether a call of this weight can ever pass every limit of the stack.
///
/// # Errors
/// [`LimiterError::Impossible`] naming the limit, what the call takes and what would make room for it.
pub fn fits(stack: &Stack, weight: Weight) -> Result<(), LimiterError> {
    let too_heavy =
        |limit: &&Limit| limit.kind() != Kind::InFlight && weight.micros(limit.unit) > heaviest(limit);
    let Some(limit) = stack.limits.iter().find(too_heavy) else { return Ok(()) };
    let units = |micros: u64| micros as f64 / MICRO as f64;
    let (takes, gives) = (units(weight.micros(limit.unit)), units(heaviest(limit)));
    let Limit { name, calls, burst, .. } = limit;
    let what = match limit.unit {
        Unit::Call | Unit::Model => format!("a call of {} models takes {takes} units", weight.models),
        Unit::Megabyte => format!("a call of {} bytes takes {takes} megabytes", weight.bytes),
        Unit::Money => format!("a call takes {takes} of the money"),
    };
    let way_out = match (limit.kind(), limit.unit) {
        (Kind::Quota(_), _) => format!("raise it (calls = {calls})"),
        (_, Unit::Megabyte) => {
            format!("raise its burst (calls = {calls}, burst = {burst}), or send smaller pictures")
        }
        _ => format!("raise its burst (calls = {calls}, burst = {burst}), or put fewer models into a call"),
    };
    let why = format!("{what} of limit `{name}`, which gives at most {gives} at once: {way_out}");
    Err(impossible(stack, Problem(why)))
}

fn impossible(stack: &Stack, Problem(why): Problem) -> LimiterError {
    LimiterError::Impossible { stack: stack.name.clone(), why }
}

/// What is wrong with a limit, if anything, in words for its author.
pub fn fault(limit: &Limit) -> Option<String> {
    let Limit { name, calls, burst, .. } = limit;
    if name.is_empty() || name.len() > 64 || name.contains(char::is_whitespace) {
        return Some(format!(
            "a limit is named `{}`: give 1 to 64 bytes without blanks",
            name.chars().take(64).collect::<String>()
        ));
    }
    if *calls == 0 {
        return Some(format!("limit `{name}` allows 0 calls: give calls = 1 or more"));
    }
    let jitter_ms = limit.jitter_ms.unwrap_or(0.0);
    if !(0.0..=60_000.0).contains(&jitter_ms) {
        return Some(format!("limit `{name}` has jitter_ms = {jitter_ms}: give 0 to 60000"));
    }
    match limit.kind() {
        Kind::Quota(_) => fault_of_quota(limit),
        Kind::InFlight if limit.quota.is_some() || limit.unit != Unit::Call => {
            Some(format!("limit `{name}` is on calls in flight: give it no quota, and unit = \"call\""))
        }
        Kind::InFlight => None,
        Kind::Rate if limit.zone.is_some() => {
            Some(format!("limit `{name}` has a zone and no quota: give quota = \"day\", or no zone"))
        }
        Kind::Rate if limit.per_ms == 0 || limit.per_ms > MAX_WINDOW_MS => {
            Some(format!("limit `{name}` has per_ms = {}: give 1 ms to 31 days, or a quota", limit.per_ms))
        }
        Kind::Rate => {
            let bounded = matches!(limit.judge, Judge::Sliding | Judge::Fixed);
            (bounded && burst > calls).then(|| {
                format!("limit `{name}` has burst = {burst} above calls = {calls}: give at most as many")
            })
        }
    }
}

fn fault_of_quota(limit: &Limit) -> Option<String> {
    let name = &limit.name;
    if !matches!(limit.judge, Judge::Sliding | Judge::Fixed) {
        return Some(format!("limit `{name}` is a quota: give judge = \"fixed\", or none"));
    }
    if limit.burst > 1 {
        return Some(format!("limit `{name}` is a quota, which has no burst: leave it out"));
    }
    if limit.jitter_ms.is_some_and(|ms| ms > 10_000.0) {
        return Some(format!("limit `{name}` is a quota: give jitter_ms = 10000 or less"));
    }
    quota::zone(limit.zone.as_deref()).err().map(|why| format!("limit `{name}`: {why}"))
}

/// The share of the quota that the spacing reaches, 0 to 1.
pub fn best_utilisation(limit: &Limit) -> f64 {
    if limit.kind() != Kind::Rate {
        return 1.0;
    }
    let fair = limit.per_ms as f64 * 1000.0 / f64::from(limit.calls);
    (fair / spacing(limit).interval_us as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limit(calls: u32, judge: Judge, burst: u32, jitter_ms: f64) -> Limit {
        Limit { judge, burst, jitter_ms: Some(jitter_ms), ..Limit::per_second("rate", calls) }
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
            let Lateness { free_us, mended_us, .. } = lateness(&Stack { name: "s".into(), limits }, None);
            (free_us, mended_us)
        };
        assert_eq!(late(vec![limit(4, Judge::Sliding, 1, 8.0)]), (4_000, 80_000));
        assert_eq!(late(vec![limit(200, Judge::Bucket, 21, 8.0)]), (25_000, 25_000));
        assert_eq!(late(vec![limit(200, Judge::Bucket, 1, 8.0)]), (4_000, 4_000));
        assert_eq!(late(vec![limit(100, Judge::Leaky, 0, 8.0)]), (4_000, 4_000));
        assert_eq!(late(vec![limit(300, Judge::Leaky, 0, 2.0)]), (667, 667), "4 ms, and not 3.3");
        let short = Limit { per_ms: 100, ..limit(4, Judge::Sliding, 1, 8.0) };
        assert_eq!(late(vec![short]), (4_000, 4_000), "its whole window is booked ahead");
        assert!(late(vec![]).0 >= u64::MAX / 2, "without limits any time will do");
    }

    #[test]
    fn where_the_way_is_known_to_be_even_more_is_left_for_leaving() {
        let stack = Stack { name: "s".into(), limits: vec![limit(4, Judge::Sliding, 1, 8.0)] };
        let free_us = |way_us| lateness(&stack, way_us).free_us;
        assert_eq!((free_us(None), free_us(Some(200)), free_us(Some(60_000))), (4_000, 7_500, 4_000));
    }

    #[test]
    fn an_impossible_limit_is_refused_with_its_name_and_a_way_out() {
        let stack = Stack { name: "restb".into(), limits: vec![limit(4, Judge::Sliding, 9, 8.0)] };
        let message = check(&stack).unwrap_err().to_string();
        assert!(message.contains("`rate`") && message.contains("burst = 9") && message.contains("at most"));
    }

    #[test]
    fn two_limits_of_one_name_are_refused() {
        let stack = Stack {
            name: "restb".into(),
            limits: vec![limit(4, Judge::Sliding, 1, 8.0), limit(9, Judge::Bucket, 1, 8.0)],
        };
        assert!(check(&stack).unwrap_err().to_string().contains("two limits are named `rate`"));
    }

    #[test]
    fn a_call_heavier_than_the_burst_is_refused_with_a_way_out() {
        let per_model = Limit { unit: Unit::Model, ..limit(10, Judge::Sliding, 5, 8.0) };
        let stack = Stack { name: "restb".into(), limits: vec![per_model] };
        assert!(fits(&stack, Weight::of_models(5)).is_ok());
        let message = fits(&stack, Weight::of_models(6)).unwrap_err().to_string();
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
