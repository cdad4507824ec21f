//! One job's straight line, and the one place that settles it.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use jiff::Timestamp;
use pixfleet_shared::{
    batch::Tally,
    batches::Hold,
    failpoint,
    job::Job,
    ledger::{Answered, End, Intent, Ledger, Mark},
    queue::{Delivery, QueueError, Reason, Settlement, Steps, Then, Unsettled},
    result::{Call, ImageResult},
    telemetry::{CallLabels, ConnectionLabels, ProviderLabel, ResultLabels, SettleLabel},
};
use tokio::{
    sync::SemaphorePermit,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, error, info, warn};

use crate::{
    budget,
    classify::{Class, Verdict, classify},
    client::{CallOutcome, Opened, Sent},
    conclude::{
        Ending, MENDING_PAUSE, Policy, conclude, conclude_cancelled, conclude_given_up, conclude_uncalled,
    },
    crew::{AccountState, Crew, Serving},
    deadline,
    departure::{self, Departure},
    image::Prepared,
    provider::PreparedRequest,
    recalled::{self, Known},
    returned,
};

/// How long a settlement waits for the ledger, each time.
const KEPT_WITHIN: Duration = Duration::from_secs(2);
/// How often the ledger is asked whether an answer still counts.
const ASKED_TIMES: u32 = 3;
/// So many 429s in a row send a job back to the queue: others may have better luck.
const MOST_THROTTLED: usize = 10;
/// How a delivery was settled: the verb, for metrics and the drain's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Settled {
    Complete,
    Retry,
    Release,
    DeadLetter,
    /// Set aside, because its batch is paused.
    Park,
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
            Self::Park => "park",
            Self::Lost => "lost",
        }
    }
}

/// Works on one delivery and settles it.
pub(crate) async fn step(crew: Arc<Crew>, delivery: Delivery) -> Settled {
    let (again, worn) = (delivery.again, delivery.worn);
    let (job, unsettled) = delivery.split();
    let _taken = again.then(|| Taken { crew: &crew, job: &job });
    failpoint::reached("after_receive");
    // Until it is settled: a second delivery of the job finds all that came of the first.
    let turn = tokio::select! {
        biased;
        turn = crew.in_turn.take(job.id) => Some(turn),
        () = crew.stopping.cancelled() => None,
    };
    let line = async {
        match &turn {
            Some(_) => line(&crew, &job, again, worn).await,
            None => Err(Box::new(Ending::release(&job, Duration::ZERO))),
        }
    };
    let worked = AssertUnwindSafe(line).catch_unwind().await;
    let ending = match worked {
        Ok(Ok(ending)) => ending,
        Ok(Err(early)) => *early,
        Err(panic) => panicked(&job, &*panic),
    };
    let settled = settle(&crew, &job, unsettled, ending).await;
    crew.board.metrics.settled.get_or_create(&SettleLabel { verb: settled.as_str() }).inc();
    settled
}

/// A job that was lent before, in this worker's hands. However its work ends, a worker that lives lets go of it: what is not
/// let go of is a crash.
struct Taken<'a> {
    crew: &'a Crew,
    job: &'a Job,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.crew.engines.ledger.let_go(self.job);
    }
}

/// The line was left before a call.
pub(crate) type Early = Box<Ending>;

/// From a job to its ending.
async fn line(crew: &Crew, job: &Job, again: bool, worn: bool) -> Result<Ending, Early> {
    if !again {
        held(crew, job)?;
    }
    let serving = serving(crew, job)?;
    let _alone = if again { returned::take_up(crew, serving, job).await? } else { None };
    // What was paid for before its batch was stopped is published all the same.
    held(crew, job)?;
    if worn {
        // The queue would give it up in silence, and its batch never be complete.
        let why = "the job was delivered again and again, and nobody settled it: the workers' logs say why";
        return Ok(conclude_given_up(job.clone(), Reason::DeliveryLimit, why));
    }
    failpoint::reached("after_take_up");
    failpoint::taken_up(&job.image.id);
    deadline::check(serving, job)?;
    let since = Instant::now();
    let picture = picture(crew, serving, job).await?;
    let prepared = since.elapsed();
    let mut known = recalled::recall(crew, serving, job, &picture).await?;
    match called(crew, serving, &mut known, picture, prepared).await {
        Ok(ending) => Ok(ending),
        Err(early) => Err(Box::new(known.joined(*early))),
    }
}

/// From what is missing of a job to its ending.
async fn called(
    crew: &Crew,
    serving: &Serving,
    known: &mut Known<'_>,
    picture: Prepared,
    prepared: Duration,
) -> Result<Ending, Early> {
    let mut job = known.job.clone().into_owned();
    let requests = requests(crew, serving, &job, &picture).await?;
    drop(picture);
    failpoint::reached("after_prepare");
    for _ in 0..MOST_THROTTLED {
        let Made { outcome, verdict, intent } = one_call(crew, serving, &job, &requests).await?;
        crew.recent.record(prepared + outcome.duration);
        if verdict.class != Class::Throttled {
            let facts = facts(crew, &intent, &job, &outcome, serving);
            let charged = verdict.charged;
            known.learn(&verdict, &intent);
            let ending = known.joined(conclude(job, &facts, verdict, &policy(crew, serving)));
            tell_ledger(crew, serving, (&intent, &outcome), charged, &ending);
            failpoint::reached("after_ledger_told");
            return Ok(ending);
        }
        if serving.provider.definition().ledger {
            crew.engines.ledger.answered(&intent, Answered::Free);
        }
        // Nothing counted: it waits for another slot, behind the hold-off, with all that it has ready.
        job.throttled += 1;
        held(crew, &job)?;
    }
    Ok(known.joined(Ending::release(&job, Duration::ZERO)))
}

/// What keeps the job's batch: without a call, nothing is spent.
pub(crate) fn held(crew: &Crew, job: &Job) -> Result<(), Early> {
    match crew.engines.batches.held(&job.batch) {
        None => Ok(()),
        Some(Hold::Cancelled) => Err(Box::new(conclude_cancelled(job))),
        Some(Hold::Paused) => Err(Box::new(Ending::Park(Box::new(job.clone())))),
    }
}

/// The ledger keeps what was paid for, before it is published, and lists what may have been.
fn tell_ledger(
    crew: &Crew,
    serving: &Serving,
    made: (&Intent, &CallOutcome),
    charged: bool,
    ending: &Ending,
) {
    if !serving.provider.definition().ledger {
        return;
    }
    let ((intent, outcome), ledger) = (made, &crew.engines.ledger);
    match (outcome.is_answered(), charged) {
        (true, true) => ledger.answered(intent, Answered::Paid(ending.settlement())),
        (false, true) => ledger.lost(intent, returned::lost(ending)),
        (true, false) => ledger.answered(intent, Answered::Free),
        // Before a byte was sent nothing can have happened. An answer that was cut off and costs nothing is one.
        (false, false) if outcome.answer.is_err() => ledger.answered(intent, Answered::Unsent),
        (false, false) => ledger.answered(intent, Answered::Free),
    }
}

/// A job that makes this worker panic would do so again, perhaps after it was paid for.
fn panicked(job: &Job, panic: &(dyn Any + Send)) -> Ending {
    let said = panic.downcast_ref::<&str>().map(|said| (*said).to_owned());
    let said = said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    error!(said, "the job made the worker panic: it is parked");
    conclude_given_up(job.clone(), Reason::Poison, &format!("the worker panicked: {said:.200}"))
}

/// A call that was made, and what its answer means.
struct Made {
    outcome: CallOutcome,
    verdict: Verdict,
    intent: Intent,
}

/// One call: its slot, its request, and what its answer means and tells the fleet.
async fn one_call(
    crew: &Crew,
    serving: &Serving,
    job: &Job,
    requests: &[PreparedRequest],
) -> Result<Made, Early> {
    let room = room(crew, serving, job).await?;
    let reserved = budget::reserve(crew, serving, job).await?;
    let departure = match departure::wait(crew, serving, job, requests).await {
        Ok(departure) => departure,
        Err(early) => {
            budget::give_back(crew, reserved).await;
            return Err(early);
        }
    };
    let Departure { leave, way, at, intent } = departure;
    let account = &serving.accounts[leave.account];
    crew.board.metrics.in_flight.inc();
    failpoint::reached("before_send");
    let sent = way.send(&requests[leave.account], Some(at.into_std())).await;
    crew.board.metrics.in_flight.dec();
    drop((room, leave.room));
    failpoint::reached("after_answer");
    let Sent { outcome, lateness, opened } = sent;
    way_went(crew, serving, account, lateness, opened);
    let verdict = classify(&serving.provider, &outcome, &job.models, Timestamp::now());
    count(crew, serving, job, &outcome, &verdict);
    if !verdict.charged {
        budget::give_back(crew, reserved).await;
    }
    departure::tell(crew, serving, account, (&outcome, &verdict), leave.slot.probe).await;
    Ok(Made { outcome, verdict, intent })
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

pub(crate) fn policy<'a>(crew: &Crew, serving: &'a Serving) -> Policy<'a> {
    Policy {
        retry: &serving.retry,
        ambiguous: serving.provider.ambiguous(),
        refused: Duration::from_millis(crew.config.refused_ms),
        now: Timestamp::now(),
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

fn facts(crew: &Crew, intent: &Intent, job: &Job, outcome: &CallOutcome, serving: &Serving) -> Call {
    Call {
        id: intent.call,
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
async fn settle(crew: &Crew, job: &Job, unsettled: Unsettled, ending: Ending) -> Settled {
    let settled = ending.verb();
    if let Ending::Dead { job, .. } = &ending {
        crew.board.metrics.attempts.observe(f64::from(job.attempt + 1));
    }
    let over = matches!(ending, Ending::Over);
    let settlement = ending.into_settlement();
    let mark = if over { None } else { mark_of(job, &settlement) };
    let labels: Vec<ResultLabels> = settlement.results.iter().map(labels).collect();
    let (ledger, told, late) = (&crew.engines.ledger, AtomicBool::new(false), AtomicBool::new(false));
    let paid = settlement.results.iter().any(|result| result.call.is_some());
    let steps = Steps {
        // A result that is out says what its call came to. Were this process to die with that unsaid, the next one would say
        // of the same call that nobody knows.
        before: Box::pin(async {
            let stands = !paid || stands(&**ledger, job).await;
            late.store(!stands, Ordering::Relaxed);
            stands
        }),
        // Once it has left the queue nobody comes back to count it, and its batch would never be complete.
        stored: Box::pin(async {
            failpoint::reached("before_settled_mark");
            if let Some(mark) = mark.clone() {
                ledger.settled(mark);
                kept(&**ledger).await;
                told.store(true, Ordering::Relaxed);
            }
        }),
    };
    let outcome = unsettled.settle_by_steps(settlement, steps).await;
    // What came too late is not out, and counts as nothing.
    if matches!(outcome, Ok(()) | Err(QueueError::Unacked(_))) && !late.into_inner() {
        for label in &labels {
            crew.board.metrics.results.get_or_create(label).inc();
        }
        if let (Some(mark), false) = (mark, told.into_inner()) {
            ledger.settled(mark);
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

/// Whether what came of a job's call still counts. Without the ledger it does.
async fn stands(ledger: &dyn Ledger, job: &Job) -> bool {
    // Where this process stood still, its waits for the ledger are over at once, and nothing was heard: it asks again.
    for _ in 0..ASKED_TIMES {
        match timeout(KEPT_WITHIN, ledger.stands(job)).await {
            Ok(Ok(true)) => return true,
            Ok(Ok(false)) => {
                warn!(
                    "this worker stood still, and somebody else has ended the job: its answer comes too late"
                );
                return false;
            }
            Ok(Err(error)) => {
                debug!(%error, "the ledger can't say whether an answer still counts");
                sleep(returned::LEDGER_PAUSE).await;
            }
            Err(_) => {}
        }
    }
    true
}

/// Waits until the ledger has stored what it was told. Without it, results are published and deliveries acked all the same.
async fn kept(ledger: &dyn Ledger) {
    let _ = timeout(KEPT_WITHIN, ledger.flush()).await;
}

fn labels(result: &ImageResult) -> ResultLabels {
    ResultLabels {
        provider: result.provider.clone(),
        model: result.model.clone(),
        outcome: result.outcome.as_str(),
    }
}

/// What the ledger is told of the turn of `job` once its settlement is stored; nothing where the turn comes again.
fn mark_of(job: &Job, settlement: &Settlement) -> Option<Mark> {
    let end = match &settlement.then {
        Then::Done => End::Done,
        Then::Again(next, _) if next.turn() > job.turn() => End::Again,
        Then::Again(..) | Then::Parked(_) => return None,
        Then::Dead(..) => End::Dead,
    };
    let tally = Tally::of(&settlement.results);
    Some(Mark { job: job.id, batch: job.batch.clone(), turn: job.turn(), tally, end })
}
