//! The enqueue: rows in, confirmed jobs out, every row accounted for.
//!
//! A thread reads and plans, the clerk's thread keeps the record, and one task moves chunks of jobs through
//! `claim -> enqueue -> confirm`, several at once. What is on its way is bounded by chunks, and a chunk by jobs and
//! by bytes; a chunk whose queue is away is said again until it is confirmed or patience ends.

mod announce;
mod ending;
mod read;
mod tally;

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use jiff::Timestamp;
use pixfleet_shared::{
    batch::BatchName,
    batches::Batches,
    budget::Budget,
    id::Id,
    job::{Job, Priority},
    queue::{Queue, QueueError},
    trace::TraceParent,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use ending::{Stopped, Why};
pub use read::BadRows;
use read::{Draft, End};
pub use tally::{Summary, Tally};

use crate::{
    manifest::Manifest,
    plan::{Plan, Stamp},
    record::{Claim, Record, Totals, clerk::Clerk},
    settings::Config,
};

/// Pauses between two tries while the queue is away, growing from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long an enqueue that was told to stop waits for the confirms of what is on its way.
const GRACE: Duration = Duration::from_secs(10);
/// Chunks that are read ahead of those on their way.
const READ_AHEAD: usize = 2;

/// Where jobs go, and who is told of the batch as a whole.
#[derive(Clone)]
pub struct Destination {
    /// Takes the jobs.
    pub queue: Arc<dyn Queue>,
    /// Is told what to expect, where there is somebody: best effort.
    pub batches: Option<Arc<dyn Batches>>,
}

/// What to enqueue, and as what.
#[derive(Clone, Debug)]
pub struct Order {
    /// The batch.
    pub batch: BatchName,
    /// The class that its jobs wait in.
    pub priority: Priority,
    /// Turns of the batch for each of one of weight 1 in its class: 1 to 100.
    pub weight: u8,
    /// What the batch may spend; none means no bound.
    pub budget: Option<Budget>,
    /// After this moment no call is made for its jobs; none means that they have all the time.
    pub deadline: Option<Timestamp>,
    /// Whether the images are asked about although answers of before are kept.
    pub refresh: bool,
    /// What each image is asked.
    pub plan: Plan,
    /// The trace that every job continues.
    pub trace: Option<TraceParent>,
    /// What becomes of rows that can't be used.
    pub bad_rows: BadRows,
    /// Whether the manifest has to be the one that the batch was begun with: then the record knows the jobs of some
    /// of its first rows, and else nothing is enqueued. A row that was mended, or rows that were added, do no harm.
    pub same_manifest: bool,
}

/// Puts every row of `manifest` on the queue that `record` does not know as confirmed, and closes the batch.
///
/// Cancelling `stop` ends the reading; what is on its way is still confirmed and recorded. `progress` is told after
/// each chunk.
///
/// # Errors
/// [`Stopped`]: why it ended early, and what was done until then. Running the same again goes on from there.
pub async fn enqueue(
    to: Destination,
    manifest: Manifest,
    record: Record,
    order: Order,
    config: &Config,
    stop: CancellationToken,
    progress: &watch::Sender<Tally>,
) -> Result<Summary, Box<Stopped>> {
    let run = Run::new(Some(to), &order, config, stop);
    Box::pin(run.all(manifest, record, &order, config, progress)).await
}

/// Does everything that [`enqueue`] does, but for the queue: the summary is what it would do.
///
/// # Errors
/// As [`enqueue`].
pub async fn rehearse(
    manifest: Manifest,
    record: Record,
    order: Order,
    config: &Config,
    stop: CancellationToken,
    progress: &watch::Sender<Tally>,
) -> Result<Summary, Box<Stopped>> {
    let run = Run::new(None, &order, config, stop);
    Box::pin(run.all(manifest, record, &order, config, progress)).await
}

/// One enqueue under way.
struct Run {
    /// None for a rehearsal.
    queue: Option<Arc<dyn Queue>>,
    batches: Option<Arc<dyn Batches>>,
    batch: BatchName,
    calls_per_image: usize,
    patience: Duration,
    chunks_in_flight: usize,
    /// What the batch holds, as long as the first chunk has still to show that it is the batch's manifest.
    unproven: Mutex<Option<Totals>>,
    stop: CancellationToken,
    began: Instant,
}

impl Run {
    fn new(to: Option<Destination>, order: &Order, config: &Config, stop: CancellationToken) -> Self {
        let (queue, batches) = match to {
            Some(Destination { queue, batches }) => (Some(queue), batches),
            None => (None, None),
        };
        Self {
            queue,
            batches,
            batch: order.batch.clone(),
            calls_per_image: order.plan.calls().len(),
            patience: Duration::from_secs(config.patience_s.into()),
            chunks_in_flight: config.chunks_in_flight.get() as usize,
            unproven: Mutex::new(None),
            stop,
            began: Instant::now(),
        }
    }

    async fn all(
        &self,
        manifest: Manifest,
        mut record: Record,
        order: &Order,
        config: &Config,
        progress: &watch::Sender<Tally>,
    ) -> Result<Summary, Box<Stopped>> {
        let mut tally = Tally::default();
        let lane = match self.open(&mut record, order).await {
            Ok(lane) => lane,
            Err(why) => return Err(self.stopped(why, tally, order, &record)),
        };
        let stamp = Stamp {
            batch: order.batch.clone(),
            priority: order.priority,
            lane,
            weight: order.weight,
            budget: order.budget,
            deadline: order.deadline,
            refresh: order.refresh,
            trace: order.trace,
        };
        // Until then nothing was read; the reader ends with the channel, or with the token.
        let drafts = match read::start(manifest, order, stamp, config, self.stop.child_token()) {
            Ok(drafts) => drafts,
            Err(why) => return Err(self.stopped(why, tally, order, &record)),
        };
        let mut totals = record.totals();
        let holds_the_jobs = record.holds_the_jobs();
        let clerk = Clerk::employ(record);
        let moved = self.chunks(drafts, &clerk, holds_the_jobs, &mut tally, &mut totals, progress).await;
        let closed = match moved {
            Ok(()) => self.close(totals).await,
            Err(why) => {
                self.expect(totals, false).await;
                Err(why)
            }
        };
        // The record is whole before anybody is told. That it was left is worth no failure: it shows in the next run.
        let _ = clerk.dismiss().await;
        let summary = Summary::of(order, lane, tally, totals, self.began.elapsed());
        closed.map(|()| summary.clone()).map_err(|why| Box::new(Stopped { why, summary }))
    }

    fn stopped(&self, why: Why, tally: Tally, order: &Order, record: &Record) -> Box<Stopped> {
        let lane = record.lane().unwrap_or_default();
        let summary = Summary::of(order, lane, tally, record.totals(), self.began.elapsed());
        Box::new(Stopped { why, summary })
    }

    /// The batch gets its lane, on record before its first job, and subscribers hear of it.
    async fn open(&self, record: &mut Record, order: &Order) -> Result<u8, Why> {
        let lane = match (record.lane(), &self.queue) {
            (Some(lane), _) => lane,
            (None, Some(queue)) => self.patiently(|| queue.open_lane(order.priority)).await?,
            (None, None) => 0,
        };
        if self.queue.is_some() && record.lane().is_none() {
            record.keep_to_lane(lane)?;
        }
        let totals = record.totals();
        if order.same_manifest && totals.jobs > 0 {
            // Another manifest must not open a batch that is complete again.
            *self.unproven() = Some(totals);
        } else {
            // The first run of a batch says which manifest it is.
            self.say_opened(totals).await?;
        }
        Ok(lane)
    }

    fn unproven(&self) -> MutexGuard<'_, Option<Totals>> {
        self.unproven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves every chunk; after the first failure, waits for those on their way.
    async fn chunks(
        &self,
        mut drafts: mpsc::Receiver<Draft>,
        clerk: &Clerk,
        holds_the_jobs: bool,
        tally: &mut Tally,
        totals: &mut Totals,
        progress: &watch::Sender<Tally>,
    ) -> Result<(), Why> {
        let mut in_flight = FuturesUnordered::new();
        let mut ended: Option<Result<(), Why>> = None;
        loop {
            let most = if self.unproven().is_some() { 1 } else { self.chunks_in_flight };
            let room = ended.is_none() && in_flight.len() < most;
            tokio::select! {
                Some(moved) = in_flight.next() => match moved {
                    Ok((more, now)) => {
                        tally.add(more);
                        *totals = Totals::max(*totals, now);
                        progress.send_replace(*tally);
                    }
                    // A failure is said, not the end of the manifest that may have come before it.
                    Err(why) => if !matches!(ended, Some(Err(_))) { ended = Some(Err(why)); },
                },
                draft = drafts.recv(), if room => {
                    let draft = draft.unwrap_or_else(Draft::of_no_reader);
                    tally.add(Tally::of_bad_rows(draft.bad_rows));
                    progress.send_replace(*tally);
                    ended = draft.end.map(|end| match end {
                        End::Complete => Ok(()),
                        End::Early(why) => Err(why),
                    });
                    if !draft.jobs.is_empty() {
                        in_flight.push(self.chunk(draft.jobs, clerk, holds_the_jobs));
                    }
                }
                () = self.stop.cancelled(), if ended.is_none() => ended = Some(Err(Why::Interrupted)),
                else => break,
            }
        }
        ended.unwrap_or(Ok(()))
    }

    /// Moves one chunk: what the record does not know is confirmed by the queue, then recorded.
    async fn chunk(
        &self,
        jobs: Vec<Job>,
        clerk: &Clerk,
        holds_the_jobs: bool,
    ) -> Result<(Tally, Totals), Why> {
        let claims = clerk.claim(ids(&jobs)).await?;
        let unproven = self.unproven().take();
        if let Some(totals) = unproven {
            if claims.iter().all(|claim| *claim == Claim::Fresh) {
                return Err(Why::AnotherManifest { batch: self.batch.clone(), looked_at: claims.len() });
            }
            self.say_opened(totals).await?;
        }
        let (tally, fresh) = tally::sort_out(jobs, &claims, self.calls_per_image);
        if fresh.is_empty() {
            return Ok((tally, Totals::default()));
        }
        if holds_the_jobs && self.queue.is_some() {
            return Ok((tally, clerk.put(fresh).await?));
        }
        let (ids, results) = (ids(&fresh), fresh.iter().map(|job| job.models.len() as u64).sum());
        if let Some(queue) = &self.queue {
            // Kept for another try: the queue takes what it is given.
            self.patiently(|| queue.enqueue(fresh.clone())).await?;
        }
        let totals = clerk.confirm(ids, results).await?;
        Ok((tally, totals))
    }

    /// Does one verb of the queue, again while it is away, until patience ends or the enqueue has to.
    async fn patiently<T, F>(&self, verb: impl Fn() -> F) -> Result<T, Why>
    where
        F: Future<Output = Result<T, QueueError>>,
    {
        let deadline = Instant::now() + self.patience;
        let mut pause = PAUSES.0;
        loop {
            let done = tokio::select! {
                done = timeout_at(deadline, verb()) => done,
                () = self.grace_is_over() => return Err(Why::Interrupted),
            };
            let away = match done {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(QueueError::Away(cause))) => cause,
                Ok(Err(refused)) => return Err(Why::Refused(refused)),
                Err(_) => "no answer".to_owned(),
            };
            if Instant::now() + pause >= deadline {
                return Err(Why::Away { seconds: self.patience.as_secs(), cause: away });
            }
            warn!(queue.error = %away, retry.after_ms = pause.as_millis() as u64, "the queue is away; the same jobs are said again");
            tokio::select! {
                () = sleep(pause) => {}
                () = self.stop.cancelled() => return Err(Why::Interrupted),
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn grace_is_over(&self) {
        self.stop.cancelled().await;
        sleep(GRACE).await;
    }
}

fn ids(jobs: &[Job]) -> Vec<Id> {
    jobs.iter().map(|job| job.id).collect()
}
