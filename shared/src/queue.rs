//! The queue seam: jobs in, deliveries out, each settled exactly once; results to whoever subscribes.

use std::{fmt, future::ready, time::Duration};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    batch::{BatchEvent, BatchName},
    id::Id,
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

    /// Makes room for the jobs of a batch that is about to be paused.
    async fn prepare_parking(&self, batch: &BatchName) -> Result<(), QueueError>;

    /// How many jobs of the batch are set aside.
    async fn parked(&self, batch: &BatchName) -> Result<u64, QueueError>;

    /// Puts the jobs of a batch that were set aside back into its lane, each once it is durable there; answers how many. What
    /// is set aside meanwhile is put back, too; broken off, it is begun again.
    async fn unpark(&self, batch: &BatchName) -> Result<u64, QueueError>;

    /// Looks through the dead letters that there are now, the oldest first.
    async fn dead_letters(&self) -> Result<Box<dyn DeadLetters>, QueueError>;

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
    /// Whether it was lent before, and not settled: somebody may have worked on it.
    pub again: bool,
    /// Whether it was lent so often that the queue is about to give it up, with no result.
    pub worn: bool,
    settle: Box<dyn Settle>,
}

/// How a delivery ends: the results to publish, and what becomes of the job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settlement {
    /// Confirmed before the delivery leaves the queue.
    pub results: Vec<ImageResult>,
    /// What becomes of the job.
    pub then: Then,
}

/// What becomes of a settled job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Then {
    /// It is done.
    Done,
    /// It comes back, in this form, after about this time.
    Again(Box<Job>, Duration),
    /// It is kept as a dead letter.
    Dead(Box<Job>, Reason),
    /// It is set aside until its batch is resumed.
    Parked(Box<Job>),
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
    async fn settle(self: Box<Self>, settlement: Settlement, steps: Steps<'_>) -> Result<(), QueueError>;
}

/// What is awaited at the steps of an engine that stores what follows from a delivery first, and takes it off the queue then:
/// a process may die in between. An engine that does both at once awaits none of it.
pub struct Steps<'a> {
    /// Before anything of it is stored: whether it still may be. What somebody else has ended meanwhile only leaves the queue.
    pub before: BoxFuture<'a, bool>,
    /// When all of it is stored, and the delivery is still on the queue.
    pub stored: BoxFuture<'a, ()>,
}

impl Steps<'_> {
    /// Nothing at any step.
    pub fn none() -> Self {
        Self { before: Box::pin(ready(true)), stored: Box::pin(ready(())) }
    }
}

impl Delivery {
    /// A delivery of `job` that `settle` ends; `again` when it was lent before.
    pub fn new(job: Job, again: bool, settle: Box<dyn Settle>) -> Self {
        Self { job, again, worn: false, settle }
    }

    /// The same, about to be given up by the queue or not.
    #[must_use]
    pub fn worn(self, worn: bool) -> Self {
        Self { worn, ..self }
    }

    /// The job, and the one right to settle it.
    pub fn split(self) -> (Job, Unsettled) {
        (self.job, Unsettled(self.settle))
    }
}

/// The right to settle one delivery, apart from its job.
pub struct Unsettled(Box<dyn Settle>);

impl Unsettled {
    /// The job's batch is paused: it is set aside as it is.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub async fn park(self, job: Job) -> Result<(), QueueError> {
        self.settle(Settlement { results: Vec::new(), then: Then::Parked(Box::new(job)) }).await
    }

    /// Ends the delivery as it was decided before.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub async fn settle(self, settlement: Settlement) -> Result<(), QueueError> {
        self.0.settle(settlement, Steps::none()).await
    }

    /// Ends the delivery as it was decided before, with something to await at the engine's steps.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub async fn settle_by_steps(self, settlement: Settlement, steps: Steps<'_>) -> Result<(), QueueError> {
        self.0.settle(settlement, steps).await
    }

    /// The job is done: its results are durable, then it leaves the queue.
    ///
    /// # Errors
    /// The job will be delivered again; [`QueueError::Unacked`] says that its results are out all the same.
    pub async fn complete(self, results: Vec<ImageResult>) -> Result<(), QueueError> {
        self.0.settle(Settlement { results, then: Then::Done }, Steps::none()).await
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
        self.0.settle(Settlement { results, then: Then::Again(Box::new(job), after) }, Steps::none()).await
    }

    /// No call counted: the job comes back after `after`, no attempt spent.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub async fn release(self, job: Job, after: Duration) -> Result<(), QueueError> {
        self.0
            .settle(
                Settlement { results: Vec::new(), then: Then::Again(Box::new(job), after) },
                Steps::none(),
            )
            .await
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
        self.0.settle(Settlement { results, then: Then::Dead(Box::new(job), reason) }, Steps::none()).await
    }
}

/// A look through the dead letters. What was not ended of them stays where it is.
#[async_trait]
pub trait DeadLetters: Send {
    /// The next one; `None` behind the last of those that there were when the look began.
    ///
    /// # Errors
    /// [`QueueError`] when the queue is away: begin again, nothing is lost.
    async fn next(&mut self) -> Result<Option<DeadLetter>, QueueError>;

    /// Lets go of those that were seen, so that the next look finds them.
    async fn close(self: Box<Self>);
}

/// A job that will not be tried again by itself, or a message that is none.
pub struct DeadLetter {
    /// Why, and when.
    pub death: Death,
    /// The job, or the message as it came.
    pub job: Result<Job, Vec<u8>>,
    buried: Box<dyn Buried>,
}

/// Why a message is a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Death {
    /// The reason under which it is kept.
    pub reason: Reason,
    /// The class of the last failure, where a call or its preparation failed.
    pub class: Option<String>,
    /// What was said last, bounded and without secrets.
    pub message: String,
    /// The HTTP status of the last answer, where there was one.
    pub status: Option<u16>,
    /// Who gave it up, where that is known.
    pub worker: Option<String>,
    /// When, where that is known.
    pub at: Option<Timestamp>,
}

/// An engine's way to end one dead letter. Callers use [`DeadLetter`]'s verbs.
#[async_trait]
pub trait Buried: Send {
    /// Puts `replay` on the queue, where there is one; once that is durable, the letter is gone.
    ///
    /// # Errors
    /// The letter is still there; the replayed job may be on the queue all the same.
    async fn end(self: Box<Self>, replay: Option<Job>) -> Result<(), QueueError>;
}

impl DeadLetter {
    /// A letter that `buried` ends.
    pub fn new(death: Death, job: Result<Job, Vec<u8>>, buried: Box<dyn Buried>) -> Self {
        Self { death, job, buried }
    }

    /// The job's id; of a message that is none, a hash of its bytes.
    pub fn id(&self) -> Id {
        match &self.job {
            Ok(job) => job.id,
            Err(bytes) => Id::of(&[b"pixfleet.unreadable.v1", bytes]),
        }
    }

    /// `job` goes to the queue, then the letter is gone.
    ///
    /// # Errors
    /// As [`Buried::end`].
    pub async fn replay(self, job: Job) -> Result<(), QueueError> {
        self.buried.end(Some(job)).await
    }

    /// The letter is gone, for good.
    ///
    /// # Errors
    /// As [`Buried::end`].
    pub async fn purge(self) -> Result<(), QueueError> {
        self.buried.end(None).await
    }
}

impl Death {
    /// The longest of its texts that is shown, in characters.
    pub const LONGEST_TEXT: usize = 300;

    /// What the failures among the results of a settlement say; at `at`.
    pub fn of(reason: Reason, results: &[ImageResult], at: Timestamp) -> Self {
        let failed = results.iter().find(|result| result.failure.is_some());
        let failure = failed.and_then(|result| result.failure.as_ref());
        let call = failed.and_then(|result| result.call.as_ref());
        Self {
            reason,
            class: failure.map(|failure| failure.class.clone()),
            message: failure.map(|failure| failure.message.clone()).unwrap_or_default(),
            status: call.and_then(|call| call.status),
            worker: call.map(|call| call.worker.clone()),
            at: Some(at),
        }
    }

    /// The same as it may be shown, whoever wrote it: each text on one line, and not too long.
    #[must_use]
    pub fn bounded(self) -> Self {
        let text = |text: String| -> String {
            // A terminal takes orders in them.
            text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(Self::LONGEST_TEXT).collect()
        };
        let Self { class, message, worker, .. } = self;
        Self { class: class.map(text), message: text(message), worker: worker.map(text), ..self }
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
    /// The job's deadline passed before it was answered.
    DeadlinePassed,
    /// Workers that took it up died of it.
    Poison,
    /// The broker gave up: the job was delivered too often without being settled.
    DeliveryLimit,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 11] = [
        Self::Empty,
        Self::Oversize,
        Self::UnknownVersion,
        Self::Malformed,
        Self::Rejected,
        Self::AttemptsExhausted,
        Self::Ambiguous,
        Self::BudgetSpent,
        Self::DeadlinePassed,
        Self::Poison,
        Self::DeliveryLimit,
    ];

    /// The reason of this word.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == word)
    }

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
            Self::DeadlinePassed => "deadline-passed",
            Self::Poison => "poison",
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
