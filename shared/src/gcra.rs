//! The decision of the reserving GCRA: when may the next calls leave? Pure, in whole microseconds.
//!
//! The Lua script of the Redis engine (`fleet/redis/reserve.lua`) is its twin; a test drives both with the same
//! traces. Each limit keeps one number, its TAT (theoretical arrival time): the moment from which a call is back
//! on pace. A call of c units may leave at `TAT + T (c - 1) - tau` at the earliest, which is when a bucket of
//! `tau / T + 1` units holds c again, and moves the TAT by T times c.

use std::collections::BTreeMap;

use crate::{judge::Spacing, limiter::Unit};

/// How far ahead of now slots are booked.
pub const HORIZON_US: u64 = 800_000;
/// How far two Redis servers' clocks may differ after a failover.
pub const CLOCK_STEP_US: u64 = 250_000;
/// No slot is nearer than this: the answer has to travel back.
pub const LEAD_US: u64 = 1_000;

/// What is kept between decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// When it was last changed, on the server's clock.
    pub at_us: u64,
    /// Nothing leaves before this moment.
    pub held_until_us: u64,
    /// What is known of each limit, by its name. Of a limit that is not in it nothing is known.
    pub pace: BTreeMap<String, Pace>,
}

/// What is known of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The TAT.
    pub tat_us: u64,
    /// The interval that it was made with.
    pub interval_us: u64,
}

/// What is true when a decision is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The server's clock.
    pub now_us: u64,
    /// How long the answer may travel: no slot is nearer than this.
    pub lead_us: u64,
    /// The state may be older than the last grant, or its clock may have jumped ahead.
    pub lost: bool,
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Booked moments, in order: for the first calls asked for.
    Slots(Vec<u64>),
    /// Nothing was booked: the first call could leave at this moment, which is past the horizon.
    ComeBack(u64),
}

impl State {
    /// The state of a stack that has been idle for ever.
    pub fn idle(spacings: &[Spacing<'_>]) -> Self {
        let pace = |limit: &Spacing<'_>| Pace { tat_us: 0, interval_us: limit.interval_us };
        Self {
            pace: spacings.iter().map(|limit| (limit.name.to_owned(), pace(limit))).collect(),
            ..Self::default()
        }
    }

    /// Moves every later slot back, because a call leaves so much after its own.
    ///
    /// The n-th call after it is a whole window away, and is not booked yet: see
    /// [`Lateness`](crate::judge::Lateness).
    pub fn late(&mut self, by_us: u64) {
        for pace in self.pace.values_mut() {
            pace.tat_us += by_us;
        }
    }

    /// Moves everything back with a clock that was set back: as if no time had passed since the last change.
    fn follow_clock(&mut self, now_us: u64) {
        let back = self.at_us.saturating_sub(now_us);
        if back > 0 {
            self.held_until_us = self.held_until_us.saturating_sub(back);
            for pace in self.pace.values_mut() {
                pace.tat_us = pace.tat_us.saturating_sub(back);
            }
            self.at_us = now_us;
        }
    }
}

impl Pace {
    /// What is known of `limit` after all.
    ///
    /// A limit that was changed binds from now on: the units that are still to leave count, at the new price.
    /// One of which nothing is known is taken at the upper bound of whatever it may have been: a grant made at x
    /// has a slot `s <= x + H` and leaves a TAT of at most `s + T * heaviest`.
    fn of(known: Option<Self>, limit: &Spacing<'_>, moment: Moment) -> Self {
        let now = moment.now_us;
        let tat_us = known.map_or(0, |known| match known.tat_us.checked_sub(now) {
            Some(ahead) if known.interval_us != limit.interval_us => {
                // The same floating-point operations in the same order as in the Lua twin.
                let units = ahead as f64 / known.interval_us as f64;
                now + (units * limit.interval_us as f64).ceil() as u64
            }
            _ => known.tat_us,
        });
        let bound = now + HORIZON_US + CLOCK_STEP_US + limit.interval_us * u64::from(limit.heaviest);
        Self {
            tat_us: if moment.lost || known.is_none() { tat_us.max(bound) } else { tat_us },
            interval_us: limit.interval_us,
        }
    }
}

/// Books slots for `calls` (the number of models of each) on a state that is known to be whole.
pub fn decide(state: &mut State, spacings: &[Spacing<'_>], calls: &[u32], now_us: u64) -> Decision {
    let moment = Moment { now_us, lead_us: LEAD_US, lost: false };
    decide_at(moment, state, spacings, calls)
}

/// Books slots for `calls` (the number of models of each), and moves `state` on. What it holds of limits that
/// are not in `spacings` is forgotten: such a limit comes back as one of which nothing is known.
///
/// Every call has to fit ([`judge::fits`](crate::judge::fits)).
pub fn decide_at(moment: Moment, state: &mut State, spacings: &[Spacing<'_>], calls: &[u32]) -> Decision {
    state.follow_clock(moment.now_us);
    let mut paces: Vec<Pace> =
        spacings.iter().map(|limit| Pace::of(state.pace.get(limit.name).copied(), limit, moment)).collect();
    let decision = book(moment, state.held_until_us, spacings, &mut paces, calls);
    let names = spacings.iter().map(|limit| limit.name.to_owned());
    let pace = names.zip(paces).collect();
    if moment.lost || state.pace != pace || matches!(decision, Decision::Slots(_)) {
        state.pace = pace;
        state.at_us = moment.now_us;
    }
    decision
}

fn book(
    moment: Moment,
    held_until_us: u64,
    spacings: &[Spacing<'_>],
    paces: &mut [Pace],
    calls: &[u32],
) -> Decision {
    let mut slots = Vec::with_capacity(calls.len());
    for &models in calls {
        let soonest = (moment.now_us + moment.lead_us).max(held_until_us);
        let slot = spacings
            .iter()
            .zip(paces.iter())
            .map(|(limit, pace)| earliest(limit, pace.tat_us, models))
            .fold(soonest, u64::max);
        if slot > moment.now_us + HORIZON_US {
            return if slots.is_empty() { Decision::ComeBack(slot) } else { Decision::Slots(slots) };
        }
        for (limit, pace) in spacings.iter().zip(paces.iter_mut()) {
            pace.tat_us = pace.tat_us.max(slot) + limit.interval_us * cost(limit.unit, models);
        }
        slots.push(slot);
    }
    Decision::Slots(slots)
}

/// When a limit of this TAT lets a call go.
fn earliest(limit: &Spacing<'_>, tat_us: u64, models: u32) -> u64 {
    let own = limit.interval_us * (cost(limit.unit, models) - 1);
    (tat_us + own).saturating_sub(limit.tolerance_us)
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
    use crate::{
        judge::spacing,
        limiter::{Judge, Limit},
    };
    use proptest::prelude::*;

    const SPACING: Spacing<'_> =
        Spacing { name: "rate", interval_us: 5_000, tolerance_us: 0, unit: Unit::Call, heaviest: 1 };

    fn known() -> State {
        on_pace_from(0)
    }

    fn on_pace_from(tat_us: u64) -> State {
        let pace = Pace { tat_us, interval_us: SPACING.interval_us };
        State { pace: [("rate".to_owned(), pace)].into(), ..State::default() }
    }

    fn limit(unit: Unit, burst: u32) -> Limit {
        Limit {
            name: "rate".into(),
            calls: 20,
            per_ms: 1000,
            judge: Judge::Sliding,
            unit,
            burst,
            jitter_ms: 0.0,
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
        let mut state = on_pace_from(5_000_000);
        assert_eq!(decide(&mut state, &[SPACING], &[1], 0), Decision::ComeBack(5_000_000));
        assert_eq!(state.pace["rate"].tat_us, 5_000_000);
    }

    #[test]
    fn a_hold_off_moves_every_slot_behind_it() {
        let mut state = State { held_until_us: 700_000, ..known() };
        assert_eq!(decide(&mut state, &[SPACING], &[1], 0), Decision::Slots(vec![700_000]));
    }

    #[test]
    fn a_call_of_six_models_waits_for_six_units_where_models_count() {
        let per_model = Spacing { unit: Unit::Model, heaviest: 6, tolerance_us: 25_000, ..SPACING };
        let mut state = known();
        assert_eq!(
            decide(&mut state, &[per_model], &[6, 6, 1], 0),
            Decision::Slots(vec![LEAD_US, LEAD_US + 30_000, LEAD_US + 35_000])
        );
    }

    #[test]
    fn a_limit_that_is_halved_makes_the_units_still_to_leave_twice_as_dear() {
        let mut state = on_pace_from(1_000_000);
        let halved = Spacing { interval_us: 10_000, ..SPACING };
        assert_eq!(decide(&mut state, &[halved], &[1], 0), Decision::ComeBack(2_000_000));
    }

    #[test]
    fn a_new_limit_in_a_known_stack_begins_at_its_upper_bound() {
        let day = Spacing { name: "day", interval_us: 60_000, ..SPACING };
        let bound = HORIZON_US + CLOCK_STEP_US + 60_000;
        assert_eq!(decide(&mut known(), &[SPACING, day], &[1], 0), Decision::ComeBack(bound));
    }

    #[test]
    fn a_clock_set_back_by_an_hour_neither_frees_nor_blocks_a_call() {
        const HOUR: u64 = 3_600_000_000;
        let mut state = State { held_until_us: HOUR + 700_000, at_us: HOUR, ..on_pace_from(HOUR + 500_000) };
        assert_eq!(decide(&mut state, &[SPACING], &[1], 10), Decision::Slots(vec![700_010]));
    }

    proptest! {
        /// Whatever is asked, when, and whatever is forgotten in between: never above n units in any window.
        #[test]
        fn no_window_ever_holds_more_than_its_units(
            steps in proptest::collection::vec(
                (0u64..400_000, proptest::collection::vec(1u32..5, 1..5), proptest::bool::weighted(0.05)), 1..200),
            burst in 4u32..8, per_model: bool,
        ) {
            let limit = limit(if per_model { Unit::Model } else { Unit::Call }, burst);
            let spacing = [spacing(&limit)];
            let (mut state, mut now, mut units) = (State::default(), 10_000_000, Vec::new());
            for (step, calls, lost) in steps {
                now += step;
                if lost { state = State::default(); }
                if let Decision::Slots(slots) = decide(&mut state, &spacing, &calls, now) {
                    for (slot, models) in slots.iter().zip(&calls) {
                        prop_assert!(*slot > now && *slot <= now + HORIZON_US);
                        units.extend(std::iter::repeat_n(*slot, cost(limit.unit, *models) as usize));
                    }
                }
            }
            units.sort_unstable();
            for window in units.windows(21) {
                prop_assert!(window[20] - window[0] >= 1_000_000, "21 units within {} us", window[20] - window[0]);
            }
        }

        /// Calls that leave late, within what may be mended, never crowd a window: what is booked later makes room.
        #[test]
        fn late_calls_never_crowd_a_window(
            steps in proptest::collection::vec((1u64..200_000, 1usize..5), 1..200),
            lateness in proptest::collection::vec(prop_oneof![4 => 0u64..4_000, 1 => 4_000u64..80_000], 800),
        ) {
            let limit = crate::limiter::Limit { jitter_ms: 8.0, ..limit(Unit::Call, 1) };
            let stack = crate::limiter::Stack { name: "s".into(), limits: vec![limit.clone()] };
            let allowed = crate::judge::lateness(&stack);
            prop_assert_eq!((allowed.free_us, allowed.mended_us), (4_000, 80_000));
            let spacing = [spacing(&limit)];
            let (mut state, mut now, mut departures) = (on_pace_from(0), 10_000_000, Vec::new());
            let mut leaving = std::collections::BTreeSet::new();
            let mut lateness = lateness.into_iter();
            for (step, calls) in steps {
                now += step;
                while let Some(&(at, late)) = leaving.first().filter(|(at, _)| *at <= now) {
                    leaving.pop_first();
                    if late > allowed.free_us { state.late(late - allowed.free_us); }
                    departures.push(at);
                }
                if let Decision::Slots(slots) = decide(&mut state, &spacing, &vec![1; calls], now) {
                    leaving.extend(slots.into_iter().zip(&mut lateness).map(|(slot, late)| (slot + late, late)));
                }
            }
            departures.sort_unstable();
            for window in departures.windows(21) {
                let span = window[20] - window[0];
                prop_assert!(span >= 1_000_000 + allowed.free_us, "21 calls within {span} us");
            }
        }

        /// A known state never keeps a call waiting that every limit would let go.
        #[test]
        fn a_call_leaves_at_once_when_every_limit_is_on_pace(tat in 0u64..2_000_000, now in 0u64..2_000_000) {
            let decision = decide(&mut on_pace_from(tat), &[SPACING], &[1], now);
            if tat <= now + LEAD_US {
                prop_assert_eq!(decision, Decision::Slots(vec![now + LEAD_US]));
            }
        }
    }
}
