//! The queue seam: jobs in, deliveries out, each settled exactly once; results to whoever subscribes.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    batch::{BatchEvent, BatchName},
    job::{Job, Priority},
    result::{Announcement, ImageResult, Outcome},
};

/// Where jobs wait, and where results go.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// The lane for a new batch of this priority: the emptiest at this moment.
    async fn open_lane(&self, priority: Priority) -> Result<u8, QueueError>;

    /// Puts jobs on the queue. They are durable when it returns; after an error some may be, so say them again.
    async fn enqueue(&self, jobs: Vec<Job>) -> Result<(), QueueError>;

    /// Tells subscribers of a batch. Durable when it returns.
    async fn announce(&self, event: BatchEvent) -> Result<(), QueueError>;

    /// Begins to lend jobs, at most about `prefetch` (which may change) of each lane ahead of their turn.
    async fn receive(&self, prefetch: watch::Receiver<u16>) -> Result<Box<dyn Intake>, QueueError>;

    /// Subscribes to results and batch events.
    async fn subscribe(&self, subscription: Subscription) -> Result<Box<dyn Subscriber>, QueueError>;

    /// Whether the queue can be reached now; the text says why not.
    fn health(&self) -> Result<(), String>;

    /// Waits (bounded) until what was handed over is durable, and lets go of the servers.
    async fn close(&self);
}

/// The deliveries of one worker.
#[async_trait]
pub trait Intake: Send {
    /// The next delivery; waits for one. `None` after [`stop`](Self::stop). Cancel-safe.
    async fn next(&mut self) -> Option<Delivery>;

    /// Takes no more, and gives back what was not yet lent. Deliveries already lent can still be settled.
    async fn stop(&mut self);
}

/// A job lent to a worker. Settling consumes it, so it happens at most once; dropped unsettled, the job comes back.
pub struct Delivery {
    /// The job.
    pub job: Job,
    settle: Box<dyn Settle>,
}

/// How a delivery ends: the results to publish, and what becomes of the job.
#[derive(Debug)]
pub struct Settlement {
    /// Confirmed before the delivery leaves the queue.
    pub results: Vec<ImageResult>,
    /// What becomes of the job.
    pub then: Then,
}

/// What becomes of a settled job.
#[derive(Debug)]
pub enum Then {
    /// It is done.
    Done,
    /// It comes back, in this form, after about this time.
    Again(Box<Job>, Duration),
    /// It is kept as a dead letter.
    Dead(Box<Job>, Reason),
}

/// An engine's way to settle one delivery. Workers use [`Delivery`]'s verbs.
#[async_trait]
pub trait Settle: Send {
    /// Publishes the results and, where the job moves, the moved job, all together; takes the delivery off the
    /// queue once every one of them is confirmed.
    ///
    /// # Errors
    /// The delivery is still on the queue and comes again. What was published of it may be out: ids make the
    /// repetition visible.
    async fn settle(self: Box<Self>, settlement: Settlement) -> Result<(), QueueError>;
}

impl Delivery {
    /// A delivery of `job` that `settle` ends.
    pub fn new(job: Job, settle: Box<dyn Settle>) -> Self {
        Self { job, settle }
    }

    /// The job, and the one right to settle it.
    pub fn split(self) -> (Job, Unsettled) {
        (self.job, Unsettled(self.settle))
    }
}

/// The right to settle one delivery, apart from its job.
pub struct Unsettled(Box<dyn Settle>);

impl Unsettled {
    /// The job is done: its results are durable, then it leaves the queue.
    ///
    /// # Errors
    /// The job will be delivered again; [`QueueError::Unacked`] says that its results are out all the same.
    pub async fn complete(self, results: Vec<ImageResult>) -> Result<(), QueueError> {
        self.0.settle(Settlement { results, then: Then::Done }).await
    }

    /// An attempt failed: what is answered is published, `job` (with what is missing) comes back after `after`
    /// with one attempt more.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub async fn retry(
        self,
        mut job: Job,
        results: Vec<ImageResult>,
        after: Duration,
    ) -> Result<(), QueueError> {
        job.attempt += 1;
        self.0.settle(Settlement { results, then: Then::Again(Box::new(job), after) }).await
    }

    /// No call counted: the job comes back after `after`, no attempt spent.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub async fn release(self, job: Job, after: Duration) -> Result<(), QueueError> {
        self.0.settle(Settlement { results: Vec::new(), then: Then::Again(Box::new(job), after) }).await
    }

    /// The job will not be tried again by itself: its results (failures among them) are published, and it is
    /// kept with the reason.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub async fn dead_letter(
        self,
        job: Job,
        results: Vec<ImageResult>,
        reason: Reason,
    ) -> Result<(), QueueError> {
        self.0.settle(Settlement { results, then: Then::Dead(Box::new(job), reason) }).await
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("job", &self.job.id).finish_non_exhaustive()
    }
}

/// Why a message is a dead letter: the routing key under which it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A message of no bytes.
    Empty,
    /// A message above the size that workers read.
    Oversize,
    /// A version that the workers do not know.
    UnknownVersion,
    /// Not a job.
    Malformed,
    /// The provider, or the image itself, says that it will never work.
    Rejected,
    /// Every attempt failed.
    AttemptsExhausted,
    /// The call left, no answer came, and the provider's policy is not to send it again.
    Ambiguous,
    /// What the batch may spend is spent: no call was made.
    BudgetSpent,
    /// The broker gave up: the job was delivered too often without being settled.
    DeliveryLimit,
}

impl Reason {
    /// The reason's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Oversize => "oversize",
            Self::UnknownVersion => "unknown-version",
            Self::Malformed => "malformed",
            Self::Rejected => "rejected",
            Self::AttemptsExhausted => "attempts-exhausted",
            Self::Ambiguous => "ambiguous",
            Self::BudgetSpent => "budget-spent",
            Self::DeliveryLimit => "delivery-limit",
        }
    }
}

/// Which results a subscriber wants, and from when.
#[derive(Clone, Debug, Default)]
pub struct Subscription {
    /// A durable subscriber's name: its own queue keeps what it has not taken. `None` reads the replay log.
    pub name: Option<String>,
    /// Where a reader of the replay log begins. A durable subscriber begins where it left off.
    pub from: From,
    /// What it wants.
    pub filter: Filter,
}

/// Where a reader of the replay log begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum From {
    /// With what is published from now on.
    #[default]
    Now,
    /// With what was published at most this long ago.
    Ago(Duration),
    /// With the oldest that is kept.
    Beginning,
}

/// Which announcements a subscriber wants; an empty field takes all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this batch.
    pub batch: Option<BatchName>,
    /// Only this provider.
    pub provider: Option<String>,
    /// Only this model.
    pub model: Option<String>,
    /// Only this outcome.
    pub outcome: Option<Outcome>,
}

impl Filter {
    /// Whether the filter wants `announcement`. Batch events pass by their batch alone.
    pub fn wants(&self, announcement: &Announcement) -> bool {
        let is =
            |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|wanted| wanted == value);
        match announcement {
            Announcement::Batch(event) => self.batch.as_ref().is_none_or(|wanted| *wanted == event.batch),
            Announcement::Result(result, _) => {
                self.batch.as_ref().is_none_or(|wanted| *wanted == result.batch)
                    && is(&self.provider, &result.provider)
                    && is(&self.model, &result.model)
                    && self.outcome.is_none_or(|wanted| wanted == result.outcome)
            }
        }
    }
}

/// One subscriber's announcements, at least once each: drop repetitions by their id.
#[async_trait]
pub trait Subscriber: Send {
    /// The next announcement that the filter wants; waits for one. Cancel-safe. A durable subscriber is sent a few
    /// hundred ahead of its commits, no more: commit in between.
    ///
    /// # Errors
    /// [`QueueError`] when the subscription can't go on; reconnection is tried first.
    async fn next(&mut self) -> Result<Announcement, QueueError>;

    /// Everything received so far is kept by the subscriber: it will not be delivered again.
    async fn commit(&mut self) -> Result<(), QueueError>;
}

/// What the queue can't do now; the variants are the caller's next moves.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QueueError {
    /// Try again: the server is away, blocked or restarting. Nothing is lost.
    #[error("the queue is away: {0}")]
    Away(String),
    /// Nothing more: what followed from the delivery is stored, only taking it off the queue failed. It comes
    /// again, and the ledger knows it.
    #[error("the delivery is settled, but will come again: {0}")]
    Unacked(String),
    /// Mend the topology first: the server holds something else under our names, or a message had no route.
    #[error("the queue's topology is not what pixfleet needs: {0}")]
    Topology(String),
    /// Never: this message can't be sent as it is.
    #[error("the message can't be sent: {0}")]
    Unsendable(String),
}
