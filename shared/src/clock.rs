//! The server's clock on this process's: Cristian's method, keeping the sample that bounds the error best.
//!
//! An answer that left at a, came back at b and read the server's clock as s in between says that s was somewhere
//! in `[a, b]`: the middle is wrong by half the round trip at most. Pure but for [`Clock`], which adds the process's
//! own clock.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    gcra::{Decision, HORIZON_US, Keeper, LEAD_US},
    limiter::{Reservation, Slot, Stack, Wait, Why},
};

/// Asked back this long before the moment that is free, so that it is booked before it comes.
const COME_BACK_AHEAD: Duration = Duration::from_micros(HORIZON_US / 2);

/// How far two clocks drift apart, in millionths: a sample's error grows by so much with its age.
const DRIFT_PPM: u64 = 100;
/// A contradiction up to this much is put down to a clock being slewed.
const SLEW_US: u64 = 1_000;
/// The longest lead that is asked for because round trips differ.
const MAX_SPREAD_LEAD_US: u64 = 100_000;
/// The longest lead, however slow the network is: some of the horizon must be left to book in.
const MAX_LEAD_US: u64 = HORIZON_US * 3 / 4;

/// A server's clock that jumps ahead by more than this puts what it booked in doubt.
const DOUBT_US: u64 = 20_000;

/// What an answer's time says about the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Observed {
    /// The clock goes on as it did, or was set back, which the server notices by itself.
    Sound,
    /// The server's clock has jumped ahead, or this process's stood still: by the one, time has passed in which
    /// nothing left, and by the other it has not.
    InDoubt,
}

/// One exchange: the server's clock less ours, and how wrong that may be.
#[derive(Clone, Copy, Debug)]
struct Sample {
    offset_us: i64,
    radius_us: u64,
    at_us: u64,
}

impl Sample {
    /// The bound of its error at a later moment.
    fn error_at(&self, local_us: u64) -> u64 {
        self.radius_us + local_us.saturating_sub(self.at_us) * DRIFT_PPM / 1_000_000
    }
}

/// The pure part: all times in microseconds since some moment of this process's clock.
#[derive(Debug, Default)]
struct Mapping {
    best: Option<Sample>,
    travel_us: Option<(u64, u64)>,
    /// When the last jump ahead was noticed: what was asked before is in doubt as well.
    jumped_us: Option<u64>,
}

impl Mapping {
    fn observe(&mut self, sent_us: u64, received_us: u64, server_us: u64) -> Observed {
        let round_trip = received_us.saturating_sub(sent_us);
        self.smooth(round_trip);
        let middle = sent_us + round_trip / 2;
        let sample = Sample {
            offset_us: server_us as i64 - middle as i64,
            radius_us: round_trip.div_ceil(2),
            at_us: received_us,
        };
        let Some(best) = self.best else {
            self.best = Some(sample);
            return Observed::Sound;
        };
        let by = sample.offset_us - best.offset_us;
        if by.unsigned_abs() > sample.radius_us + best.error_at(received_us) + SLEW_US {
            // No moment satisfies both: one of the clocks was set. The younger sample is right.
            self.best = Some(sample);
            if by > DOUBT_US as i64 {
                self.jumped_us = Some(received_us);
            }
        } else if sample.radius_us <= best.error_at(received_us) {
            self.best = Some(sample);
        }
        if self.jumped_us.is_some_and(|jumped| sent_us < jumped) {
            Observed::InDoubt
        } else {
            Observed::Sound
        }
    }

    /// Smoothed round trip and its spread, as TCP keeps them (RFC 6298).
    fn smooth(&mut self, round_trip: u64) {
        self.travel_us = Some(match self.travel_us {
            None => (round_trip, round_trip / 2),
            Some((mean, spread)) => {
                ((7 * mean + round_trip) / 8, (3 * spread + mean.abs_diff(round_trip)) / 4)
            }
        });
    }

    /// How far ahead a slot must be to be still ahead when the answer arrives.
    fn lead_us(&self) -> u64 {
        let (mean, spread) = self.travel_us.unwrap_or_default();
        // A network that is slow is waited for; a single hiccup is not.
        (LEAD_US + mean + 4 * spread).min(MAX_SPREAD_LEAD_US.max(LEAD_US + mean)).min(MAX_LEAD_US)
    }

    fn server_us(&self, local_us: u64) -> Option<u64> {
        Some(u64::try_from(local_us as i64 + self.best?.offset_us).unwrap_or(0))
    }

    fn local_us(&self, server_us: u64) -> Option<u64> {
        let local = server_us as i64 - self.best?.offset_us;
        Some(u64::try_from(local).unwrap_or(0))
    }
}

/// The server's clock as this process sees it.
pub(crate) struct Clock {
    origin: Instant,
    mapping: Mutex<Mapping>,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { origin: Instant::now(), mapping: Mutex::default() }
    }

    /// Learns from an exchange.
    pub(crate) fn observe(&self, sent: Instant, received: Instant, server_us: u64) -> Observed {
        let (sent, received) = (self.since_origin(sent), self.since_origin(received));
        self.lock().observe(sent, received, server_us)
    }

    /// The moment of this process's clock at which the server's shows `server_us`; now, before any exchange.
    pub(crate) fn at(&self, server_us: u64) -> Instant {
        match self.lock().local_us(server_us) {
            Some(local_us) => self.origin + Duration::from_micros(local_us),
            None => Instant::now(),
        }
    }

    /// What the server's clock shows at this process's `moment`; nothing before any exchange.
    pub(crate) fn server_us(&self, moment: Instant) -> Option<u64> {
        self.lock().server_us(self.since_origin(moment))
    }

    /// A decision on the server's clock as an answer on this process's, for a stack whose limits are `in_force`.
    pub(crate) fn reservation(&self, decision: &Decision, in_force: &Stack) -> Reservation {
        match decision {
            Decision::Slots { at, probe } => {
                let slot = |slot: &u64| Slot { at: self.at(*slot), probe: *probe };
                Reservation::Slots(at.iter().map(slot).collect())
            }
            Decision::ComeBack { at, why } => {
                let free_at = self.at(*at);
                // Behind a probe nothing is booked ahead: asked before its time is over, the answer is the same again.
                let ahead = if *why == Keeper::Probe { Duration::ZERO } else { COME_BACK_AHEAD };
                let ask_at = free_at.checked_sub(ahead).unwrap_or(free_at);
                Reservation::ComeBack(Wait { ask_at, free_at, why: Why::of(*why, in_force) })
            }
        }
    }

    /// Whether anything is known of the server's clock yet.
    pub(crate) fn is_set(&self) -> bool {
        self.lock().best.is_some()
    }

    /// How far ahead of its now the server must book.
    pub(crate) fn lead_us(&self) -> u64 {
        self.lock().lead_us()
    }

    fn since_origin(&self, moment: Instant) -> u64 {
        moment.saturating_duration_since(self.origin).as_micros() as u64
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Mapping> {
        self.mapping.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SERVER: u64 = 1_700_000_000_000_000;

    proptest! {
        /// However long each way takes, a moment is mapped wrong by half the best round trip at most.
        #[test]
        fn a_moment_is_mapped_to_within_half_the_best_round_trip(
            exchanges in proptest::collection::vec((0u64..100_000, 0u64..5_000, 0u64..5_000), 1..50),
        ) {
            let (mut mapping, mut local, mut best) = (Mapping::default(), 0, u64::MAX);
            for (pause, there, back) in exchanges {
                let sent = local + pause;
                local = sent + there + back;
                best = best.min(there + back);
                prop_assert_eq!(mapping.observe(sent, local, SERVER + sent + there), Observed::Sound);
            }
            let error = mapping.local_us(SERVER + 77_000_000).unwrap().abs_diff(77_000_000);
            // A worse sample may take over once the best one's age outweighs the difference.
            let aged = 50 * 110_000 * DRIFT_PPM / 1_000_000;
            prop_assert!(error <= best.div_ceil(2) + aged + 1, "{error} us off, best round trip {best} us");
        }
    }

    #[test]
    fn a_clock_that_is_set_is_followed_at_once_in_both_directions() {
        let mut mapping = Mapping::default();
        mapping.observe(0, 200, SERVER + 100);
        let jumped = mapping.observe(1_000, 1_200, SERVER + 1_100 + 3_000_000);
        assert_eq!(jumped, Observed::InDoubt);
        assert_eq!(mapping.local_us(SERVER + 3_005_000), Some(5_000));
        assert_eq!(mapping.observe(2_000, 2_200, SERVER + 2_100), Observed::Sound);
        assert_eq!(mapping.local_us(SERVER + 5_000), Some(5_000));
    }

    #[test]
    fn whatever_was_under_way_when_the_clock_jumped_is_in_doubt() {
        let mut mapping = Mapping::default();
        mapping.observe(0, 200, SERVER + 100);
        let jumped = SERVER + 3_000_000;
        assert_eq!(mapping.observe(1_000, 1_200, jumped + 1_100), Observed::InDoubt);
        assert_eq!(mapping.observe(1_050, 1_250, jumped + 1_150), Observed::InDoubt);
        assert_eq!(mapping.observe(1_300, 1_500, jumped + 1_400), Observed::Sound);
    }

    #[test]
    fn one_slow_answer_neither_moves_the_clock_nor_looks_like_a_step() {
        let mut mapping = Mapping::default();
        mapping.observe(0, 200, SERVER + 100);
        assert_eq!(mapping.observe(1_000, 401_000, SERVER + 1_050), Observed::Sound);
        assert_eq!(mapping.local_us(SERVER + 5_000), Some(5_000));
    }

    #[test]
    fn the_lead_covers_the_round_trip_and_stays_bounded() {
        let mut mapping = Mapping::default();
        for i in 0..50 {
            mapping.observe(i * 100_000, i * 100_000 + 20_000, SERVER + i * 100_000 + 10_000);
        }
        assert!((21_000..30_000).contains(&mapping.lead_us()), "{}", mapping.lead_us());
        mapping.observe(9_000_000, 29_000_000, SERVER + 19_000_000);
        assert_eq!(mapping.lead_us(), MAX_LEAD_US);
    }

    #[test]
    fn a_network_that_is_slow_is_waited_for_and_one_that_hiccups_is_not() {
        let mut mapping = Mapping::default();
        for i in 0..50 {
            mapping.observe(i * 600_000, i * 600_000 + 500_000, SERVER + i * 600_000 + 250_000);
        }
        assert!((500_000..520_000).contains(&mapping.lead_us()), "{}", mapping.lead_us());
        let mut mapping = Mapping::default();
        for i in 0..50 {
            mapping.observe(i * 1_000, i * 1_000 + 200, SERVER + i * 1_000 + 100);
        }
        mapping.observe(60_000, 560_000, SERVER + 310_000);
        assert_eq!(mapping.lead_us(), MAX_SPREAD_LEAD_US);
    }
}
