//! A delivery that was lent before: what is known of its call, and whether the job kills its workers.
//!
//! Whoever takes up such a job leaves a mark, and takes it away when he has done with it; a mark whose process is dead is
//! a crash. After the first, the job runs alone among its like, so that the next crash is its own and no innocent's.

use std::time::Duration;

use jiff::Timestamp;
use pixfleet_shared::{
    job::Job,
    ledger::{Intent, Known, Lost, TakenUp},
    result::Call,
};
use tokio::{
    sync::SemaphorePermit,
    time::{Instant, sleep},
};
use tracing::{debug, warn};

use crate::{
    classify::{Class, Verdict},
    conclude::{Ending, conclude, conclude_poison},
    crew::{Crew, Serving},
    step::{Early, policy},
};

/// Pause between two questions to a ledger that is away.
pub(crate) const LEDGER_PAUSE: Duration = Duration::from_millis(200);
/// With a safe rate: how long a job waits for the ledger.
pub(crate) const LEDGER_PATIENCE: Duration = Duration::from_secs(1);
/// Whether a process lives is known for certain after a few seconds.
const CERTAINTY: Duration = Duration::from_secs(5);

/// Takes up a job that was lent before. The permit is held while it runs alone among those that are suspected.
pub(crate) async fn take_up<'a>(
    crew: &'a Crew,
    serving: &Serving,
    job: &Job,
) -> Result<Option<SemaphorePermit<'a>>, Early> {
    let mut alone = None;
    loop {
        let Some(TakenUp { known, crashed, unsure }) = ask(crew, serving, job).await? else {
            return Ok(alone);
        };
        let most = crew.config.poison_after;
        if crashed >= most {
            warn!(crashed, "the job is parked: workers that took it up died");
            return Err(Box::new(conclude_poison(job.clone(), crashed)));
        }
        if crashed + unsure >= most {
            return Err(Box::new(Ending::release(job, CERTAINTY)));
        }
        match known {
            Known::UnderWay(pause) => {
                debug!("another worker makes this call");
                rest(crew, job, pause).await?;
                continue;
            }
            known => met(crew, serving, job, known)?,
        }
        if alone.is_some() || (crashed == 0 && unsure < 2) {
            return Ok(alone);
        }
        // Waiting for its turn it is in nobody's hands: a crash of now would not be its own.
        crew.engines.ledger.let_go(job);
        alone = tokio::select! {
            // It is never closed.
            place = crew.suspects.acquire() => place.ok(),
            () = crew.stopping.cancelled() => return Err(Box::new(Ending::release(job, Duration::ZERO))),
        };
    }
}

/// Asks the ledger until it answers. Without it nothing may be spent: the job waits, until the worker stops. Whoever gave a
/// safe rate prefers to go on (`None`).
async fn ask(crew: &Crew, serving: &Serving, job: &Job) -> Result<Option<TakenUp>, Early> {
    let since = Instant::now();
    loop {
        match crew.engines.ledger.take_up(job).await {
            Ok(taken) => return Ok(Some(taken)),
            Err(error) => debug!(%error, "waiting for the ledger"),
        }
        if serving.provider.definition().safe_rate.is_some() && since.elapsed() > LEDGER_PATIENCE {
            return Ok(None);
        }
        rest(crew, job, LEDGER_PAUSE).await?;
    }
}

/// Waits, unless the worker stops.
pub(crate) async fn rest(crew: &Crew, job: &Job, pause: Duration) -> Result<(), Early> {
    tokio::select! {
        () = sleep(pause) => Ok(()),
        () = crew.stopping.cancelled() => Err(Box::new(Ending::release(job, Duration::ZERO))),
    }
}

/// What follows from what is known of the job's turn, where no call does.
pub(crate) fn met(crew: &Crew, serving: &Serving, job: &Job, known: Known) -> Result<(), Early> {
    let ending = match known {
        Known::Clear => return Ok(()),
        Known::Over => {
            crew.board.metrics.already_settled.inc();
            debug!("already settled: nothing is spent");
            Ending::Over
        }
        Known::Answered(settlement) => {
            crew.board.metrics.already_settled.inc();
            debug!("already answered: what was answered is published");
            Ending::Stored(settlement)
        }
        Known::UnderWay(pause) => Ending::release(job, pause.max(Duration::from_secs(1))),
        Known::Unanswered(intent) => unanswered(crew, serving, job, &intent),
    };
    Err(Box::new(ending))
}

/// The provider's policy on a call whose maker can't tell any more what became of it.
fn unanswered(crew: &Crew, serving: &Serving, job: &Job, intent: &Intent) -> Ending {
    let message = format!("worker {} ended before its call was answered", intent.worker);
    warn!(worker = intent.worker, "a call left and no answer came: it may have been paid for");
    let verdict = Verdict::alike(&job.models, Class::Ambiguous, message);
    let call = Call {
        id: intent.call,
        sent_at: intent.leaves_at.min(Timestamp::now()),
        duration_ms: 0.0,
        status: None,
        attempt: job.attempt + 1,
        throttled: job.throttled,
        cost: intent.cost_micros as f64 / 1e6,
        limit_per_s: None,
        worker: intent.worker.clone(),
    };
    let ending = conclude(job.clone(), &call, verdict, &policy(crew, serving));
    crew.engines.ledger.lost(intent, lost(&ending));
    ending
}

/// What was decided on a call that was never answered.
pub(crate) fn lost(ending: &Ending) -> Lost {
    if matches!(ending, Ending::Dead { .. }) { Lost::Parked } else { Lost::Resent }
}
