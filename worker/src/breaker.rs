//! The breaker of an account: an API that is down is left alone by the whole fleet, and one call looks when it is back.
//!
//! Each worker counts its own failures. The pause itself is a hold-off of the account's stack, so it holds for everybody, and
//! at its end one probe goes ahead: a probe that fails pauses for twice as long, one that is answered lets all others follow.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pixfleet_shared::limiter::{HoldOff, RateLimiter, Stack};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    classify::{Class, Verdict},
    client::{CallOutcome, Content},
};

/// Ends of hold-offs that are this near are the same one.
const SAME: Duration = Duration::from_millis(20);

/// When an API counts as down, and for how long it is left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// So many calls of one worker that fail in a row (a 5xx, no connection, no answer, a cut one) pause the account for the
    /// whole fleet, 1 to 10000; 0 switches the breaker off. Default: 10.
    #[schemars(range(min = 0, max = 10_000))]
    pub failures: u32,
    /// The first pause, in milliseconds; one call looks at its end, and each time that it fails the pause is twice as long.
    /// Default: 5000.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub pause_ms: u64,
    /// The longest pause, in milliseconds; at least `pause_ms`. Default: 300000, five minutes.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub longest_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { failures: 10, pause_ms: 5_000, longest_ms: 300_000 }
    }
}

impl Settings {
    /// What is wrong with the numbers: the field, and what to give instead.
    pub(crate) fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if !(1..=3_600_000).contains(&self.pause_ms) {
            faults.push(("breaker.pause_ms", "give 1 to 3600000".to_owned()));
        }
        if !(self.pause_ms..=3_600_000).contains(&self.longest_ms) {
            faults.push(("breaker.longest_ms", "give breaker.pause_ms to 3600000".to_owned()));
        }
        faults
    }

    fn bounded(&self, pause: Duration) -> Duration {
        pause.max(Duration::from_millis(self.pause_ms)).min(Duration::from_millis(self.longest_ms))
    }
}

/// What a call says of the API as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// It answers, if only to refuse.
    Alive,
    /// It does not.
    Down,
}

impl Sign {
    /// What this outcome is a sign of. A 5xx that the provider's own rules explain is its word on the call, not a breakdown.
    pub(crate) fn of(outcome: &CallOutcome, verdict: &Verdict) -> Self {
        let failed = matches!(verdict.class, Class::Transient | Class::Ambiguous);
        match &outcome.answer {
            Err(_) => Self::Down,
            Ok(reply) if failed && reply.status >= 500 => Self::Down,
            Ok(reply) if failed && matches!(reply.content, Content::Cut(_)) => Self::Down,
            Ok(_) => Self::Alive,
        }
    }
}

/// One account's breaker, as this worker knows it.
#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Failures without an answer in between, since the last pause.
    in_a_row: u32,
    /// How long the last pause of the stack was, whoever called for it.
    last: Duration,
    /// This worker said that the API is down.
    open: bool,
}

/// What follows from a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Nothing.
    Nothing,
    /// The stack is paused for so long; `news` where this worker did not know that the API is down.
    Pause { length: Duration, news: bool },
    /// The API is back, and this worker had said that it is down.
    Back,
}

impl Breaker {
    /// Takes note of a call. `probe`: it went ahead of the others after a pause; `held`: its stack is paused at this moment.
    pub(crate) fn note(&self, settings: &Settings, sign: Sign, probe: bool, held: bool) -> Then {
        let mut known = self.lock();
        match sign {
            Sign::Alive => {
                known.in_a_row = 0;
                if std::mem::take(&mut known.open) { Then::Back } else { Then::Nothing }
            }
            Sign::Down if settings.failures == 0 => Then::Nothing,
            Sign::Down if probe => {
                known.last = settings.bounded(known.last.saturating_mul(2));
                known.opened()
            }
            // It left before the pause, which others called for: it says nothing new.
            Sign::Down if held => Then::Nothing,
            Sign::Down => {
                known.in_a_row += 1;
                if known.in_a_row < settings.failures {
                    return Then::Nothing;
                }
                known.last = settings.bounded(Duration::ZERO);
                known.opened()
            }
        }
    }

    /// Somebody paused the stack for so long.
    fn seen(&self, pause: Duration) {
        self.lock().last = pause;
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn opened(&mut self) -> Then {
        self.in_a_row = 0;
        let news = !std::mem::replace(&mut self.open, true);
        Then::Pause { length: self.last, news }
    }
}

impl Then {
    /// The pause of the whole fleet that follows.
    pub(crate) fn hold_off(self) -> Option<HoldOff> {
        match self {
            Self::Pause { length, .. } => Some(HoldOff { pause: length, probe: true, crowded: false }),
            Self::Nothing | Self::Back => None,
        }
    }

    /// Says it once for each breakdown.
    pub(crate) fn log(self, stack: &str, why: &str) {
        match self {
            Self::Pause { length, news: true } => warn!(
                stack,
                why,
                pause_ms = length.as_millis() as u64,
                "the API is down: the fleet leaves it alone, and one call looks when it is back"
            ),
            Self::Back => info!(stack, "the API answers again"),
            Self::Pause { .. } | Self::Nothing => {}
        }
    }
}

/// Hears of pauses of the stack that others called for, until `stop`: a probe that fails doubles the last one, whoever it is.
pub(crate) async fn listen(
    breaker: Arc<Breaker>,
    settings: Settings,
    limiter: Arc<dyn RateLimiter>,
    stack: Stack,
    stop: CancellationToken,
) {
    let mut changes = limiter.changes();
    let mut known: Option<Instant> = None;
    while let Some(Ok(())) = stop.run_until_cancelled(changes.changed()).await {
        let Some(until) = limiter.held_until(&stack) else { continue };
        let left = until.saturating_duration_since(Instant::now());
        // What a person ordered has no end, and a provider may ask for a day: those are no breaker's.
        let own = left <= Duration::from_millis(settings.longest_ms) + SAME;
        if own && known.is_none_or(|known| until > known + SAME) {
            known = Some(until);
            breaker.seen(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings() -> Settings {
        Settings { failures: 3, pause_ms: 100, longest_ms: 1_000 }
    }

    fn pause(then: Then) -> Option<u128> {
        then.hold_off().map(|hold_off| hold_off.pause.as_millis())
    }

    #[test]
    fn only_failures_in_a_row_open_it() {
        let breaker = Breaker::default();
        let note = |sign| breaker.note(&settings(), sign, false, false);
        for sign in [Sign::Down, Sign::Down, Sign::Alive, Sign::Down, Sign::Down] {
            assert_eq!(note(sign), Then::Nothing);
        }
        assert_eq!(note(Sign::Down), Then::Pause { length: Duration::from_millis(100), news: true });
        assert_eq!(note(Sign::Alive), Then::Back);
        assert_eq!(note(Sign::Alive), Then::Nothing, "said once");
    }

    #[test]
    fn failures_of_calls_that_left_before_the_pause_say_nothing_new() {
        let breaker = Breaker::default();
        for _ in 0..100 {
            assert_eq!(breaker.note(&settings(), Sign::Down, false, true), Then::Nothing);
        }
    }

    #[test]
    fn each_probe_that_fails_doubles_the_pause_whoever_called_for_the_last_one() {
        let (breaker, elsewhere) = (Breaker::default(), Breaker::default());
        for _ in 0..2 {
            breaker.note(&settings(), Sign::Down, false, false);
        }
        assert_eq!(pause(breaker.note(&settings(), Sign::Down, false, false)), Some(100));
        assert_eq!(pause(breaker.note(&settings(), Sign::Down, true, false)), Some(200));
        elsewhere.seen(Duration::from_millis(200));
        assert_eq!(pause(elsewhere.note(&settings(), Sign::Down, true, false)), Some(400));
        assert_eq!(pause(elsewhere.note(&settings(), Sign::Down, true, false)), Some(800));
        assert_eq!(pause(elsewhere.note(&settings(), Sign::Down, true, false)), Some(1_000), "and no longer");
    }

    #[test]
    fn it_can_be_switched_off() {
        let (breaker, off) = (Breaker::default(), Settings { failures: 0, ..settings() });
        for probe in [false, true, false, false] {
            assert_eq!(breaker.note(&off, Sign::Down, probe, false), Then::Nothing);
        }
    }

    proptest! {
        #[test]
        fn every_pause_is_within_its_bounds_and_a_failed_probe_always_pauses(
            calls in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 1..60),
        ) {
            let (breaker, settings) = (Breaker::default(), settings());
            for (alive, probe, held) in calls {
                let sign = if alive { Sign::Alive } else { Sign::Down };
                let then = breaker.note(&settings, sign, probe, held);
                prop_assert!(!alive || then.hold_off().is_none());
                prop_assert!(alive || !probe || then.hold_off().is_some());
                if let Some(ms) = pause(then) {
                    prop_assert!((100..=1_000).contains(&ms));
                }
            }
        }
    }
}
