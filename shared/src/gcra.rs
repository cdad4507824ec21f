//! The decision of the reserving GCRA: when may the next calls leave? Pure, in whole microseconds.
//!
//! The Lua script of the Redis engine (`fleet/redis/reserve.lua`) is its twin; a test drives both with the same
//! traces. Each limit keeps one number, its TAT (theoretical arrival time): the moment from which a call is back
//! on pace. A call may leave at `TAT - tau` at the earliest, and moves the TAT by T times its cost.

use crate::{judge::Spacing, limiter::Unit};

/// How far ahead of now slots are booked.
pub const HORIZON_US: u64 = 1_000_000;
/// How far two Redis servers' clocks may differ after a failover.
pub const CLOCK_STEP_US: u64 = 250_000;
/// No slot is nearer than this: the answer has to travel back.
pub const LEAD_US: u64 = 1_000;

/// What is kept between decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// A TAT for each limit of the stack; empty when nothing is known.
    pub tats_us: Vec<u64>,
    /// Nothing leaves before this moment.
    pub held_until_us: u64,
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Booked moments, in order: for the first calls asked for.
    Slots(Vec<u64>),
    /// Nothing was booked: the first call could leave at this moment, which is past the horizon.
    ComeBack(u64),
}

/// Books slots for `calls` (the number of models of each) and moves `state` on.
///
/// A state that does not fit the stack was lost, and is rebuilt as the upper bound of whatever it may have been:
/// a grant made at x has a slot `s <= x + H` and leaves a TAT of at most `s + tau + T * cost`.
pub fn decide(state: &mut State, spacings: &[Spacing], calls: &[u32], now_us: u64) -> Decision {
    if state.tats_us.len() != spacings.len() {
        let heaviest = calls.iter().copied().max().unwrap_or(1);
        state.tats_us = spacings
            .iter()
            .map(|limit| lost(limit, heaviest, now_us))
            .collect();
    }
    let mut slots = Vec::with_capacity(calls.len());
    for &models in calls {
        let earliest = (now_us + LEAD_US).max(state.held_until_us);
        let slot = spacings
            .iter()
            .zip(&state.tats_us)
            .map(|(limit, tat)| tat.saturating_sub(limit.tolerance_us))
            .fold(earliest, u64::max);
        if slot > now_us + HORIZON_US {
            return if slots.is_empty() {
                Decision::ComeBack(slot)
            } else {
                Decision::Slots(slots)
            };
        }
        for (limit, tat) in spacings.iter().zip(&mut state.tats_us) {
            *tat = (*tat).max(slot) + limit.interval_us * cost(limit.unit, models);
        }
        slots.push(slot);
    }
    Decision::Slots(slots)
}

/// The TAT of a limit of which nothing is known.
fn lost(limit: &Spacing, models: u32, now_us: u64) -> u64 {
    now_us + HORIZON_US + CLOCK_STEP_US + limit.tolerance_us + limit.interval_us * cost(limit.unit, models)
}

/// What a call of `models` models takes from a limit.
pub fn cost(unit: Unit, models: u32) -> u64 {
    match unit {
        Unit::Call => 1,
        Unit::Model => u64::from(models.max(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPACING: Spacing = Spacing {
        interval_us: 5_000,
        tolerance_us: 0,
        unit: Unit::Call,
    };

    fn known() -> State {
        State {
            tats_us: vec![0],
            held_until_us: 0,
        }
    }

    #[test]
    fn calls_are_booked_one_interval_apart() {
        let mut state = known();
        let slots = decide(&mut state, &[SPACING], &[1, 1, 1], 1_000_000);
        assert_eq!(slots, Decision::Slots(vec![1_001_000, 1_006_000, 1_011_000]));
    }

    #[test]
    fn past_the_horizon_nothing_is_booked_and_the_answer_says_when() {
        let mut state = State {
            tats_us: vec![5_000_000],
            held_until_us: 0,
        };
        assert_eq!(
            decide(&mut state, &[SPACING], &[1], 0),
            Decision::ComeBack(5_000_000)
        );
        assert_eq!(state.tats_us, [5_000_000]);
    }

    #[test]
    fn a_hold_off_moves_every_slot_behind_it() {
        let mut state = State {
            held_until_us: 900_000,
            ..known()
        };
        assert_eq!(
            decide(&mut state, &[SPACING], &[1], 0),
            Decision::Slots(vec![900_000])
        );
    }

    #[test]
    fn a_call_of_six_models_costs_six_where_models_count() {
        let mut state = known();
        let per_model = Spacing {
            unit: Unit::Model,
            ..SPACING
        };
        decide(&mut state, &[per_model], &[6], 0);
        assert_eq!(state.tats_us, [LEAD_US + 30_000]);
    }

    proptest! {
        /// Whatever is asked, when, and whatever is forgotten in between: never above n in any window.
        #[test]
        fn no_window_ever_holds_more_than_its_calls(
            steps in proptest::collection::vec((0u64..400_000, 1usize..5, proptest::bool::weighted(0.05)), 1..200),
            burst in 1u32..5,
        ) {
            let limit = crate::limiter::Limit {
                name: "rate".into(), calls: 20, per_ms: 1000, judge: crate::limiter::Judge::Sliding,
                unit: Unit::Call, burst, jitter_ms: 0.0,
            };
            let spacing = [crate::judge::spacing(&limit)];
            let (mut state, mut now, mut all) = (State::default(), 10_000_000, Vec::new());
            for (step, calls, lost) in steps {
                now += step;
                if lost { state = State::default(); }
                if let Decision::Slots(slots) = decide(&mut state, &spacing, &vec![1; calls], now) {
                    for slot in &slots { prop_assert!(*slot > now && *slot <= now + HORIZON_US); }
                    all.extend(slots);
                }
            }
            all.sort_unstable();
            for window in all.windows(21) {
                prop_assert!(window[20] - window[0] >= 1_000_000, "21 calls within {} us", window[20] - window[0]);
            }
        }

        /// A known state never keeps a call waiting that every limit would let go.
        #[test]
        fn a_call_leaves_at_once_when_every_limit_is_on_pace(tat in 0u64..2_000_000, now in 0u64..2_000_000) {
            let mut state = State { tats_us: vec![tat], held_until_us: 0 };
            let decision = decide(&mut state, &[SPACING], &[1], now);
            if tat <= now + LEAD_US {
                prop_assert_eq!(decision, Decision::Slots(vec![now + LEAD_US]));
            }
        }
    }
}
