//! What a call's verdict means for its job. Pure: policy, job, verdict, and the randomness as a number.

use std::time::Duration;

use jiff::Timestamp;
use pixfleet_shared::{
    job::Job,
    limiter::HoldOff,
    queue::{Reason, Settlement, Then},
    result::{Answer, Call, Failure, ImageResult, Outcome},
};

use crate::{
    classify::{Class, Failed, Pause, Verdict},
    provider::Ambiguous,
    retry::{self, Lapse},
    step::Settled,
};

/// A provider that this worker does not know: somebody has to mend its settings.
pub(crate) const MENDING_PAUSE: Duration = Duration::from_secs(60);
/// A job that met a 429 is not the first to go when the pause is over.
const THROTTLED_PAUSE: Duration = Duration::from_secs(1);
/// After a pause as long as this one call looks first whether it is over.
const PROBED_FROM: Duration = Duration::from_secs(5);
/// After so many 429s in a row, without an answer in between, one call looks first.
const PROBED_AFTER: u32 = 4;

/// How a job's line ends, before it is settled.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    /// Every model is answered.
    Complete(Vec<ImageResult>),
    /// Its turn is over already: what followed from it is stored.
    Over,
    /// It was answered before, and this followed from it.
    Stored(Box<Settlement>),
    /// Its batch is paused: it is set aside.
    Park(Box<Job>),
    /// What is answered is published; the job, with what is missing, comes back.
    Retry { job: Box<Job>, results: Vec<ImageResult>, after: Duration },
    /// Nothing counted: the job comes back.
    Release { job: Box<Job>, after: Duration },
    /// It will not be tried again by itself.
    Dead { job: Box<Job>, results: Vec<ImageResult>, reason: Reason },
}

/// What decides between another attempt and a dead letter.
pub(crate) struct Policy<'a> {
    pub(crate) retry: &'a retry::Policy,
    pub(crate) ambiguous: Ambiguous,
    /// The pause after the account was refused: somebody has to mend that.
    pub(crate) refused: Duration,
    /// The moment of the decision.
    pub(crate) now: Timestamp,
    /// 0 to 1, for the jitter of a pause.
    pub(crate) random: f64,
}

impl Ending {
    /// The job comes back as it is, after `after`.
    pub(crate) fn release(job: &Job, after: Duration) -> Self {
        Self::Release { job: Box::new(job.clone()), after }
    }

    /// The verb that it is settled with.
    pub(crate) fn verb(&self) -> Settled {
        match self {
            Self::Complete(_) | Self::Over => Settled::Complete,
            Self::Retry { .. } => Settled::Retry,
            Self::Release { .. } => Settled::Release,
            Self::Dead { .. } => Settled::DeadLetter,
            Self::Park(_) => Settled::Park,
            Self::Stored(settlement) => match settlement.then {
                Then::Done => Settled::Complete,
                Then::Again(..) => Settled::Retry,
                Then::Dead(..) => Settled::DeadLetter,
                Then::Parked(_) => Settled::Park,
            },
        }
    }

    /// How its delivery is settled.
    pub(crate) fn settlement(&self) -> Settlement {
        self.clone().into_settlement()
    }

    /// How its delivery is settled, with nothing copied.
    pub(crate) fn into_settlement(self) -> Settlement {
        match self {
            Self::Stored(settlement) => *settlement,
            Self::Complete(results) => Settlement { results, then: Then::Done },
            Self::Over => Settlement { results: Vec::new(), then: Then::Done },
            Self::Retry { mut job, results, after } => {
                job.attempt += 1;
                Settlement { results, then: Then::Again(job, after) }
            }
            Self::Release { job, after } => Settlement { results: Vec::new(), then: Then::Again(job, after) },
            Self::Dead { job, results, reason } => Settlement { results, then: Then::Dead(job, reason) },
            Self::Park(job) => Settlement { results: Vec::new(), then: Then::Parked(job) },
        }
    }
}

/// The pause of the whole fleet after this verdict. `in_a_row` is how many calls, this one among them, were answered "too
/// much" without another answer in between; `interval` the time between two calls under the tightest rate.
///
/// Where the provider does not say when to come back, the pause is one interval, doubled with each further 429, up to what
/// it would be by default: one call that came a little early costs little, and a limit that is really spent is left alone.
pub(crate) fn fleet_pause(
    verdict: &Verdict,
    refused: Duration,
    in_a_row: u32,
    interval: Duration,
) -> Option<HoldOff> {
    match verdict.class {
        Class::Throttled => {
            let told = verdict.hold_off.unwrap_or(Pause { length: THROTTLED_PAUSE, said: false });
            let doubled = interval.saturating_mul(1 << in_a_row.saturating_sub(1).min(20));
            let pause = if told.said { told.length } else { told.length.min(doubled) };
            Some(HoldOff { pause, probe: pause >= PROBED_FROM || in_a_row >= PROBED_AFTER, crowded: true })
        }
        Class::Unauthorized => Some(HoldOff { pause: refused, probe: true, crowded: false }),
        Class::Ok | Class::Transient | Class::Rejected | Class::Ambiguous => None,
    }
}

/// How the job ends after a call with this verdict.
pub(crate) fn conclude(mut job: Job, call: &Call, verdict: Verdict, policy: &Policy<'_>) -> Ending {
    match verdict.class {
        // The hold-off keeps it at the desk.
        Class::Throttled => {
            job.throttled += 1;
            Ending::Release { job: Box::new(job), after: Duration::ZERO }
        }
        Class::Unauthorized => Ending::Release { job: Box::new(job), after: policy.refused },
        Class::Ambiguous => {
            let sorted = Sorted::of(&job, call, verdict.models);
            resend_or_dead(job, sorted, policy)
        }
        Class::Ok | Class::Transient | Class::Rejected => {
            let sorted = Sorted::of(&job, call, verdict.models);
            if sorted.is_paid_for_in_part() {
                return resend_or_dead(job, sorted, policy);
            }
            match (sorted.missing.is_empty(), sorted.rejected.is_empty()) {
                (false, _) => again_or_dead(job, sorted, Lapse::Transient, policy),
                (true, true) => Ending::Complete(sorted.done),
                (true, false) => dead(job, sorted, Reason::Rejected),
            }
        }
    }
}

/// How the job ends when no call was made, because of this side or of the picture.
pub(crate) fn conclude_uncalled(job: Job, class: Class, message: &str, policy: &Policy<'_>) -> Ending {
    let failed = |model: &String| (model.clone(), Err(Failed { class, message: message.to_owned() }));
    let sorted = Sorted::sort(&job, None, job.models.iter().map(failed).collect());
    if class == Class::Rejected {
        dead(job, sorted, Reason::Rejected)
    } else {
        again_or_dead(job, sorted, Lapse::Transient, policy)
    }
}

/// How the job ends when no call may be made any more, because what its batch may spend is spent.
pub(crate) fn conclude_spent(job: Job, message: &str) -> Ending {
    conclude_given_up(job, Reason::BudgetSpent, message)
}

/// How the job ends when its batch was cancelled: no call was made.
pub(crate) fn conclude_cancelled(job: &Job) -> Ending {
    let failure = Failure { class: "cancelled".to_owned(), message: "the batch was cancelled".to_owned() };
    Ending::Complete(without_a_call(job, Outcome::Cancelled, &failure))
}

/// How the job ends when workers died of it.
pub(crate) fn conclude_poison(job: Job, crashed: u32) -> Ending {
    let message = format!("{crashed} workers that had the job in hand died; their logs say how");
    conclude_given_up(job, Reason::Poison, &message)
}

/// How the job ends when this side gives it up: no call was made.
pub(crate) fn conclude_given_up(job: Job, reason: Reason, message: &str) -> Ending {
    let failure = Failure { class: reason.as_str().to_owned(), message: message.to_owned() };
    let results = without_a_call(&job, Outcome::Dead, &failure);
    Ending::Dead { job: Box::new(job), results, reason }
}

fn without_a_call(job: &Job, outcome: Outcome, failure: &Failure) -> Vec<ImageResult> {
    let result = |model: &String| ImageResult {
        failure: Some(failure.clone()),
        ..ImageResult::of(job, model, outcome)
    };
    job.models.iter().map(result).collect()
}

/// The models of a call, sorted by what becomes of them.
#[derive(Default)]
struct Sorted {
    done: Vec<ImageResult>,
    rejected: Vec<ImageResult>,
    /// As the dead results that they become when there are no more attempts.
    missing: Vec<ImageResult>,
}

fn is_ambiguous(result: &ImageResult) -> bool {
    result.failure.as_ref().is_some_and(|failure| failure.class == Class::Ambiguous.as_str())
}

impl Sorted {
    /// What is missing of those that nobody could read, or see, is not only given up: it may have been paid for.
    fn unknown(mut self) -> Self {
        for result in self.missing.iter_mut().filter(|result| is_ambiguous(result)) {
            result.outcome = Outcome::Ambiguous;
        }
        self
    }

    /// Whether something is missing that may have been paid for.
    fn is_paid_for_in_part(&self) -> bool {
        self.missing.iter().any(is_ambiguous)
    }

    fn of(job: &Job, call: &Call, models: Vec<(String, Result<Answer, Failed>)>) -> Self {
        Self::sort(job, Some(call), models)
    }

    fn sort(job: &Job, call: Option<&Call>, models: Vec<(String, Result<Answer, Failed>)>) -> Self {
        let mut sorted = Self::default();
        for (model, seen) in models {
            let outcome = match &seen {
                Ok(_) => Outcome::Ok,
                Err(failed) if failed.class == Class::Rejected => Outcome::Rejected,
                Err(_) => Outcome::Dead,
            };
            let mut result = ImageResult::of(job, &model, outcome);
            result.call = call.cloned();
            match seen {
                Ok(answer) => result.answer = Some(answer),
                Err(failed) => result.failure = Some(Failure::from(failed)),
            }
            match outcome {
                Outcome::Ok => sorted.done.push(result),
                Outcome::Rejected => sorted.rejected.push(result),
                _ => sorted.missing.push(result),
            }
        }
        sorted
    }
}

/// What is missing may have been paid for: the provider's policy decides.
fn resend_or_dead(mut job: Job, sorted: Sorted, policy: &Policy<'_>) -> Ending {
    let sent_before = job.ambiguous > 0;
    job.ambiguous += 1;
    let again = match policy.ambiguous {
        Ambiguous::Resend => true,
        Ambiguous::ResendOnce => !sent_before,
        Ambiguous::Park => false,
    };
    if again {
        again_or_dead(job, sorted, Lapse::Ambiguous, policy)
    } else {
        dead(job, sorted.unknown(), Reason::Ambiguous)
    }
}

/// What is missing is tried again, as long as there are attempts and time.
fn again_or_dead(mut job: Job, sorted: Sorted, lapse: Lapse, policy: &Policy<'_>) -> Ending {
    let deadline = policy.retry.deadline(&job);
    let in_time = |after: &Duration| {
        let next = policy.now.checked_add(*after);
        deadline.is_none_or(|deadline| next.is_ok_and(|next| next < deadline))
    };
    match policy.retry.after(job.attempt + 1, lapse, policy.random) {
        Some(after) if !in_time(&after) => dead(job, sorted, Reason::DeadlinePassed),
        Some(after) => {
            job.models = sorted.missing.into_iter().map(|result| result.model).collect();
            let results = sorted.done.into_iter().chain(sorted.rejected).collect();
            Ending::Retry { job: Box::new(job), results, after }
        }
        None => dead(job, sorted, Reason::AttemptsExhausted),
    }
}

/// The dead letter carries the models that have no answer; every model has its result.
fn dead(mut job: Job, sorted: Sorted, reason: Reason) -> Ending {
    let Sorted { done, rejected, missing } = sorted;
    job.models = rejected.iter().chain(&missing).map(|result| result.model.clone()).collect();
    let results = done.into_iter().chain(rejected).chain(missing).collect();
    Ending::Dead { job: Box::new(job), results, reason }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::SignedDuration;
    use pixfleet_shared::{
        id::Id,
        job::{Image, Source},
    };
    use proptest::prelude::*;

    use super::*;

    const CLASSES: [Class; 6] = [
        Class::Ok,
        Class::Throttled,
        Class::Transient,
        Class::Rejected,
        Class::Unauthorized,
        Class::Ambiguous,
    ];

    fn job(models: usize) -> Job {
        let image = Image { id: "i".into(), source: Source::Url("http://images.example/i.jpg".into()) };
        let models = (0..models).map(|n| format!("m{n}")).collect();
        Job::new("b".parse().unwrap(), image, "p".into(), models)
    }

    fn call() -> Call {
        Call {
            id: Id::of(&[b"call"]),
            sent_at: Timestamp::UNIX_EPOCH,
            duration_ms: 1.0,
            status: Some(200),
            attempt: 1,
            throttled: 0,
            cost: 0.0,
            limit_per_s: None,
            worker: "w".into(),
        }
    }

    fn verdict(class: Class, job: &Job, classes: &[Class]) -> Verdict {
        let seen = |class: Class| match class {
            Class::Ok => Ok(Answer::default()),
            class => Err(Failed { class, message: "why".into() }),
        };
        let models = job.models.iter().cloned().zip(classes.iter().copied().map(seen)).collect();
        Verdict { class, models, hold_off: None, message: "why".into(), charged: false }
    }

    fn ending(job: Job, class: Class, classes: &[Class], ambiguous: Ambiguous) -> Ending {
        let verdict = verdict(class, &job, classes);
        concluded(job, verdict, ambiguous, &retry::Policy::default())
    }

    fn concluded(job: Job, verdict: Verdict, ambiguous: Ambiguous, retry: &retry::Policy) -> Ending {
        let now = Timestamp::now();
        let policy = Policy { retry, ambiguous, refused: MENDING_PAUSE, now, random: 0.5 };
        conclude(job, &call(), verdict, &policy)
    }

    #[test]
    fn a_429_is_no_attempt_and_is_remembered() {
        let Ending::Release { job, .. } =
            ending(job(1), Class::Throttled, &[Class::Throttled], Ambiguous::Park)
        else {
            panic!("a release")
        };
        assert_eq!((job.attempt, job.throttled), (0, 1));
    }

    #[test]
    fn a_retry_carries_only_what_is_missing() {
        let classes = [Class::Ok, Class::Transient, Class::Rejected];
        let Ending::Retry { job, results, .. } = ending(job(3), Class::Ok, &classes, Ambiguous::Park) else {
            panic!("a retry")
        };
        assert_eq!(job.models, ["m1"]);
        assert_eq!(results.iter().map(|result| result.model.as_str()).collect::<Vec<_>>(), ["m0", "m2"]);
    }

    #[test]
    fn resend_once_sends_once_more_and_park_never() {
        let once = ending(job(1), Class::Ambiguous, &[Class::Ambiguous], Ambiguous::ResendOnce);
        let Ending::Retry { job: again, .. } = once else { panic!("a retry") };
        let twice = ending(*again, Class::Ambiguous, &[Class::Ambiguous], Ambiguous::ResendOnce);
        assert!(matches!(twice, Ending::Dead { reason: Reason::Ambiguous, .. }));
        let parked = ending(job(1), Class::Ambiguous, &[Class::Ambiguous], Ambiguous::Park);
        assert!(matches!(parked, Ending::Dead { reason: Reason::Ambiguous, .. }));
    }

    #[test]
    fn no_retry_is_scheduled_past_the_deadline() {
        let pauses = |pause_ms| retry::Policy { pauses_ms: vec![pause_ms], ..retry::Policy::default() };
        for (class, pause_ms, again) in [
            (Class::Transient, 1_000, true),
            (Class::Transient, 61_000, false),
            (Class::Ambiguous, 1_000, true),
            (Class::Ambiguous, 61_000, false),
        ] {
            let job = Job { deadline: Some(Timestamp::now() + SignedDuration::from_secs(60)), ..job(2) };
            let verdict = verdict(class, &job, &[Class::Ok, class]);
            match concluded(job, verdict, Ambiguous::Resend, &pauses(pause_ms)) {
                Ending::Retry { job, .. } => assert!(again && job.models == ["m1"]),
                Ending::Dead { job, results, reason } => {
                    assert!(!again && job.models == ["m1"] && results.len() == 2);
                    assert_eq!(reason, Reason::DeadlinePassed);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn of_an_answer_that_can_be_read_in_part_only_the_rest_is_asked_again_by_the_policy() {
        let classes = [Class::Ok, Class::Ambiguous, Class::Transient, Class::Rejected];
        let once = ending(job(4), Class::Ok, &classes, Ambiguous::ResendOnce);
        let Ending::Retry { job: again, results, .. } = once else { panic!("a retry") };
        assert_eq!(
            (again.models.as_slice(), again.ambiguous),
            (["m1".to_owned(), "m2".to_owned()].as_slice(), 1)
        );
        assert_eq!(results.iter().map(|result| result.model.as_str()).collect::<Vec<_>>(), ["m0", "m3"]);
        let parked = ending(job(4), Class::Ok, &classes, Ambiguous::Park);
        let Ending::Dead { job, results, reason: Reason::Ambiguous } = parked else {
            panic!("a dead letter")
        };
        let outcome = |model: &str| results.iter().find(|result| result.model == model).unwrap().outcome;
        assert_eq!(
            (outcome("m0"), outcome("m1"), outcome("m2")),
            (Outcome::Ok, Outcome::Ambiguous, Outcome::Dead)
        );
        assert_eq!(job.models, ["m3", "m1", "m2"]);
    }

    #[test]
    fn a_job_of_a_spent_budget_keeps_its_models_and_each_has_a_result_that_says_so() {
        let Ending::Dead { job, results, reason } = conclude_spent(job(2), "the budget is spent") else {
            panic!("a dead letter")
        };
        assert_eq!((job.models.len(), results.len(), reason), (2, 2, Reason::BudgetSpent));
        for result in results {
            let failure = result.failure.unwrap();
            assert_eq!((result.outcome, failure.class.as_str()), (Outcome::Dead, "budget-spent"));
            assert_eq!(failure.message, "the budget is spent");
        }
    }

    #[test]
    fn the_last_attempt_leaves_a_result_for_every_model() {
        let last = Job { attempt: 4, ..job(2) };
        let Ending::Dead { results, reason, .. } =
            ending(last, Class::Transient, &[Class::Transient; 2], Ambiguous::Park)
        else {
            panic!("a dead letter")
        };
        assert_eq!((results.len(), reason), (2, Reason::AttemptsExhausted));
    }

    proptest! {
        /// Whatever the verdict: each model has its result, or is still asked for, and never both.
        #[test]
        fn no_model_is_lost_and_none_is_settled_and_asked_again(
            classes in proptest::collection::vec(0usize..6, 1..6), class in 0usize..6, attempt in 0u32..6,
            ambiguous in 0u32..2, policy in 0usize..3,
        ) {
            let classes: Vec<Class> = classes.into_iter().map(|class| CLASSES[class]).collect();
            let job = Job { attempt, ambiguous, ..job(classes.len()) };
            let asked: BTreeSet<String> = job.models.iter().cloned().collect();
            let policy = [Ambiguous::Resend, Ambiguous::ResendOnce, Ambiguous::Park][policy];
            let ending = ending(job, CLASSES[class], &classes, policy);
            let results = ending.settlement().results;
            let settled: BTreeSet<String> = results.iter().map(|result| result.model.clone()).collect();
            let again: BTreeSet<String> = match &ending {
                Ending::Retry { job, .. } | Ending::Release { job, .. } => job.models.iter().cloned().collect(),
                _ => BTreeSet::new(),
            };
            prop_assert!(settled.is_disjoint(&again));
            prop_assert_eq!(settled.union(&again).cloned().collect::<BTreeSet<_>>(), asked);
        }
    }
}
