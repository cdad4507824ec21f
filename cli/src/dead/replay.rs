//! `pixfleet dead replay`: counted and priced first, then sent again, each once it is known to the ledger.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use jiff::Timestamp;
use pixfleet_shared::{
    fleet::redis::Redis,
    job::Job,
    ledger::Ledger,
    queue::{DeadLetter, Queue},
};
use pixfleet_worker::provider::Catalog;
use serde::Serialize;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    Changes,
    consent::{self, Answer},
    filter::Filter,
    look::each,
    price::Estimate,
};
use crate::{config::Config, engine::Engine, exit::Exit, output, words::count, worker::on_signal};

/// Letters under way at once: the ledger, the queue's confirm, the letter's end.
const AT_ONCE: usize = 64;
/// How long a ledger that is not there yet is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is wanted.
pub(super) struct Wish<'a> {
    pub(super) filter: &'a Filter,
    pub(super) changes: Changes,
    pub(super) dry_run: bool,
    pub(super) yes: bool,
    pub(super) json: bool,
}

/// The one JSON object.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    estimate: Estimate,
    /// Jobs that were sent again.
    replayed: u64,
}

/// Counts, prices, asks, and sends again.
///
/// # Errors
/// When the queue or the ledger is away. What was not sent again is still there: run it again.
pub(super) async fn replay(
    engine: &Engine,
    config: &Config,
    catalog: &Catalog,
    wish: &Wish<'_>,
) -> anyhow::Result<Exit> {
    let queue = engine.queue();
    let estimate = estimated(&*queue, catalog, wish).await?;
    if !wish.json {
        output::text(estimate.text())?;
    }
    let wanted = if wish.dry_run || estimate.jobs == 0 {
        Answer::No
    } else {
        let jobs = count(estimate.jobs);
        consent::ask(wish.yes, format!("Send {jobs} again?")).await?
    };
    if wanted == Answer::No {
        let nothing_to_do = wish.dry_run || estimate.jobs == 0;
        if wish.json {
            output::json(&Report { estimate, replayed: 0 })?;
        }
        return Ok(if nothing_to_do { Exit::Done } else { Exit::WorkLeft });
    }
    let ledger = ledger(engine, config).await?;
    let stop = on_signal()?;
    let replayed = sent_again(&*queue, &ledger, wish, estimate.jobs, &stop).await;
    ledger.flush().await;
    let (replayed, ended) = replayed;
    if wish.json {
        output::json(&Report { estimate, replayed })?;
    } else {
        output::line(format!("{} sent again", count(replayed)))?;
    }
    ended.context("not all was sent again; the rest is still there, so run it again")?;
    Ok(if stop.is_cancelled() { Exit::WorkLeft } else { Exit::Done })
}

async fn estimated(queue: &dyn Queue, catalog: &Catalog, wish: &Wish<'_>) -> anyhow::Result<Estimate> {
    let (mut estimate, now) = (Estimate::default(), Timestamp::now());
    let looked = each(queue, wish.filter, async |letter| {
        *estimate.reasons.entry(letter.death.reason).or_default() += 1;
        match &letter.job {
            Ok(job) => estimate.count(&again(job, wish.changes), catalog, now),
            Err(_) => estimate.unreadable += 1,
        }
        Ok(ControlFlow::Continue(()))
    });
    looked.await?;
    Ok(estimate)
}

/// The job as it is sent again: with every attempt that it had at first, and a turn that no call had yet.
fn again(job: &Job, changes: Changes) -> Job {
    Job {
        replays: job.replays + 1,
        attempt: 0,
        throttled: 0,
        ambiguous: 0,
        budget: changes.budget.or(job.budget),
        deadline: job.deadline.filter(|_| !changes.no_deadline),
        ..job.clone()
    }
}

/// Sends at most `most` again, the oldest first: no more than somebody agreed to. Answers how many it were, and whether
/// that was all.
async fn sent_again(
    queue: &dyn Queue,
    ledger: &Arc<dyn Ledger>,
    wish: &Wish<'_>,
    most: u64,
    stop: &CancellationToken,
) -> (u64, anyhow::Result<()>) {
    let mut replayed = 0;
    loop {
        let (more, ended) = pass(queue, ledger, wish, most - replayed, stop).await;
        replayed += more;
        match ended {
            // A broker ends a look that takes half an hour; what is left is found by the next one.
            Err(error) if more > 0 && replayed < most => {
                warn!(%error, replayed, "looking for the rest again")
            }
            ended => return (replayed, ended),
        }
    }
}

async fn pass(
    queue: &dyn Queue,
    ledger: &Arc<dyn Ledger>,
    wish: &Wish<'_>,
    most: u64,
    stop: &CancellationToken,
) -> (u64, anyhow::Result<()>) {
    let mut letters = match queue.dead_letters().await {
        Ok(letters) => letters,
        Err(error) => return (0, Err(error.into())),
    };
    let (mut begun, mut replayed, mut ended) = (0, 0, Ok(()));
    let mut under_way = JoinSet::new();
    while begun < most && ended.is_ok() && !stop.is_cancelled() {
        match letters.next().await {
            Ok(None) => break,
            Err(error) => ended = Err(error.into()),
            Ok(Some(letter)) if wish.filter.passes(&letter) => {
                let Ok(job) = &letter.job else { continue };
                begun += 1;
                under_way.spawn(one(ledger.clone(), again(job, wish.changes), letter));
            }
            Ok(Some(_)) => {}
        }
        if under_way.len() >= AT_ONCE {
            done(under_way.join_next().await, &mut replayed, &mut ended);
        }
    }
    // Before the look is closed: those under way still have their letters to end.
    while !under_way.is_empty() {
        done(under_way.join_next().await, &mut replayed, &mut ended);
    }
    letters.close().await;
    (replayed, ended)
}

fn done(
    joined: Option<Result<anyhow::Result<()>, JoinError>>,
    replayed: &mut u64,
    ended: &mut anyhow::Result<()>,
) {
    match joined.map(|joined| joined.map_err(anyhow::Error::from).flatten()) {
        Some(Ok(())) => *replayed += 1,
        Some(Err(error)) if ended.is_ok() => *ended = Err(error),
        _ => {}
    }
}

/// The ledger is told first: a worker that has the job at once finds its turn free. Killed in between, the letter is still
/// there, and the job that is sent twice has one turn, of which the ledger knows.
async fn one(ledger: Arc<dyn Ledger>, job: Job, letter: DeadLetter) -> anyhow::Result<()> {
    ledger.reopen(&job).await?;
    let id = job.id;
    letter.replay(job).await.with_context(|| format!("job {id}"))
}

async fn ledger(engine: &Engine, config: &Config) -> anyhow::Result<Arc<dyn Ledger>> {
    match engine {
        Engine::State(embedded) => Ok(embedded.ledger()),
        Engine::Servers(_) => {
            let redis = Redis::start(&config.redis).context("the ledger")?;
            if let Err(why) = redis.ready(PATIENCE).await {
                bail!("the ledger is away: {why}. Is it running? `redis.url` says where it is");
            }
            Ok(redis.ledger())
        }
    }
}
