//! One job's straight line, and the one place that settles it.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use pixfleet_shared::{
    id::Id,
    job::Job,
    judge::Lateness,
    ledger::Begun,
    queue::{Delivery, QueueError, Unsettled},
    result::Call,
    telemetry::{CallLabels, ConnectionLabels, ProviderLabel, ResultLabels, SettleLabel},
};
use tokio::{
    sync::SemaphorePermit,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, error, info, warn};

use crate::{
    alarm,
    classify::{Class, Verdict, classify},
    client::{CallOutcome, Opened, Sent, Way},
    conclude::{Ending, MENDING_PAUSE, Policy, conclude, conclude_uncalled, fleet_pause},
    crew::{Crew, Serving},
    image::Prepared,
    provider::PreparedRequest,
};

/// Time for a hold-off to be said to the fleet.
const HOLD_OFF_TIMEOUT: Duration = Duration::from_secs(5);
/// What the limiter's answer may take when a late slot is mended.
const MENDING_MARGIN_US: u64 = 10_000;
/// Pause between two questions to a ledger that is away.
const LEDGER_PAUSE: Duration = Duration::from_millis(200);

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
    fn as_str(self) -> &'static str {
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
        Ok(ending) => ending,
        Err(early) => *early,
    };
    let settled = settle(&crew, id, unsettled, ending).await;
    crew.board.metrics.settled.get_or_create(&SettleLabel { verb: settled.as_str() }).inc();
    settled
}

/// The line was left before a call.
type Early = Box<Ending>;

/// From a job to its ending.
async fn line(crew: &Crew, job: Job) -> Result<Ending, Early> {
    if begun(crew, &job).await? == Begun::Settled {
        crew.board.metrics.already_settled.inc();
        debug!("already settled: nothing is spent");
        return Ok(Ending::Complete(Vec::new()));
    }
    let serving = serving(crew, &job)?;
    let since = Instant::now();
    let picture = picture(crew, serving, &job).await?;
    let request = request(crew, serving, &job, &picture).await?;
    drop(picture);
    let prepared = since.elapsed();
    let room = room(crew, serving, &job).await?;
    let leave = slot(crew, serving, &job, &request).await?;
    let outcome = call(crew, serving, &request, leave).await;
    drop(room);
    crew.recent.record(prepared + outcome.duration);
    let verdict = classify(&serving.provider, &outcome, &job.models, Timestamp::now());
    count(crew, serving, &job, &outcome, &verdict);
    let policy = policy(crew, serving);
    if let Some(pause) = fleet_pause(&verdict, policy.refused) {
        hold_off(crew, serving, pause).await;
    }
    let facts = facts(crew, serving, &job, &outcome);
    Ok(conclude(job, &facts, verdict, &policy))
}

/// Asks the ledger until it answers. Without it nothing may be spent: the job waits, until the worker stops.
async fn begun(crew: &Crew, job: &Job) -> Result<Begun, Early> {
    loop {
        match crew.engines.ledger.begin(job.id).await {
            Ok(begun) => return Ok(begun),
            Err(error) => debug!(%error, "waiting for the ledger"),
        }
        tokio::select! {
            () = sleep(LEDGER_PAUSE) => {}
            () = crew.stopping.cancelled() => return Err(Box::new(Ending::release(job, Duration::ZERO))),
        }
    }
}

fn serving<'a>(crew: &'a Crew, job: &Job) -> Result<&'a Serving, Early> {
    crew.providers.get(&job.provider).ok_or_else(|| {
        let known = crew.providers.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        error!(
            provider = job.provider,
            known, "this worker does not know the job's provider: add it to its settings"
        );
        Box::new(Ending::release(job, MENDING_PAUSE))
    })
}

async fn picture(crew: &Crew, serving: &Serving, job: &Job) -> Result<Prepared, Early> {
    crew.images.prepare(&job.image.source, serving.provider.wanted()).await.map_err(|unusable| {
        let class = if unusable.is_transient() { Class::Transient } else { Class::Rejected };
        uncalled(crew, serving, job, class, &unusable.to_string())
    })
}

async fn request(
    crew: &Crew,
    serving: &Serving,
    job: &Job,
    picture: &Prepared,
) -> Result<PreparedRequest, Early> {
    let made = serving.provider.request(job, &job.models, picture).await;
    made.map_err(|unaskable| uncalled(crew, serving, job, Class::Rejected, &unaskable.to_string()))
}

/// No call was made, and none is paid for.
fn uncalled(crew: &Crew, serving: &Serving, job: &Job, class: Class, why: &str) -> Early {
    info!(class = class.as_str(), why, "no call was made");
    Box::new(conclude_uncalled(job.clone(), class, why, &policy(crew, serving)))
}

fn policy<'a>(crew: &'a Crew, serving: &Serving) -> Policy<'a> {
    Policy {
        retry: &crew.config.retry,
        ambiguous: serving.provider.ambiguous(),
        refused: Duration::from_millis(crew.config.refused_ms),
        random: rand::random(),
    }
}

/// Waits for room among the calls under way, where the provider has a bound of its own.
async fn room<'a>(
    crew: &Crew,
    serving: &'a Serving,
    job: &Job,
) -> Result<Option<SemaphorePermit<'a>>, Early> {
    let Some(room) = &serving.room else {
        return Ok(None);
    };
    tokio::select! {
        // It is never closed.
        place = room.acquire() => Ok(place.ok()),
        () = crew.stopping.cancelled() => Err(Box::new(Ending::release(job, Duration::ZERO))),
    }
}

/// A slot whose moment has come.
struct Leave {
    /// The way to leave on.
    way: Way,
    /// The moment that was aimed at.
    at: Instant,
}

/// Waits for a slot and for its moment. A slot that is reached too late, or in a hold-off, is forfeited.
async fn slot(crew: &Crew, serving: &Serving, job: &Job, request: &PreparedRequest) -> Result<Leave, Early> {
    // A slot is not spent on opening the first connection.
    serving.client.ready(&request.url).await;
    let label = ProviderLabel { provider: job.provider.clone() };
    let since = Instant::now();
    loop {
        let booked = tokio::select! {
            slot = serving.desk.slot(job.models.len() as u32) => slot,
            () = crew.stopping.cancelled() => Ok(None),
        };
        // More models than the limits ever give at once: waiting would not help it.
        let booked =
            booked.map_err(|error| uncalled(crew, serving, job, Class::Rejected, &error.to_string()))?;
        let Some(slot) = booked else { return Err(Box::new(Ending::release(job, Duration::ZERO))) };
        // At its slot a call is to arrive, so it leaves before: all workers aim at the same moments of the API.
        let at = slot.at.checked_sub(serving.client.arrival().one_way()).unwrap_or(slot.at);
        sleep_until(at.checked_sub(serving.client.lead()).unwrap_or(at)).await;
        let way = serving.client.warm(&request.url);
        alarm::sleep_until(at).await;
        let held =
            crew.engines.limiter.held_until(&serving.stack).is_some_and(|until| until > Instant::now());
        if !held && in_time(crew, serving, at, &label).await {
            crew.board.metrics.slot_wait.get_or_create(&label).observe(since.elapsed().as_secs_f64());
            return Ok(Leave { way, at });
        }
        debug!(late_us = late_us(at), held, "slot forfeited");
        crew.board.metrics.slots_forfeited.get_or_create(&label).inc();
    }
}

/// Whether a call that was to leave `at` may still leave; where it is late, what is booked after it makes room first.
async fn in_time(crew: &Crew, serving: &Serving, at: Instant, label: &ProviderLabel) -> bool {
    let Lateness { free_us, mended_us, forfeit_us } = serving.lateness;
    let late = late_us(at);
    if late <= free_us {
        return true;
    }
    let told_by = late + MENDING_MARGIN_US;
    if told_by > mended_us || told_by - free_us >= forfeit_us {
        return false;
    }
    let by = Duration::from_micros(told_by - free_us);
    let told = timeout(by, crew.engines.limiter.late(&serving.stack, by)).await;
    let in_time = matches!(told, Ok(Ok(()))) && late_us(at) <= told_by;
    if in_time {
        crew.board.metrics.slots_mended.get_or_create(label).inc();
    }
    in_time
}

fn late_us(at: Instant) -> u64 {
    Instant::now().saturating_duration_since(at).as_micros() as u64
}

async fn call(crew: &Crew, serving: &Serving, request: &PreparedRequest, leave: Leave) -> CallOutcome {
    let metrics = &crew.board.metrics;
    metrics.in_flight.inc();
    let Sent { outcome, lateness, opened } = leave.way.send(request, Some(leave.at.into_std())).await;
    metrics.in_flight.dec();
    told(crew, serving, lateness, opened);
    outcome
}

/// What is known of the way after one more call.
fn told(crew: &Crew, serving: &Serving, lateness: Option<Duration>, opened: Opened) {
    let (metrics, arrival) = (&crew.board.metrics, serving.client.arrival());
    let provider = serving.provider.name().to_owned();
    let label = ConnectionLabels { provider: provider.clone(), opened: opened.as_str() };
    metrics.connections.get_or_create(&label).inc();
    let label = ProviderLabel { provider };
    if let Some(lateness) = lateness {
        arrival.record_departure(lateness);
        metrics.departure_lateness.get_or_create(&label).observe(lateness.as_secs_f64());
    }
    metrics.one_way.get_or_create(&label).set(arrival.one_way().as_secs_f64());
    if let Some(jitter) = arrival.jitter() {
        metrics.arrival_jitter.get_or_create(&label).set(jitter.as_secs_f64());
    }
}

fn count(crew: &Crew, serving: &Serving, job: &Job, outcome: &CallOutcome, verdict: &Verdict) {
    let provider = job.provider.clone();
    let label = ProviderLabel { provider: provider.clone() };
    crew.board.metrics.call_duration.get_or_create(&label).observe(outcome.duration.as_secs_f64());
    crew.board.metrics.calls.get_or_create(&CallLabels { provider, class: verdict.class.as_str() }).inc();
    if verdict.charged {
        crew.board
            .metrics
            .cost
            .get_or_create(&label)
            .inc_by(serving.provider.tariff().of_call(job.models.len()));
    }
    let (class, why) = (verdict.class.as_str(), verdict.message.as_str());
    match verdict.class {
        Class::Ok => debug!(ms = outcome.duration.as_millis() as u64, "answered"),
        Class::Throttled => info!(why, "over the limit: the fleet pauses"),
        Class::Transient | Class::Rejected => info!(class, why, "the call failed"),
        Class::Ambiguous => warn!(why, "the call left and no answer came: it may have been paid for"),
        Class::Unauthorized => {
            // The calls that were in flight beside it are refused, too: said once.
            let again_after = Duration::from_millis(crew.config.refused_ms);
            if crew.board.refused(&job.provider, why, again_after) {
                error!(why, "the account is refused: the provider is stopped, its jobs wait");
            }
        }
    }
}

async fn hold_off(crew: &Crew, serving: &Serving, pause: Duration) {
    let label = ProviderLabel { provider: serving.provider.name().to_owned() };
    crew.board.metrics.hold_offs.get_or_create(&label).inc();
    match timeout(HOLD_OFF_TIMEOUT, crew.engines.limiter.hold_off(&serving.stack, pause)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "the hold-off holds for this worker only"),
        Err(_) => warn!("the hold-off could not be said in time: it holds for this worker only"),
    }
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
        cost: serving.provider.tariff().of_call(job.models.len()),
        limit_per_s: serving.stack.rate_per_s(job.models.len() as u32),
        worker: crew.name.clone(),
    }
}

/// The one place that settles.
async fn settle(crew: &Crew, id: Id, unsettled: Unsettled, ending: Ending) -> Settled {
    let labels: Vec<ResultLabels> = ending
        .results()
        .iter()
        .map(|result| ResultLabels {
            provider: result.provider.clone(),
            model: result.model.clone(),
            outcome: result.outcome.as_str(),
        })
        .collect();
    let (settled, outcome) = match ending {
        Ending::Complete(results) => (Settled::Complete, unsettled.complete(results).await),
        Ending::Retry { job, results, after } => {
            (Settled::Retry, unsettled.retry(*job, results, after).await)
        }
        Ending::Release { job, after } => (Settled::Release, unsettled.release(*job, after).await),
        Ending::Dead { job, results, reason } => {
            crew.board.metrics.attempts.observe(f64::from(job.attempt + 1));
            (Settled::DeadLetter, unsettled.dead_letter(*job, results, reason).await)
        }
    };
    let stored = matches!(outcome, Ok(()) | Err(QueueError::Unacked(_)));
    if stored {
        for label in &labels {
            crew.board.metrics.results.get_or_create(label).inc();
        }
    }
    // A dead letter is not marked: whoever sends it again wants it called.
    if stored && settled == Settled::Complete {
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
