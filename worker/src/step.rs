//! One job's straight line, and the one place that settles it.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use pixfleet_shared::{
    id::Id,
    job::Job,
    ledger::Begun,
    queue::{Delivery, QueueError, Unsettled},
    result::Call,
    telemetry::{CallLabels, ConnectionLabels, ProviderLabel, ResultLabels, SettleLabel},
};
use tokio::{
    sync::SemaphorePermit,
    time::{Instant, sleep},
};
use tracing::{debug, error, info, warn};

use crate::{
    budget,
    classify::{Class, Verdict, classify},
    client::{CallOutcome, Opened, Sent},
    conclude::{Ending, MENDING_PAUSE, Policy, conclude, conclude_uncalled},
    crew::{AccountState, Crew, Serving},
    departure::{self, Departure},
    image::Prepared,
    provider::PreparedRequest,
};

/// So many 429s in a row send a job back to the queue: others may have better luck.
const MOST_THROTTLED: usize = 10;
/// Pause between two questions to a ledger that is away.
const LEDGER_PAUSE: Duration = Duration::from_millis(200);
/// With a safe rate: how long a job waits for the ledger.
const LEDGER_PATIENCE: Duration = Duration::from_secs(1);

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
pub(crate) type Early = Box<Ending>;

/// From a job to its ending.
async fn line(crew: &Crew, mut job: Job) -> Result<Ending, Early> {
    let serving = serving(crew, &job)?;
    if begun(crew, serving, &job).await? == Begun::Settled {
        crew.board.metrics.already_settled.inc();
        debug!("already settled: nothing is spent");
        return Ok(Ending::Complete(Vec::new()));
    }
    let since = Instant::now();
    let picture = picture(crew, serving, &job).await?;
    let requests = requests(crew, serving, &job, &picture).await?;
    drop(picture);
    let prepared = since.elapsed();
    for _ in 0..MOST_THROTTLED {
        let (outcome, verdict) = one_call(crew, serving, &job, &requests).await?;
        crew.recent.record(prepared + outcome.duration);
        if verdict.class != Class::Throttled {
            let facts = facts(crew, serving, &job, &outcome);
            return Ok(conclude(job, &facts, verdict, &policy(crew, serving)));
        }
        // Nothing counted: it waits for another slot, behind the hold-off, with all that it has ready.
        job.throttled += 1;
    }
    Ok(Ending::release(&job, Duration::ZERO))
}

/// One call: its slot, its request, and what its answer means and tells the fleet.
async fn one_call(
    crew: &Crew,
    serving: &Serving,
    job: &Job,
    requests: &[PreparedRequest],
) -> Result<(CallOutcome, Verdict), Early> {
    let room = room(crew, serving, job).await?;
    let reserved = budget::reserve(crew, serving, job).await?;
    let departure = match departure::wait(crew, serving, job, requests).await {
        Ok(departure) => departure,
        Err(early) => {
            budget::give_back(crew, reserved).await;
            return Err(early);
        }
    };
    let Departure { leave, way, at } = departure;
    let account = &serving.accounts[leave.account];
    crew.board.metrics.in_flight.inc();
    let sent = way.send(&requests[leave.account], Some(at.into_std())).await;
    crew.board.metrics.in_flight.dec();
    drop((room, leave.room));
    let Sent { outcome, lateness, opened } = sent;
    way_went(crew, serving, account, lateness, opened);
    let verdict = classify(&serving.provider, &outcome, &job.models, Timestamp::now());
    count(crew, serving, job, &outcome, &verdict);
    if !verdict.charged {
        budget::give_back(crew, reserved).await;
    }
    departure::tell(crew, account, &verdict, leave.slot.probe).await;
    Ok((outcome, verdict))
}

/// Asks the ledger until it answers. Without it nothing may be spent: the job waits, until the worker stops. Whoever gave a
/// safe rate prefers to go on.
async fn begun(crew: &Crew, serving: &Serving, job: &Job) -> Result<Begun, Early> {
    let since = Instant::now();
    loop {
        match crew.engines.ledger.begin(job.id).await {
            Ok(begun) => return Ok(begun),
            Err(error) => debug!(%error, "waiting for the ledger"),
        }
        if serving.provider.definition().safe_rate.is_some() && since.elapsed() > LEDGER_PATIENCE {
            return Ok(Begun::Fresh);
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

async fn requests(
    crew: &Crew,
    serving: &Serving,
    job: &Job,
    picture: &Prepared,
) -> Result<Vec<PreparedRequest>, Early> {
    let made = serving.provider.requests(job, &job.models, picture).await;
    made.map_err(|unaskable| uncalled(crew, serving, job, Class::Rejected, &unaskable.to_string()))
}

/// No call was made, and none is paid for.
pub(crate) fn uncalled(crew: &Crew, serving: &Serving, job: &Job, class: Class, why: &str) -> Early {
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

/// What is known of the way to the API after one more call.
fn way_went(
    crew: &Crew,
    serving: &Serving,
    account: &AccountState,
    lateness: Option<Duration>,
    opened: Opened,
) {
    let (metrics, arrival) = (&crew.board.metrics, account.client.arrival());
    let label = ProviderLabel { provider: serving.provider.name().to_owned() };
    let opened = ConnectionLabels { provider: label.provider.clone(), opened: opened.as_str() };
    metrics.connections.get_or_create(&opened).inc();
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
    crew.board.metrics.calls_by_batch.count(&job.batch);
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
        limit_per_s: serving.provider.rate_per_s(serving.provider.weight(job.models.len(), 0)),
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
