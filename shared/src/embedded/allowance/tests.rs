use proptest::prelude::*;

use super::*;
use crate::{
    embedded::file::{self, Use},
    gcra::{CLOCK_STEP_US, HORIZON_US},
    limiter::{Limit, MICRO, Quota, Unit},
};

fn limit(calls: u32, unit: Unit, burst: u32) -> Limit {
    Limit { unit, burst, jitter_ms: Some(0.0), ..Limit::per_second("rate", calls) }
}

/// Processes of one file, on a clock of the test's own.
struct Fleet {
    db: Connection,
    stack: Stack,
    allowances: Vec<Option<Allowance>>,
    /// Every booking that asked the disk.
    bookings: usize,
    _folder: tempfile::TempDir,
}

impl Fleet {
    fn new(limit: Limit, size: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let db = file::open(&folder.path().join("state"), Use::Write).unwrap();
        // What is kept is what is tested here, not how long a disk takes.
        db.pragma_update(None, "synchronous", "off").unwrap();
        let stack = Stack { name: "s".into(), limits: vec![limit] };
        Self { db, stack, allowances: vec![None; size], bookings: 0, _folder: folder }
    }

    /// As the limiter does it: out of the allowance, else from the disk.
    fn ask(&mut self, process: usize, calls: &[u32], now_us: u64) -> Vec<u64> {
        let rules = judge::rules(&self.stack, now_us, &std::collections::BTreeMap::new()).unwrap();
        let calls: Vec<Weight> = calls.iter().map(|models| Weight::of_models(*models)).collect();
        let costs: Vec<Vec<u64>> = calls.iter().map(|call| judge::costs(&self.stack, *call)).collect();
        let own = &mut self.allowances[process];
        let at_hand = own.as_mut().and_then(|own| own.give_out(&rules, &costs, now_us));
        let decision = at_hand.unwrap_or_else(|| {
            self.bookings += 1;
            let moment = Moment { now_us, lead_us: LEAD_US, lost: false };
            let booked = book(&self.db, &self.stack, &calls, own.take(), moment).unwrap().unwrap();
            *own = Some(booked.allowance);
            booked.decision
        });
        match decision {
            Decision::Slots { at, .. } => at,
            Decision::ComeBack { .. } => Vec::new(),
        }
    }
}

const START: u64 = 10_000_000;

#[test]
fn at_a_high_rate_the_disk_is_asked_a_few_times_a_second_and_no_slot_is_left_out() {
    let mut fleet = Fleet::new(limit(200, Unit::Call, 1), 1);
    let (mut now, mut slots) = (START, Vec::new());
    while now < START + 4_000_000 {
        // As a worker's desk asks: a few at a time, and past the horizon half of it later.
        let more = fleet.ask(0, &[1; 4], now);
        now += if more.is_empty() { HORIZON_US / 2 } else { 100 };
        slots.extend(more);
    }
    let gaps: Vec<u64> = slots.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(slots.len() >= 800 && gaps.iter().all(|gap| *gap == 5_000), "{} slots, {gaps:?}", slots.len());
    assert!(fleet.bookings <= slots.len() / 10, "{} bookings for {} slots", fleet.bookings, slots.len());
}

#[test]
fn where_several_book_none_takes_ahead_what_the_others_need() {
    let mut fleet = Fleet::new(limit(200, Unit::Call, 1), 2);
    let mut slots = Vec::new();
    // One is idle most of the time, the other hungry.
    for round in 0..100 {
        let now = START + round * 10_000;
        slots.extend(fleet.ask(0, &[1; 4], now));
        if round % 10 == 0 {
            slots.extend(fleet.ask(1, &[1], now));
        }
    }
    // What the hungry one holds in the end is no loss: it goes on.
    loop {
        let more = fleet.ask(0, &[1], START + 990_000);
        if more.is_empty() {
            break;
        }
        slots.extend(more);
    }
    slots.sort_unstable();
    let span = slots[slots.len() - 1] - slots[0];
    let used = (slots.len() - 1) as f64 * 5_000.0 / span as f64;
    assert!(used > 0.97, "{used:.3} of the limit");
}

#[test]
fn what_is_given_back_is_there_for_the_next_run() {
    let mut fleet = Fleet::new(limit(200, Unit::Call, 1), 2);
    let last = (0..4).flat_map(|_| fleet.ask(0, &[1; 4], START)).last().unwrap();
    let own = fleet.allowances[0].take().unwrap();
    assert!(own.given != own.bound, "nothing was taken ahead");
    own.give_back(&fleet.db, "s").unwrap();
    assert_eq!(fleet.ask(1, &[1], START), [last + 5_000]);
}

#[test]
fn of_a_quota_nothing_is_taken_ahead() {
    let day = Limit { quota: Some(Quota::Day), jitter_ms: None, ..limit(10, Unit::Call, 1) };
    let mut fleet = Fleet::new(day, 10);
    // Each process crashes with one call made.
    let made: usize = (0..10).map(|process| fleet.ask(process, &[1], START).len()).sum();
    assert_eq!(made, 10);
    assert!(fleet.ask(0, &[1], START).is_empty(), "an eleventh of ten");
}

#[test]
fn a_doubtful_clock_begins_behind_whatever_may_have_been_granted() {
    let mut fleet = Fleet::new(limit(200, Unit::Call, 1), 1);
    fleet.ask(0, &[1], START);
    let moment = Moment { now_us: START + 1, lead_us: LEAD_US, lost: true };
    let booked = book(&fleet.db, &fleet.stack, &[Weight::of_models(1)], None, moment).unwrap().unwrap();
    let bound = START + 1 + HORIZON_US + CLOCK_STEP_US + 5_000;
    assert!(matches!(booked.decision, Decision::ComeBack { at, .. } if at == bound), "{:?}", booked.decision);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whoever asks, when, and whoever crashes with an allowance in its hands: never above n units in any window.
    #[test]
    fn no_window_ever_holds_more_than_its_units(
        steps in proptest::collection::vec(
            (0u64..120_000, 0usize..3, proptest::collection::vec(1u32..4, 1..5), proptest::bool::weighted(0.1)), 1..150),
        burst in 3u32..8, per_model: bool,
    ) {
        let unit = if per_model { Unit::Model } else { Unit::Call };
        let mut fleet = Fleet::new(limit(20, unit, burst), 3);
        let (mut now, mut units) = (START, Vec::new());
        for (step, process, calls, crashes) in steps {
            now += step;
            let slots = fleet.ask(process, &calls, now);
            for (slot, models) in slots.iter().zip(&calls) {
                prop_assert!(*slot > now && *slot <= now + HORIZON_US);
                units.extend(std::iter::repeat_n(*slot, (Weight::of_models(*models).micros(unit) / MICRO) as usize));
            }
            if crashes {
                fleet.allowances[process] = None;
            }
        }
        units.sort_unstable();
        for window in units.windows(21) {
            prop_assert!(window[20] - window[0] >= 1_000_000, "21 units within {} us", window[20] - window[0]);
        }
    }

    /// Late calls, within what may be mended, never crowd a window: what any process books later makes room.
    #[test]
    fn late_calls_never_crowd_a_window(
        steps in proptest::collection::vec((1u64..200_000, 0usize..2, 1usize..4), 1..120),
        lateness in proptest::collection::vec(prop_oneof![4 => 0u64..4_000, 1 => 4_000u64..80_000], 400),
    ) {
        let limit = Limit { jitter_ms: Some(8.0), ..limit(20, Unit::Call, 1) };
        let mut fleet = Fleet::new(limit, 2);
        let allowed = judge::lateness(&fleet.stack, None);
        let (mut now, mut departures) = (START, Vec::new());
        let mut leaving: std::collections::BTreeSet<(u64, u64, usize)> = std::collections::BTreeSet::new();
        let mut lateness = lateness.into_iter();
        for (step, process, calls) in steps {
            now += step;
            while let Some(&(at, late, whose)) = leaving.first().filter(|(at, ..)| *at <= now) {
                leaving.pop_first();
                if late > allowed.free_us {
                    let own = fleet.allowances[whose].take();
                    fleet.allowances[whose] = move_back(&fleet.db, "s", own, late - allowed.free_us).unwrap();
                }
                departures.push(at);
            }
            for slot in fleet.ask(process, &vec![1; calls], now) {
                let late = lateness.next().unwrap_or(0);
                leaving.insert((slot + late, late, process));
            }
        }
        departures.sort_unstable();
        for window in departures.windows(21) {
            let span = window[20] - window[0];
            prop_assert!(span >= 1_000_000 + allowed.free_us, "21 calls within {span} us");
        }
    }
}
