//! How much arrival jitter a stack allows for: widened by a 429, narrowed over clean time. Pure.
//!
//! J is one number a stack, shared by the fleet. Too small, and calls that were spaced well arrive too near to each
//! other; too large, and quota is left unused. Under a window it follows what workers measure slowly, and never below 4 ms:
//! a millisecond costs little there. nginx without burst forgets a refused call at once, and each millisecond costs: there it
//! follows closely. What a burst forgives costs nothing, so only a 429 widens it there.

use crate::{
    limit::{Judge, Kind, Limit, Stack},
    terms::Terms,
};

/// No jitter above this is allowed for: beyond it something else is wrong.
const MOST_US: u64 = 50_000;
/// 429s of one crowd of calls count once.
const WIDEN_EVERY_US: u64 = 250_000;
/// Without a burst, so many calls without a 429 are clean: at most one in so many is spent on finding out.
const CLEAN_CALLS: u64 = 1_000;
/// A raise waits this long for the last change to show.
const RAISE_EVERY_US: u64 = 1_000_000;

/// What one process has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The fleet's largest measured jitter, in microseconds.
    pub measured_us: Option<u64>,
    /// Whether a call was just answered "too much".
    pub throttled: bool,
    /// When, in microseconds since 1970.
    pub now_us: u64,
}

/// How a judge's J moves.
struct Manner {
    start_us: u64,
    floor_us: u64,
    /// Measured jitter times this is enough.
    margin: f64,
    /// Narrowed after so much time without a 429.
    clean_us: u64,
    /// Whether measuring alone, without a 429, widens it.
    by_measure: bool,
}

impl Manner {
    fn of(limit: &Limit) -> Self {
        let slack_us = judge_slack_us(limit);
        match limit.judge {
            Judge::Leaky if limit.burst == 0 => Self {
                start_us: 2_000 + missing_to_a_millisecond_us(limit),
                floor_us: 1_000 + missing_to_a_millisecond_us(limit),
                margin: 1.0,
                // By calls, not by time alone: else a slow limit would meet a 429 in every few calls.
                clean_us: (CLEAN_CALLS * limit.per_ms * 1000 / u64::from(limit.calls.max(1))).max(2_000_000),
                by_measure: true,
            },
            // What the burst forgives costs nothing, and only a 429 says that it is not enough.
            Judge::Bucket | Judge::Leaky => {
                let start_us = slack_us.min(8_000);
                Self { start_us, floor_us: start_us, margin: 0.0, clean_us: 30_000_000, by_measure: false }
            }
            Judge::Sliding | Judge::Fixed | Judge::Concurrent => {
                Self { start_us: 8_000, floor_us: 4_000, margin: 1.0, clean_us: 60_000_000, by_measure: true }
            }
        }
    }

    fn most_us(limit: &Limit) -> u64 {
        MOST_US.min(limit.per_ms * 250)
    }

    fn enough_us(&self, measured_us: u64) -> u64 {
        self.floor_us.max((measured_us as f64 * self.margin) as u64)
    }
}

/// nginx counts in whole milliseconds: what the even distance of two calls lacks to one is forgiven by none of J.
pub(crate) fn missing_to_a_millisecond_us(limit: &Limit) -> u64 {
    let interval_us = limit.per_ms as f64 * 1000.0 / f64::from(limit.calls.max(1));
    ((interval_us / 1000.0).ceil() * 1000.0 - interval_us) as u64
}

/// What a bucket's or nginx's burst forgives, in microseconds.
pub(crate) fn judge_slack_us(limit: &Limit) -> u64 {
    let interval_us = limit.per_ms as f64 * 1000.0 / f64::from(limit.calls.max(1));
    let spare = match limit.judge {
        Judge::Bucket => limit.burst.saturating_sub(1),
        Judge::Leaky => limit.burst,
        Judge::Sliding | Judge::Fixed | Judge::Concurrent => 0,
    };
    (f64::from(spare) * interval_us) as u64
}

/// The jitter that `limit` allows for, in milliseconds, where the stack's was adapted to `adapted_us`.
pub(crate) fn of(limit: &Limit, adapted_us: Option<u64>) -> f64 {
    let manner = Manner::of(limit);
    let most_us = Manner::most_us(limit).max(manner.floor_us);
    adapted_us.unwrap_or(manner.start_us).clamp(manner.floor_us, most_us) as f64 / 1000.0
}

/// The jitter to allow for from now on, where that is another one than the terms say.
pub fn adapted(stack: &Stack, terms: &Terms, seen: Seen) -> Option<u64> {
    // The fastest limit feels it first.
    let adaptive = stack.limits.iter().filter(|limit| limit.kind() == Kind::Rate && limit.is_adaptive());
    let limit = adaptive.max_by(|one, other| rate(one).total_cmp(&rate(other)))?;
    let manner = Manner::of(limit);
    let now_us = (of(limit, terms.jitter_us) * 1000.0) as u64;
    let since_us = seen.now_us.saturating_sub(terms.jitter_at_us);
    let measured_us = seen.measured_us.unwrap_or(0);
    let most_us = Manner::most_us(limit).max(manner.floor_us);
    let wanted_us = if seen.throttled {
        if since_us < WIDEN_EVERY_US {
            return None;
        }
        (now_us * 5 / 4).max(now_us + 500)
    } else if manner.by_measure && measured_us as f64 * manner.margin > now_us as f64 * 1.1 {
        if since_us < RAISE_EVERY_US {
            return None;
        }
        manner.enough_us(measured_us)
    } else if since_us >= manner.clean_us && terms.jitter_us.is_some() | seen.measured_us.is_some() {
        // A tenth less at a time: each change is told to the whole fleet.
        manner.enough_us(measured_us).max(now_us - now_us / 10).min(now_us)
    } else {
        return None;
    };
    let wanted_us = wanted_us.clamp(manner.floor_us, most_us);
    // Small steps are not worth telling the fleet.
    (wanted_us.abs_diff(now_us) * 50 >= now_us.max(1)).then_some(wanted_us)
}

fn rate(limit: &Limit) -> f64 {
    limit.units_per_s().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE_US: u64 = 60_000_000;

    fn stack(judge: Judge, burst: u32) -> Stack {
        let rate = Limit { judge, burst, ..Limit::per_second("rate", 200) };
        Stack { name: "s".into(), limits: vec![rate] }
    }

    fn terms(jitter_us: u64, at_us: u64) -> Terms {
        Terms { jitter_us: Some(jitter_us), jitter_at_us: at_us, ..Terms::default() }
    }

    #[test]
    fn a_429_widens_it_and_those_of_one_crowd_do_so_once() {
        let stack = stack(Judge::Sliding, 1);
        let seen = Seen { throttled: true, now_us: MINUTE_US, measured_us: None };
        assert_eq!(adapted(&stack, &Terms::default(), seen), Some(10_000));
        let again = Seen { now_us: MINUTE_US + 100_000, ..seen };
        assert_eq!(adapted(&stack, &terms(10_000, MINUTE_US), again), None);
        let later = Seen { now_us: MINUTE_US + 300_000, ..seen };
        assert_eq!(adapted(&stack, &terms(10_000, MINUTE_US), later), Some(12_500));
    }

    #[test]
    fn clean_minutes_narrow_it_down_to_what_is_measured() {
        let stack = stack(Judge::Sliding, 1);
        let (mut terms, mut now_us) = (terms(8_000, 0), 0);
        for _ in 0..30 {
            now_us += MINUTE_US;
            let seen = Seen { measured_us: Some(5_000), throttled: false, now_us };
            if let Some(us) = adapted(&stack, &terms, seen) {
                terms = Terms { jitter_us: Some(us), jitter_at_us: now_us, ..terms };
            }
        }
        assert_eq!(terms.jitter_us.map(|us| us / 1_000), Some(5));
    }

    #[test]
    fn an_nginx_without_burst_is_given_what_is_measured() {
        let stack = stack(Judge::Leaky, 0);
        let seen = Seen { measured_us: Some(3_000), throttled: false, now_us: MINUTE_US };
        assert_eq!(adapted(&stack, &Terms::default(), seen), Some(3_000));
    }

    #[test]
    fn a_burst_that_forgives_enough_is_left_alone_until_a_429() {
        let stack = stack(Judge::Bucket, 20);
        let seen = Seen { measured_us: Some(30_000), throttled: false, now_us: 10 * MINUTE_US };
        assert_eq!(adapted(&stack, &Terms::default(), seen), None);
        assert_eq!(adapted(&stack, &Terms::default(), Seen { throttled: true, ..seen }), Some(10_000));
    }

    #[test]
    fn a_jitter_that_the_settings_give_stays() {
        let mut stack = stack(Judge::Sliding, 1);
        stack.limits[0].jitter_ms = Some(5.0);
        let seen = Seen { throttled: true, now_us: MINUTE_US, measured_us: Some(40_000) };
        assert_eq!(adapted(&stack, &Terms::default(), seen), None);
    }

    proptest! {
        #[test]
        fn it_never_leaves_its_bounds(
            judge in 0usize..4, burst in 0u32..20, calls in 1u32..5_000,
            steps in proptest::collection::vec((0u64..120_000_000, proptest::option::of(0u64..500_000), any::<bool>()), 1..60),
        ) {
            let judge = [Judge::Sliding, Judge::Fixed, Judge::Bucket, Judge::Leaky][judge];
            let limit = Limit { judge, burst, calls, ..Limit::per_second("rate", 1) };
            let stack = Stack { name: "s".into(), limits: vec![limit] };
            let (mut terms, mut now_us) = (Terms::default(), 0);
            for (step, measured_us, throttled) in steps {
                now_us += step;
                if let Some(us) = adapted(&stack, &terms, Seen { measured_us, throttled, now_us }) {
                    prop_assert!(us <= MOST_US);
                    terms = Terms { jitter_us: Some(us), jitter_at_us: now_us, ..terms };
                }
            }
        }
    }
}
