//! The decision of the reserving GCRA: when may the next calls leave? Pure, in whole microseconds and millionths of units.
//!
//! The Lua script of the Redis engine (`fleet/redis/reserve.lua`) is its twin; a test drives both with the same
//! traces. A rate keeps one number, its TAT (theoretical arrival time): the moment from which a call is back
//! on pace. A call of c units may leave at `TAT + T (c - 1) - tau` at the earliest, which is when a bucket of
//! `tau / T + 1` units holds c again, and moves the TAT by T times c. A quota keeps what is used ([`quota`](crate::quota)).

use std::collections::BTreeMap;

use crate::{
    judge::{Rule, Spacing},
    limit::MICRO,
    quota::Count,
};

/// How far ahead of now slots are booked.
pub const HORIZON_US: u64 = 800_000;
/// How far two Redis servers' clocks may differ after a failover.
pub const CLOCK_STEP_US: u64 = 250_000;
/// No slot is nearer than this: the answer has to travel back.
pub const LEAD_US: u64 = 1_000;
/// A probe that is not answered within this time is taken for lost, and another call is let through.
pub const PROBE_US: u64 = 10_000_000;

/// What is kept between decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// When it was last changed, on the server's clock.
    pub at_us: u64,
    /// Nothing leaves before this moment.
    pub held_until_us: u64,
    /// After a hold-off: what is still to be found out.
    pub probe: Probe,
    /// What is known of each limit, by its name. Of a limit that is not in it nothing is known.
    pub known: BTreeMap<String, Known>,
}

/// Whether one call goes ahead of the others, after a hold-off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Probe {
    /// Nobody has to.
    #[default]
    None,
    /// The next one does.
    Due,
    /// One did: the others wait for its answer, until this moment.
    Out(u64),
}

/// What is known of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Of a rate.
    Pace(Pace),
    /// Of a quota.
    Count(Count),
}

/// What is known of one rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    Slots {
        /// The moments.
        at: Vec<u64>,
        /// The one call that goes ahead after a hold-off.
        probe: bool,
    },
    /// Nothing was booked: the first call could leave at this moment, which is past the horizon.
    ComeBack {
        /// The moment.
        at: u64,
        /// What keeps it.
        why: Keeper,
    },
}

/// What keeps a call from leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// The limit of this index among the rules.
    Rule(usize),
    /// A hold-off.
    HoldOff,
    /// A probe that is not answered.
    Probe,
}

impl State {
    /// The state of a stack that has been idle for ever.
    pub fn idle(rules: &[Rule<'_>]) -> Self {
        let idle = |rule: &Rule<'_>| match rule {
            Rule::Paced(limit) => Known::Pace(Pace { interval_us: limit.interval_us, ..Pace::default() }),
            Rule::Counted(quota) => Known::Count(Count {
                start_us: quota.windows.start_us,
                end_us: quota.windows.end_us,
                ..Count::default()
            }),
        };
        Self {
            known: rules.iter().map(|rule| (rule.name().to_owned(), idle(rule))).collect(),
            ..Self::default()
        }
    }

    /// Moves every later slot back, because a call leaves so much after its own.
    ///
    /// The n-th call after it is a whole window away, and is not booked yet: see
    /// [`Lateness`](crate::judge::Lateness).
    pub fn late(&mut self, by_us: u64) {
        for known in self.known.values_mut() {
            if let Known::Pace(pace) = known {
                pace.tat_us += by_us;
            }
        }
    }

    /// Gives back what a call took from the quotas: `costs` by the limits' names, in millionths of units.
    pub fn refund<'a>(&mut self, costs: impl IntoIterator<Item = (&'a str, u64)>) {
        for (name, cost) in costs {
            if let Some(Known::Count(count)) = self.known.get_mut(name) {
                count.refund(cost);
            }
        }
    }

    /// Moves everything back with a clock that was set back: as if no time had passed since the last change. A quota is
    /// the calendar's and stays.
    fn follow_clock(&mut self, now_us: u64) {
        let back = self.at_us.saturating_sub(now_us);
        if back > 0 {
            self.held_until_us = self.held_until_us.saturating_sub(back);
            if let Probe::Out(until) = &mut self.probe {
                *until = until.saturating_sub(back);
            }
            for known in self.known.values_mut() {
                if let Known::Pace(pace) = known {
                    pace.tat_us = pace.tat_us.saturating_sub(back);
                }
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
        let bound = now + HORIZON_US + CLOCK_STEP_US + limit.charge_us(limit.heaviest);
        Self {
            tat_us: if moment.lost || known.is_none() { tat_us.max(bound) } else { tat_us },
            interval_us: limit.interval_us,
        }
    }

    /// When the limit lets a call go that is charged so much.
    fn earliest(&self, limit: &Spacing<'_>, charge_us: u64) -> u64 {
        (self.tat_us + charge_us).saturating_sub(limit.interval_us + limit.tolerance_us)
    }
}

impl Known {
    fn of(known: Option<Self>, rule: &Rule<'_>, moment: Moment) -> Self {
        match rule {
            Rule::Paced(limit) => {
                let known = if let Some(Self::Pace(pace)) = known { Some(pace) } else { None };
                Self::Pace(Pace::of(known, limit, moment))
            }
            Rule::Counted(quota) => {
                let known = if let Some(Self::Count(count)) = known { Some(count) } else { None };
                Self::Count(Count::of(known, quota, moment.now_us, moment.lost))
            }
        }
    }

    /// The first moment, from `slot` on, at which a call of `cost` may leave.
    fn earliest(&self, rule: &Rule<'_>, cost: u64, slot: u64) -> u64 {
        match (self, rule) {
            (Self::Pace(pace), Rule::Paced(limit)) => slot.max(pace.earliest(limit, limit.charge_us(cost))),
            (Self::Count(count), Rule::Counted(quota)) => count.earliest(quota, cost, slot),
            // `of` makes the one that fits.
            _ => slot,
        }
    }

    pub(crate) fn take(&mut self, rule: &Rule<'_>, cost: u64, slot: u64) {
        match (self, rule) {
            (Self::Pace(pace), Rule::Paced(limit)) => {
                pace.tat_us = pace.tat_us.max(slot) + limit.charge_us(cost);
            }
            (Self::Count(count), Rule::Counted(quota)) => count.take(quota, cost, slot),
            _ => {}
        }
    }
}

/// Books slots for `calls` (what each takes of each rule) on a state that is known to be whole.
pub fn decide(state: &mut State, rules: &[Rule<'_>], calls: &[Vec<u64>], now_us: u64) -> Decision {
    let moment = Moment { now_us, lead_us: LEAD_US, lost: false };
    decide_at(moment, state, rules, calls)
}

/// Books slots for `calls` (what each takes of each rule, in millionths of units), and moves `state` on. What it holds of
/// limits that are not in `rules` is forgotten: such a limit comes back as one of which nothing is known.
///
/// Every call has to fit ([`judge::fits`](crate::judge::fits)).
pub fn decide_at(moment: Moment, state: &mut State, rules: &[Rule<'_>], calls: &[Vec<u64>]) -> Decision {
    state.follow_clock(moment.now_us);
    let mut known: Vec<Known> =
        rules.iter().map(|rule| Known::of(state.known.get(rule.name()).copied(), rule, moment)).collect();
    let soonest = (moment.now_us + moment.lead_us).max(state.held_until_us);
    let decision = match state.probe {
        Probe::Out(until) if until > moment.now_us => Decision::ComeBack { at: until, why: Keeper::Probe },
        Probe::None => book(moment, soonest, rules, &mut known, calls),
        // One call goes ahead.
        Probe::Due | Probe::Out(_) => {
            match book(moment, soonest, rules, &mut known, &calls[..calls.len().min(1)]) {
                Decision::Slots { at, .. } => {
                    state.probe = at.last().map_or(state.probe, |slot| Probe::Out(slot + PROBE_US));
                    Decision::Slots { at, probe: true }
                }
                come_back @ Decision::ComeBack { .. } => come_back,
            }
        }
    };
    let names = rules.iter().map(|rule| rule.name().to_owned());
    let known = names.zip(known).collect();
    if moment.lost || state.known != known || matches!(decision, Decision::Slots { .. }) {
        state.known = known;
        state.at_us = moment.now_us;
    }
    decision
}

fn book(
    moment: Moment,
    soonest: u64,
    rules: &[Rule<'_>],
    known: &mut [Known],
    calls: &[Vec<u64>],
) -> Decision {
    let mut slots = Vec::with_capacity(calls.len());
    for costs in calls {
        let (slot, why) = earliest(soonest, rules, known, costs);
        if slot > moment.now_us + HORIZON_US {
            if slots.is_empty() {
                return Decision::ComeBack { at: slot, why };
            }
            break;
        }
        for ((rule, known), cost) in rules.iter().zip(known.iter_mut()).zip(costs) {
            known.take(rule, *cost, slot);
        }
        slots.push(slot);
    }
    Decision::Slots { at: slots, probe: false }
}

/// The first moment that suits every rule, and the rule that decided it.
pub(crate) fn earliest(soonest: u64, rules: &[Rule<'_>], known: &[Known], costs: &[u64]) -> (u64, Keeper) {
    let (mut slot, mut why) = (soonest, Keeper::HoldOff);
    loop {
        let before = slot;
        for (i, ((rule, known), cost)) in rules.iter().zip(known).zip(costs).enumerate() {
            let later = known.earliest(rule, *cost, slot);
            if later > slot {
                (slot, why) = (later, Keeper::Rule(i));
            }
        }
        // A quota that moved the slot into its next window may have moved it into another one's edge. Windows are few:
        // two rounds are all that is ever needed, and the last one changes nothing.
        if slot == before {
            return (slot, why);
        }
    }
}

/// Every call's costs where one call takes one unit of each rule.
pub fn units(rules: &[Rule<'_>], calls: usize) -> Vec<Vec<u64>> {
    vec![vec![MICRO; rules.len()]; calls]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        judge::{self, spacing},
        limit::{Limit, Stack, Unit, Weight},
    };
    use proptest::prelude::*;

    const SPACING: Spacing<'_> =
        Spacing { name: "rate", interval_us: 5_000, tolerance_us: 0, heaviest: MICRO };

    fn known() -> State {
        on_pace_from(0)
    }

    fn on_pace_from(tat_us: u64) -> State {
        let pace = Known::Pace(Pace { tat_us, interval_us: SPACING.interval_us });
        State { known: [("rate".to_owned(), pace)].into(), ..State::default() }
    }

    fn limit(unit: Unit, burst: u32) -> Limit {
        Limit { unit, burst, jitter_ms: Some(8.0), ..Limit::per_second("rate", 20) }
    }

    fn calls(spacings: &[Spacing<'_>], units: &[u64]) -> Vec<Vec<u64>> {
        units.iter().map(|units| vec![units * MICRO; spacings.len()]).collect()
    }

    fn decided(state: &mut State, spacings: &[Spacing<'_>], units: &[u64], now_us: u64) -> Decision {
        let rules: Vec<Rule<'_>> = spacings.iter().map(|spacing| Rule::Paced(*spacing)).collect();
        decide(state, &rules, &calls(spacings, units), now_us)
    }

    fn slots(at: Vec<u64>) -> Decision {
        Decision::Slots { at, probe: false }
    }

    fn come_back(at: u64) -> Decision {
        Decision::ComeBack { at, why: Keeper::Rule(0) }
    }

    #[test]
    fn the_first_decision_ever_is_taken_for_lost_state() {
        let bound = 1_000_000 + HORIZON_US + CLOCK_STEP_US + 5_000;
        assert_eq!(decided(&mut State::default(), &[SPACING], &[1], 1_000_000), come_back(bound));
    }

    #[test]
    fn calls_leave_one_interval_apart() {
        let mut state = known();
        let booked = decided(&mut state, &[SPACING], &[1, 1, 1], 1_000_000);
        assert_eq!(booked, slots(vec![1_001_000, 1_006_000, 1_011_000]));
    }

    #[test]
    fn past_the_horizon_nothing_is_booked_and_the_answer_says_when() {
        let mut state = on_pace_from(5_000_000);
        let before = state.clone();
        assert_eq!(decided(&mut state, &[SPACING], &[1], 0), come_back(5_000_000));
        assert_eq!(state.known, before.known);
    }

    #[test]
    fn a_hold_off_moves_every_slot_behind_it() {
        let mut state = State { held_until_us: 700_000, ..known() };
        assert_eq!(decided(&mut state, &[SPACING], &[1], 0), slots(vec![700_000]));
        let mut state = State { held_until_us: 7_000_000, ..known() };
        let later = Decision::ComeBack { at: 7_000_000, why: Keeper::HoldOff };
        assert_eq!(decided(&mut state, &[SPACING], &[1], 0), later);
    }

    #[test]
    fn after_a_hold_off_one_call_goes_ahead_and_the_others_wait_for_its_answer() {
        let mut state = State { held_until_us: 700_000, probe: Probe::Due, ..known() };
        let first = decided(&mut state, &[SPACING], &[1, 1, 1], 0);
        assert_eq!(first, Decision::Slots { at: vec![700_000], probe: true });
        let wait = Decision::ComeBack { at: 700_000 + PROBE_US, why: Keeper::Probe };
        assert_eq!(decided(&mut state, &[SPACING], &[1], 800_000), wait);
        let mut answered = State { probe: Probe::None, ..state.clone() };
        assert_eq!(decided(&mut answered, &[SPACING], &[1, 1], 800_000), slots(vec![801_000, 806_000]));
        // Nobody heard of its answer: another one is sent.
        let second = decided(&mut state, &[SPACING], &[1, 1], 700_000 + PROBE_US);
        assert_eq!(second, Decision::Slots { at: vec![701_000 + PROBE_US], probe: true });
    }

    #[test]
    fn a_call_of_six_units_waits_for_six() {
        let per_model = Spacing { heaviest: 6 * MICRO, tolerance_us: 25_000, ..SPACING };
        let mut state = known();
        assert_eq!(
            decided(&mut state, &[per_model], &[6, 6, 1], 0),
            slots(vec![LEAD_US, LEAD_US + 30_000, LEAD_US + 35_000])
        );
    }

    #[test]
    fn half_a_unit_takes_half_the_time() {
        let megabytes = Spacing { tolerance_us: 0, ..SPACING };
        let mut state = known();
        let halves = vec![vec![MICRO / 2]; 3];
        let booked = decide(&mut state, &[Rule::Paced(megabytes)], &halves, 1_000_000);
        assert_eq!(booked, slots(vec![1_001_000, 1_001_000, 1_003_500]));
    }

    #[test]
    fn a_limit_that_is_halved_makes_the_units_still_to_leave_twice_as_dear() {
        let mut state = on_pace_from(1_000_000);
        let halved = Spacing { interval_us: 10_000, ..SPACING };
        assert_eq!(decided(&mut state, &[halved], &[1], 0), come_back(2_000_000));
    }

    #[test]
    fn a_new_limit_in_a_known_stack_begins_at_its_upper_bound() {
        let day = Spacing { name: "day", interval_us: 60_000, ..SPACING };
        let bound = HORIZON_US + CLOCK_STEP_US + 60_000;
        let wait = Decision::ComeBack { at: bound, why: Keeper::Rule(1) };
        assert_eq!(decided(&mut known(), &[SPACING, day], &[1], 0), wait);
    }

    #[test]
    fn a_clock_set_back_by_an_hour_neither_frees_nor_blocks_a_call() {
        const HOUR: u64 = 3_600_000_000;
        let mut state = State { held_until_us: HOUR + 700_000, at_us: HOUR, ..on_pace_from(HOUR + 500_000) };
        assert_eq!(decided(&mut state, &[SPACING], &[1], 10), slots(vec![700_010]));
    }

    #[test]
    fn a_quota_is_spent_at_once_and_then_waits_for_its_next_window() {
        use crate::quota::{Counted, Windows};
        let windows = Windows { start_us: 0, end_us: 60_000_000, next_end_us: 120_000_000 };
        let quota = Counted { name: "minute", most: 3 * MICRO, guard_us: 1_000_000, windows, hint: None };
        let rules = [Rule::Paced(SPACING), Rule::Counted(quota)];
        let mut state = State::idle(&rules);
        let booked = decide(&mut state, &rules, &units(&rules, 5), 5_000_000);
        assert_eq!(booked, slots(vec![5_001_000, 5_006_000, 5_011_000]));
        let wait = Decision::ComeBack { at: 61_000_000, why: Keeper::Rule(1) };
        assert_eq!(decide(&mut state, &rules, &units(&rules, 1), 5_020_000), wait);
        state.refund([("minute", MICRO)]);
        assert_eq!(decide(&mut state, &rules, &units(&rules, 1), 5_020_000), slots(vec![5_021_000]));
    }

    #[test]
    fn a_quota_that_was_lost_is_what_the_asker_remembers() {
        use crate::quota::{Counted, Windows};
        let windows = Windows { start_us: 0, end_us: 60_000_000, next_end_us: 120_000_000 };
        let hint = Count { start_us: 0, end_us: 60_000_000, used: 3 * MICRO, next: 0 };
        let quota =
            Counted { name: "minute", most: 3 * MICRO, guard_us: 1_000_000, windows, hint: Some(hint) };
        let rules = [Rule::Counted(quota)];
        let wait = Decision::ComeBack { at: 61_000_000, why: Keeper::Rule(0) };
        assert_eq!(decide(&mut State::default(), &rules, &units(&rules, 1), 5_000_000), wait);
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
            let rules = [Rule::Paced(spacing(&limit))];
            let (mut state, mut now, mut units) = (State::default(), 10_000_000, Vec::new());
            for (step, calls, lost) in steps {
                now += step;
                if lost { state = State::default(); }
                let costs: Vec<Vec<u64>> =
                    calls.iter().map(|models| vec![Weight::of_models(*models).micros(limit.unit)]).collect();
                if let Decision::Slots { at, .. } = decide(&mut state, &rules, &costs, now) {
                    for (slot, cost) in at.iter().zip(&costs) {
                        prop_assert!(*slot > now && *slot <= now + HORIZON_US);
                        units.extend(std::iter::repeat_n(*slot, (cost[0] / MICRO) as usize));
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
            let limit = limit(Unit::Call, 1);
            let stack = Stack { name: "s".into(), limits: vec![limit.clone()] };
            let allowed = judge::lateness(&stack, None);
            prop_assert_eq!((allowed.free_us, allowed.mended_us), (4_000, 80_000));
            let rules = [Rule::Paced(spacing(&limit))];
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
                if let Decision::Slots { at, .. } = decide(&mut state, &rules, &units(&rules, calls), now) {
                    leaving.extend(at.into_iter().zip(&mut lateness).map(|(slot, late)| (slot + late, late)));
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
            let decision = decided(&mut on_pace_from(tat), &[SPACING], &[1], now);
            if tat <= now + LEAD_US {
                prop_assert_eq!(decision, slots(vec![now + LEAD_US]));
            }
        }
    }
}
