//! When a failed job is tried again, and until when. Pure: the randomness comes in as a number, the time as a moment.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pixfleet_shared::job::Job;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest pause that can be given: the queue's longest tier.
const LONGEST_MS: u64 = 3_600_000;

/// How often, and how patiently, a failed call is tried again. A provider's own `retry` table goes before it, field by field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Calls that a job may spend before it becomes a dead letter, 1 to 100. A 429 or a pause is not one. Default: 5.
    #[schemars(range(min = 1, max = 100))]
    pub attempts: u32,
    /// The longest first pause, in milliseconds; each further one may be twice as long. Default: 1000.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub base_ms: u64,
    /// The longest pause of all, in milliseconds. Default: 600000.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub cap_ms: u64,
    /// How a pause is drawn: `full` (from nothing up to it), `equal` (from its half up to it) or `none` (just it). Default:
    /// `full`, and `none` where `pauses_ms` is given.
    pub jitter: Option<Jitter>,
    /// The pauses one by one, in milliseconds, up to an hour each, instead of `base_ms` and `cap_ms`; the last one counts for
    /// every further attempt. Default: empty, so pauses are doubled.
    pub pauses_ms: Vec<u64>,
    /// So long after it was enqueued no call is made for a job any more, in seconds: it becomes a dead letter then. A job that
    /// was sent again from the dead letters is not bound by it. Default: none.
    #[schemars(range(min = 1, max = 31_536_000))]
    pub deadline_s: Option<u64>,
    /// What differs after a call that may have been paid for, and whose answer was not seen.
    pub ambiguous: Pauses,
}

/// How the length of a pause is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Jitter {
    /// From nothing up to the pause: jobs that failed together do not come back together.
    Full,
    /// From half of the pause up to it.
    Equal,
    /// The pause itself.
    None,
}

/// What differs of the pauses; what is left out is as above.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pauses {
    /// The longest first pause, in milliseconds. Default: none, as above.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub base_ms: Option<u64>,
    /// The longest pause of all, in milliseconds. Default: none, as above.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub cap_ms: Option<u64>,
    /// How a pause is drawn: `full`, `equal` or `none`. Default: none, as above.
    pub jitter: Option<Jitter>,
    /// The pauses one by one, in milliseconds. Default: none, as above.
    pub pauses_ms: Option<Vec<u64>>,
}

/// What a provider says of retries; what it leaves out is `worker.retry`'s.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Overrides {
    /// Calls that a job may spend before it becomes a dead letter, 1 to 100. Default: `worker.retry.attempts`.
    #[schemars(range(min = 1, max = 100))]
    pub attempts: Option<u32>,
    /// The longest first pause, in milliseconds. Default: `worker.retry.base_ms`.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub base_ms: Option<u64>,
    /// The longest pause of all, in milliseconds. Default: `worker.retry.cap_ms`.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub cap_ms: Option<u64>,
    /// How a pause is drawn: `full`, `equal` or `none`. Default: `worker.retry.jitter`.
    pub jitter: Option<Jitter>,
    /// The pauses one by one, in milliseconds, instead of `base_ms` and `cap_ms`. Default: `worker.retry.pauses_ms`, unless
    /// `base_ms` or `cap_ms` is given here.
    pub pauses_ms: Option<Vec<u64>>,
    /// So long after it was enqueued no call is made for a job any more, in seconds. Default: `worker.retry.deadline_s`.
    #[schemars(range(min = 1, max = 31_536_000))]
    pub deadline_s: Option<u64>,
    /// What differs after a call that may have been paid for. Default: `worker.retry.ambiguous`.
    pub ambiguous: Pauses,
}

impl Overrides {
    /// What is wrong with the numbers: the field, and what to give instead.
    pub(crate) fn faults(&self) -> Vec<(&'static str, String)> {
        let pauses = |pauses: &Option<Vec<u64>>| {
            pauses.iter().flatten().all(|pause_ms| (1..=LONGEST_MS).contains(pause_ms))
        };
        let demands = [
            (
                self.attempts.is_none_or(|attempts| (1..=100).contains(&attempts)),
                "retry.attempts",
                "give 1 to 100",
            ),
            (pauses(&self.pauses_ms), "retry.pauses_ms", "a pause is 1 to 3600000"),
            (pauses(&self.ambiguous.pauses_ms), "retry.ambiguous.pauses_ms", "a pause is 1 to 3600000"),
        ];
        demands
            .into_iter()
            .filter(|demand| !demand.0)
            .map(|(_, field, why)| (field, why.to_owned()))
            .collect()
    }
}

/// Why a job is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lapse {
    /// The call failed, and was not paid for.
    Transient,
    /// It may have been paid for.
    Ambiguous,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            attempts: 5,
            base_ms: 1_000,
            cap_ms: 600_000,
            jitter: None,
            pauses_ms: Vec::new(),
            deadline_s: None,
            ambiguous: Pauses::default(),
        }
    }
}

impl Policy {
    /// This policy with what a provider says of its own.
    #[must_use]
    pub fn with(&self, own: &Overrides) -> Self {
        let general = Pauses {
            base_ms: own.base_ms,
            cap_ms: own.cap_ms,
            jitter: own.jitter,
            pauses_ms: own.pauses_ms.clone(),
        };
        let paused = self.paused(&general);
        Self {
            attempts: own.attempts.unwrap_or(self.attempts),
            deadline_s: own.deadline_s.or(self.deadline_s),
            ambiguous: self.ambiguous.with(&own.ambiguous),
            ..paused
        }
    }

    /// The pause after the failed attempt number `attempt` (from 1), or `None` when it was the last. `random` is 0 to 1.
    pub fn after(&self, attempt: u32, lapse: Lapse, random: f64) -> Option<Duration> {
        if attempt >= self.attempts {
            return None;
        }
        let own = (lapse == Lapse::Ambiguous).then(|| self.paused(&self.ambiguous));
        let Self { base_ms, cap_ms, pauses_ms, jitter, .. } = own.as_ref().unwrap_or(self);
        let before = attempt.saturating_sub(1);
        let ceiling_ms = match pauses_ms.get(before as usize).or(pauses_ms.last()) {
            Some(pause_ms) => *pause_ms,
            None => base_ms.saturating_mul(1 << before.min(32)).min(*cap_ms),
        };
        let exact = if pauses_ms.is_empty() { Jitter::Full } else { Jitter::None };
        let random = random.clamp(0.0, 1.0);
        let share = match jitter.unwrap_or(exact) {
            Jitter::Full => random,
            Jitter::Equal => 0.5 + random / 2.0,
            Jitter::None => 1.0,
        };
        let ceiling = Duration::from_millis(ceiling_ms.clamp(1, LONGEST_MS));
        Some(ceiling.mul_f64(share).max(Duration::from_millis(1)))
    }

    /// The moment after which no call is made for `job` any more.
    pub fn deadline(&self, job: &Job) -> Option<Timestamp> {
        let since = self.deadline_s.filter(|_| job.replays == 0).and_then(|seconds| {
            let lasts = SignedDuration::from_secs(i64::try_from(seconds).ok()?);
            job.enqueued_at.checked_add(lasts).ok()
        });
        [job.deadline, since].into_iter().flatten().min()
    }

    /// This policy with other pauses. Whoever gives a base or a cap means no explicit pauses of somebody else's.
    fn paused(&self, own: &Pauses) -> Self {
        let explicit = match &own.pauses_ms {
            Some(pauses) => pauses.clone(),
            None if own.base_ms.is_some() || own.cap_ms.is_some() => Vec::new(),
            None => self.pauses_ms.clone(),
        };
        Self {
            base_ms: own.base_ms.unwrap_or(self.base_ms),
            cap_ms: own.cap_ms.unwrap_or(self.cap_ms),
            jitter: own.jitter.or(self.jitter),
            pauses_ms: explicit,
            ..self.clone()
        }
    }
}

impl Pauses {
    fn with(&self, own: &Self) -> Self {
        let explicit = own.pauses_ms.clone();
        let kept = || self.pauses_ms.clone().filter(|_| own.base_ms.is_none() && own.cap_ms.is_none());
        Self {
            base_ms: own.base_ms.or(self.base_ms),
            cap_ms: own.cap_ms.or(self.cap_ms),
            jitter: own.jitter.or(self.jitter),
            pauses_ms: explicit.or_else(kept),
        }
    }
}

#[cfg(test)]
mod tests {
    use pixfleet_shared::job::{Image, Source};
    use proptest::prelude::*;

    use super::*;

    const TRANSIENT: Lapse = Lapse::Transient;

    fn job() -> Job {
        let image = Image { id: "i".into(), source: Source::Url("http://images.example/i.jpg".into()) };
        Job::new("b".parse().unwrap(), image, "p".into(), vec!["m".into()])
    }

    fn pauses(policy: &Policy, lapse: Lapse, random: f64) -> Vec<u128> {
        (1..6).filter_map(|n| policy.after(n, lapse, random)).map(|pause| pause.as_millis()).collect()
    }

    #[test]
    fn the_last_attempt_has_no_further_pause() {
        let policy = Policy { attempts: 3, ..Policy::default() };
        assert!(policy.after(1, TRANSIENT, 0.5).is_some() && policy.after(2, TRANSIENT, 0.5).is_some());
        assert_eq!(policy.after(3, TRANSIENT, 0.5), None);
    }

    #[test]
    fn the_ceiling_doubles_until_the_cap() {
        let policy = Policy { attempts: 100, base_ms: 1_000, cap_ms: 5_000, ..Policy::default() };
        assert_eq!(pauses(&policy, TRANSIENT, 1.0), [1_000, 2_000, 4_000, 5_000, 5_000]);
    }

    #[test]
    fn explicit_pauses_are_kept_to_and_the_last_one_goes_on() {
        let policy = Policy { attempts: 100, pauses_ms: vec![500, 7_000], ..Policy::default() };
        assert_eq!(pauses(&policy, TRANSIENT, 0.1), [500, 7_000, 7_000, 7_000, 7_000]);
        let drawn = Policy { jitter: Some(Jitter::Equal), ..policy };
        assert_eq!(pauses(&drawn, TRANSIENT, 0.0)[..2], [250, 3_500]);
    }

    #[test]
    fn each_jitter_draws_from_its_own_part_of_the_pause() {
        for (jitter, least, most) in
            [(Jitter::Full, 1, 1_000), (Jitter::Equal, 500, 1_000), (Jitter::None, 1_000, 1_000)]
        {
            let policy = Policy { jitter: Some(jitter), ..Policy::default() };
            let pause = |random| policy.after(1, TRANSIENT, random).unwrap().as_millis();
            assert_eq!((pause(0.0), pause(1.0)), (least, most), "{jitter:?}");
        }
    }

    #[test]
    fn a_provider_overrides_what_it_names_and_nothing_else() {
        let worker = Policy {
            attempts: 7,
            pauses_ms: vec![9_000],
            deadline_s: Some(60),
            ambiguous: Pauses { base_ms: Some(30_000), ..Pauses::default() },
            ..Policy::default()
        };
        let own = Overrides { attempts: Some(3), ..Overrides::default() };
        assert_eq!(worker.with(&own), Policy { attempts: 3, ..worker.clone() });
        assert_eq!(worker.with(&Overrides::default()), worker);
        let based = worker.with(&Overrides { base_ms: Some(100), ..Overrides::default() });
        assert_eq!(pauses(&based, TRANSIENT, 1.0)[..2], [100, 200], "a base means no explicit pauses");
    }

    #[test]
    fn a_call_that_may_have_been_paid_for_has_pauses_of_its_own() {
        let ambiguous = Pauses { pauses_ms: Some(vec![60_000]), ..Pauses::default() };
        let policy = Policy { ambiguous, ..Policy::default() };
        assert_eq!(pauses(&policy, Lapse::Ambiguous, 0.3), [60_000; 4]);
        assert_eq!(pauses(&policy, TRANSIENT, 1.0)[..2], [1_000, 2_000]);
    }

    #[test]
    fn the_earlier_deadline_counts_and_a_job_that_was_sent_again_has_only_its_own() {
        let policy = Policy { deadline_s: Some(60), ..Policy::default() };
        let mut job = job();
        let in_a_minute = job.enqueued_at + SignedDuration::from_secs(60);
        assert_eq!(policy.deadline(&job), Some(in_a_minute));
        assert_eq!(Policy::default().deadline(&job), None);
        job.deadline = Some(job.enqueued_at + SignedDuration::from_secs(5));
        assert_eq!(policy.deadline(&job), job.deadline);
        job.replays = 1;
        assert_eq!(policy.deadline(&job), job.deadline);
        job.deadline = None;
        assert_eq!(policy.deadline(&job), None);
    }

    fn any_jitter() -> impl Strategy<Value = Option<Jitter>> {
        prop_oneof![Just(None), Just(Some(Jitter::Full)), Just(Some(Jitter::Equal)), Just(Some(Jitter::None))]
    }

    fn any_pauses() -> impl Strategy<Value = Pauses> {
        let explicit = proptest::option::of(proptest::collection::vec(0u64..10_000_000, 0..4));
        let number = || proptest::option::of(1u64..=3_600_000);
        (number(), number(), any_jitter(), explicit).prop_map(|(base_ms, cap_ms, jitter, pauses_ms)| Pauses {
            base_ms,
            cap_ms,
            jitter,
            pauses_ms,
        })
    }

    proptest! {
        /// Whatever was set and overridden: a pause is there as long as there are attempts, never nothing, and within an hour.
        #[test]
        fn a_pause_is_never_nothing_and_never_above_the_cap(
            attempt in 1u32..120, random in -1.0f64..2.0, attempts in 1u32..=100, own in any_pauses(), other in any_pauses(),
            ambiguous: bool,
        ) {
            let overrides = Overrides {
                attempts: Some(attempts), base_ms: own.base_ms, cap_ms: own.cap_ms, jitter: own.jitter,
                pauses_ms: own.pauses_ms.clone(), deadline_s: None, ambiguous: other.clone(),
            };
            let policy = Policy::default().with(&overrides);
            let lapse = if ambiguous { Lapse::Ambiguous } else { Lapse::Transient };
            let pause = policy.after(attempt, lapse, random);
            prop_assert_eq!(pause.is_some(), attempt < attempts);
            if let Some(pause) = pause {
                prop_assert!(pause >= Duration::from_millis(1) && pause <= Duration::from_millis(LONGEST_MS));
                let explicit = [&own, &other].into_iter().any(|pauses| pauses.pauses_ms.as_ref().is_some_and(|some| !some.is_empty()));
                let cap_ms = own.cap_ms.unwrap_or(600_000).max(other.cap_ms.unwrap_or(0));
                prop_assert!(explicit || pause <= Duration::from_millis(cap_ms.max(1)));
            }
        }
    }
}
