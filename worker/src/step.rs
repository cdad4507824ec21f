//! One job's straight line, and the one place that settles it.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use pixfleet_shared::{
    id::Id,
    job::Job,
    ledger::Begun,
    queue::{Delivery, QueueError, Reason, Unsettled},
    result::{Answer, Call, Failure, ImageResult, Outcome},
    telemetry::{CallLabels, ProviderLabel, ResultLabels},
};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use crate::{
    classify::{Class, Failed, Verdict, classify},
    client::CallOutcome,
    crew::{Crew, Serving},
    image::Prepared,
    provider::{Ambiguous, PreparedRequest},
};

/// A refused account, and a provider that this worker does not know: somebody has to mend something.
const MENDING_PAUSE: Duration = Duration::from_secs(60);
/// Time for a hold-off to be said to the fleet.
const HOLD_OFF_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two questions to a ledger that is away.
const LEDGER_PAUSE: Duration = Duration::from_millis(200);

/// How a job's line ends, before it is settled.
enum Ending {
    /// Every model is answered, or every result is out already.
    Complete(Vec<ImageResult>),
    /// What is answered is published; the job, with what is missing, comes back.
    Retry { job: Job, results: Vec<ImageResult>, after: Duration },
    /// Nothing counted: the job comes back.
    Release { job: Job, after: Duration },
    /// It will not be tried again by itself.
    Dead { job: Job, results: Vec<ImageResult>, reason: Reason },
}

/// How a delivery was settled: the verb, for metrics and the drain's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Settled {
    Complete,
    Retry,
    Release,
    DeadLetter,
    /// Not settled: the queue delivers the job again.
    Lost,
}

impl Settled {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Retry => "retry",
            Self::Release => "release",
            Self::DeadLetter => "dead_letter",
            Self::Lost => "lost",
        }
    }
}

/// Works on one delivery and settles it.
pub(crate) async fn step(crew: Arc<Crew>, delivery: Delivery) -> Settled {
    let (job, unsettled) = delivery.split();
    let id = job.id;
    let ending = match line(&crew, job).await {
        Ok(ending) | Err(ending) => ending,
    };
    let settled = settle(&crew, id, unsettled, ending).await;
    crew.metrics.settled.get_or_create(&pixfleet_shared::telemetry::SettleLabel { verb: settled.as_str() }).inc();
    settled
}

/// From a job to its ending. An `Err` is an ending, too: the line was left early.
async fn line(crew: &Crew, job: Job) -> Result<Ending, Ending> {
    if begun(crew, &job).await? == Begun::Settled {
        crew.metrics.already_settled.inc();
        debug!("already settled: nothing is spent");
        return Ok(Ending::Complete(Vec::new()));
    }
    let serving = serving(crew, &job)?;
    let since = Instant::now();
    let picture = picture(crew, serving, &job).await?;
    let request = request(crew, serving, &job, &picture).await?;
    drop(picture);
    let prepared = since.elapsed();
    slot(crew, serving, &job).await?;
    let outcome = call(crew, serving, &request).await;
    crew.recent.record(prepared + outcome.duration);
    let verdict = classify(&serving.provider, &outcome, &job.models, Timestamp::now());
    count(crew, &job, &outcome, &verdict);
    Ok(conclude(crew, serving, job, &outcome, verdict).await)
}

/// Asks the ledger until it answers. Without it nothing may be spent: the job waits, until the worker stops.
async fn begun(crew: &Crew, job: &Job) -> Result<Begun, Ending> {
    loop {
        match crew.engines.ledger.begin(job.id).await {
            Ok(begun) => return Ok(begun),
            Err(error) => debug!(%error, "waiting for the ledger"),
        }
        tokio::select! {
            () = sleep(LEDGER_PAUSE) => {}
            () = crew.stopping.cancelled() => return Err(Ending::Release { job: job.clone(), after: Duration::ZERO }),
        }
    }
}

fn serving<'a>(crew: &'a Crew, job: &Job) -> Result<&'a Serving, Ending> {
    crew.providers.get(&job.provider).ok_or_else(|| {
        let known = crew.providers.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        error!(provider = job.provider, known, "this worker does not know the job's provider: add it to its settings");
        Ending::Release { job: job.clone(), after: MENDING_PAUSE }
    })
}

async fn picture(crew: &Crew, serving: &Serving, job: &Job) -> Result<Prepared, Ending> {
    crew.images.prepare(&job.image.source, serving.provider.wanted()).await.map_err(|unusable| {
        let class = if unusable.is_transient() { Class::Transient } else { Class::Rejected };
        failed_before_a_call(crew, job, class, unusable.to_string())
    })
}

async fn request(
    crew: &Crew,
    serving: &Serving,
    job: &Job,
    picture: &Prepared,
) -> Result<PreparedRequest, Ending> {
    let made = serving.provider.request(job, &job.models, picture).await;
    made.map_err(|unaskable| failed_before_a_call(crew, job, Class::Rejected, unaskable.to_string()))
}

/// Waits for a slot and for its moment. A slot that is reached late, or in a hold-off, is forfeited.
async fn slot(crew: &Crew, serving: &Serving, job: &Job) -> Result<(), Ending> {
    let label = ProviderLabel { provider: job.provider.clone() };
    let since = Instant::now();
    loop {
        let booked = tokio::select! {
            slot = serving.desk.slot(job.models.len() as u32) => slot,
            () = crew.stopping.cancelled() => None,
        };
        let Some(slot) = booked else {
            return Err(Ending::Release { job: job.clone(), after: Duration::ZERO });
        };
        sleep_until(slot.at).await;
        let now = Instant::now();
        let held = crew.engines.limiter.held_until(&serving.stack).is_some_and(|until| until > now);
        let late = now.saturating_duration_since(slot.at);
        if !held && late <= serving.lateness {
            crew.metrics.slot_wait.get_or_create(&label).observe(since.elapsed().as_secs_f64());
            return Ok(());
        }
        debug!(late_us = late.as_micros() as u64, held, "slot forfeited");
        crew.metrics.slots_forfeited.get_or_create(&label).inc();
    }
}

async fn call(crew: &Crew, serving: &Serving, request: &PreparedRequest) -> CallOutcome {
    crew.metrics.in_flight.inc();
    let outcome = serving.client.send(request).await;
    crew.metrics.in_flight.dec();
    outcome
}

fn count(crew: &Crew, job: &Job, outcome: &CallOutcome, verdict: &Verdict) {
    let provider = job.provider.clone();
    let label = ProviderLabel { provider: provider.clone() };
    crew.metrics.call_duration.get_or_create(&label).observe(outcome.duration.as_secs_f64());
    crew.metrics.calls.get_or_create(&CallLabels { provider, class: verdict.class.as_str() }).inc();
    if verdict.charged {
        crew.metrics.cost.get_or_create(&label).inc_by(cost(crew, job));
    }
}

fn cost(crew: &Crew, job: &Job) -> f64 {
    crew.providers.get(&job.provider).map_or(0.0, |serving| serving.provider.tariff().of_call(job.models.len()))
}

/// What the verdict means for the job.
async fn conclude(crew: &Crew, serving: &Serving, mut job: Job, outcome: &CallOutcome, verdict: Verdict) -> Ending {
    let class = verdict.class;
    match class {
        Class::Throttled => {
            let pause = verdict.hold_off.unwrap_or(Duration::from_secs(1));
            info!(pause_ms = pause.as_millis() as u64, why = verdict.message, "over the limit: the fleet pauses");
            hold_off(crew, serving, pause).await;
            job.throttled += 1;
            Ending::Release { job, after: pause }
        }
        Class::Unauthorized => {
            error!(provider = job.provider, why = verdict.message, "the account is refused: the provider is stopped");
            hold_off(crew, serving, MENDING_PAUSE).await;
            Ending::Release { job, after: MENDING_PAUSE }
        }
        Class::Ambiguous => {
            let sent_before = job.ambiguous > 0;
            job.ambiguous += 1;
            let again = match serving.provider.ambiguous() {
                Ambiguous::Resend => true,
                Ambiguous::ResendOnce => !sent_before,
                Ambiguous::Park => false,
            };
            warn!(why = verdict.message, again, "the call left and no answer came: it may have been paid for");
            let results = Sorted::of(crew, serving, &job, outcome, verdict.models);
            if again { again_or_dead(crew, job, results) } else { dead(job, results, Reason::Ambiguous) }
        }
        Class::Ok | Class::Transient | Class::Rejected => {
            if class != Class::Ok {
                info!(class = class.as_str(), why = verdict.message, "the call failed");
            }
            let results = Sorted::of(crew, serving, &job, outcome, verdict.models);
            if !results.missing.is_empty() {
                return again_or_dead(crew, job, results);
            }
            if results.rejected.is_empty() {
                return Ending::Complete(results.done);
            }
            dead(job, results, Reason::Rejected)
        }
    }
}

async fn hold_off(crew: &Crew, serving: &Serving, pause: Duration) {
    let label = ProviderLabel { provider: serving.provider.name().to_owned() };
    crew.metrics.hold_offs.get_or_create(&label).inc();
    match timeout(HOLD_OFF_TIMEOUT, crew.engines.limiter.hold_off(&serving.stack, pause)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "the hold-off holds for this worker only"),
        Err(_) => warn!("the hold-off could not be said in time: it holds for this worker only"),
    }
}

/// The models of a call, sorted by what becomes of them.
#[derive(Default)]
struct Sorted {
    done: Vec<ImageResult>,
    rejected: Vec<ImageResult>,
    missing: Vec<(String, Failed, Option<Call>)>,
}

impl Sorted {
    fn of(
        crew: &Crew,
        serving: &Serving,
        job: &Job,
        outcome: &CallOutcome,
        models: Vec<(String, Result<Answer, Failed>)>,
    ) -> Self {
        let call = facts(crew, serving, job, outcome);
        let mut sorted = Self::default();
        for (model, seen) in models {
            match seen {
                Ok(answer) => {
                    let mut result = ImageResult::of(job, &model, Outcome::Ok);
                    (result.answer, result.call) = (Some(answer), Some(call.clone()));
                    sorted.done.push(result);
                }
                Err(failed) if failed.class == Class::Rejected => {
                    sorted.rejected.push(failure(job, &model, Outcome::Rejected, failed, Some(call.clone())));
                }
                Err(failed) => sorted.missing.push((model, failed, Some(call.clone()))),
            }
        }
        sorted
    }
}

fn failure(job: &Job, model: &str, outcome: Outcome, failed: Failed, call: Option<Call>) -> ImageResult {
    let mut result = ImageResult::of(job, model, outcome);
    (result.failure, result.call) = (Some(Failure::from(failed)), call);
    result
}

fn facts(crew: &Crew, serving: &Serving, job: &Job, outcome: &CallOutcome) -> Call {
    let tries = [job.attempt.to_be_bytes(), job.throttled.to_be_bytes()].concat();
    Call {
        id: Id::of(&[b"pixfleet.call.v1", &job.id.to_bytes(), &tries]),
        sent_at: outcome.sent_at,
        duration_ms: outcome.duration.as_secs_f64() * 1000.0,
        status: outcome.status(),
        attempt: job.attempt + 1,
        throttled: job.throttled,
        cost: cost(crew, job),
        limit_per_s: serving.stack.rate_per_s(job.models.len() as u32),
        worker: crew.name.clone(),
    }
}

/// A failure of this side: no call was made, and none is paid for.
fn failed_before_a_call(crew: &Crew, job: &Job, class: Class, message: String) -> Ending {
    info!(class = class.as_str(), why = message, "no call was made");
    let mut sorted = Sorted::default();
    for model in &job.models {
        let failed = Failed { class, message: message.clone() };
        if class == Class::Rejected {
            sorted.rejected.push(failure(job, model, Outcome::Rejected, failed, None));
        } else {
            sorted.missing.push((model.clone(), failed, None));
        }
    }
    if class == Class::Rejected {
        dead(job.clone(), sorted, Reason::Rejected)
    } else {
        again_or_dead(crew, job.clone(), sorted)
    }
}

/// What is missing is tried again, as long as there are attempts.
fn again_or_dead(crew: &Crew, mut job: Job, sorted: Sorted) -> Ending {
    match crew.config.retry.after(job.attempt + 1, rand::random()) {
        Some(after) => {
            job.models = sorted.missing.into_iter().map(|(model, ..)| model).collect();
            let results = sorted.done.into_iter().chain(sorted.rejected).collect();
            Ending::Retry { job, results, after }
        }
        None => dead(job, sorted, Reason::AttemptsExhausted),
    }
}

/// The dead letter carries the models that have no answer; every model has its result.
fn dead(mut job: Job, sorted: Sorted, reason: Reason) -> Ending {
    let Sorted { done, rejected, missing } = sorted;
    let given_up: Vec<_> =
        missing.into_iter().map(|(model, failed, call)| failure(&job, &model, Outcome::Dead, failed, call)).collect();
    job.models = rejected.iter().chain(&given_up).map(|result| result.model.clone()).collect();
    Ending::Dead { job, results: done.into_iter().chain(rejected).chain(given_up).collect(), reason }
}

/// The one place that settles.
async fn settle(crew: &Crew, id: Id, unsettled: Unsettled, ending: Ending) -> Settled {
    let labels = result_labels(&ending);
    let (settled, outcome) = match ending {
        Ending::Complete(results) => (Settled::Complete, unsettled.complete(results).await),
        Ending::Retry { job, results, after } => (Settled::Retry, unsettled.retry(job, results, after).await),
        Ending::Release { job, after } => (Settled::Release, unsettled.release(job, after).await),
        Ending::Dead { job, results, reason } => {
            crew.metrics.attempts.observe(f64::from(job.attempt + 1));
            (Settled::DeadLetter, unsettled.dead_letter(job, results, reason).await)
        }
    };
    let stored = matches!(outcome, Ok(()) | Err(QueueError::Unacked(_)));
    if stored {
        for label in &labels {
            crew.metrics.results.get_or_create(label).inc();
        }
    }
    if stored && matches!(settled, Settled::Complete | Settled::DeadLetter) {
        // Lost, this mark costs at most one repeated call, and only if the job comes again.
        if let Err(error) = crew.engines.ledger.settled(id).await {
            debug!(%error, "the ledger could not be told");
        }
    }
    match outcome {
        Ok(()) => settled,
        Err(error) => {
            warn!(%error, "the delivery could not be settled");
            Settled::Lost
        }
    }
}

fn result_labels(ending: &Ending) -> Vec<ResultLabels> {
    let results = match ending {
        Ending::Complete(results) | Ending::Retry { results, .. } | Ending::Dead { results, .. } => results.as_slice(),
        Ending::Release { .. } => &[],
    };
    let label = |result: &ImageResult| ResultLabels {
        provider: result.provider.clone(),
        model: result.model.clone(),
        outcome: result.outcome.as_str(),
    };
    results.iter().map(label).collect()
}
