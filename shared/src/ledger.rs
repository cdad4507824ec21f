//! The ledger seam: what is known of each call, so that none is paid for twice.
//!
//! A job's calls have turns ([`Job::turn`](crate::job::Job::turn)), and of each turn one thing is known at a time:
//!
//! ```text
//!            depart              answered (paid)             settled
//!  (nothing) -----> intended ----------------> answered --------------> over
//!               |      | answered (free, unsent)                          ^
//!               |      +------------------> (nothing) --------------------+
//!               |      | whoever made it is gone, or its time is over     |
//!               |      +------------------> unanswered --- lost ----------+
//! ```
//!
//! A delivery that comes again meets it: an answered call is published from here, one under way is waited for, and one
//! that left without an answer is *ambiguous*: the provider's policy decides, and it is listed.

use std::time::Duration;

use async_trait::async_trait;
use jiff::{Timestamp, civil::Date};
use serde::{Deserialize, Serialize};

use crate::{
    batch::{BatchName, Tally},
    id::Id,
    job::Job,
    queue::Settlement,
};

/// A call that is about to leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The call's id: of this request and no other, also where the same job is asked again.
    pub call: Id,
    /// The job that it serves.
    pub job: Id,
    /// The job's batch.
    pub batch: BatchName,
    /// The user's id of the image.
    pub image: String,
    /// The provider.
    pub provider: String,
    /// The account that it is charged to: the name of its limit stack.
    pub account: String,
    /// The models that it asks.
    pub models: Vec<String>,
    /// The job's turn.
    pub turn: u64,
    /// Calls of the job that were never answered, before this one.
    pub ambiguous: u32,
    /// What it costs, in millionths of `currency`.
    pub cost_micros: u64,
    /// The provider's unit of money.
    pub currency: String,
    /// Who makes it.
    pub worker: String,
    /// When it leaves, about.
    pub leaves_at: Timestamp,
    /// So long after its intent it is over for certain, in milliseconds: answered, failed or given up.
    pub lasts_ms: u64,
}

/// What is known of a job's turn.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    /// Nothing that stands against a call. From [`depart`](Ledger::depart): the intent is recorded.
    Clear,
    /// The turn is over: its results are out, and whatever follows from it is on the queue.
    Over,
    /// Its call was answered and is paid for: this is what follows from it.
    Answered(Box<Settlement>),
    /// Its call is made at this moment, by another process, or by this one for another delivery. It is worth looking again
    /// after this time.
    UnderWay(Duration),
    /// Its call left, and whoever made it can't tell any more what became of it.
    Unanswered(Box<Intent>),
}

/// What is known of a job that was lent before, and came again.
#[derive(Clone, Debug, PartialEq)]
pub struct TakenUp {
    /// Of its turn.
    pub known: Known,
    /// Processes that took it up, and died before they let go of it.
    pub crashed: u32,
    /// Processes that took it up and have not let go of it, and may live.
    pub unsure: u32,
}

/// What became of a call that left, or was about to.
#[derive(Clone, Debug)]
pub enum Answered {
    /// It is paid for: what follows from it is kept until it is settled.
    Paid(Settlement),
    /// It was answered and costs nothing.
    Free,
    /// It did not leave after all.
    Unsent,
}

/// What was decided on a call that was never answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lost {
    /// Another call follows.
    Resent,
    /// The job is a dead letter.
    Parked,
}

/// A turn is over: its results are out, and what follows is on the queue.
#[derive(Clone, Debug)]
pub struct Mark {
    /// The job.
    pub job: Id,
    /// Its batch.
    pub batch: BatchName,
    /// The turn.
    pub turn: u64,
    /// What its results count as. Counted once, however often it is said.
    pub tally: Tally,
    /// How it ended.
    pub end: End,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The job is done.
    Done,
    /// Another turn follows.
    Again,
    /// The job is a dead letter.
    Dead,
}

/// A call that was never answered, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unanswered {
    /// The call.
    pub intent: Intent,
    /// What was decided.
    pub then: Lost,
    /// When.
    pub noted_at: Timestamp,
    /// What somebody found out about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<Resolution>,
}

/// What somebody found out about a call that was never answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolution {
    /// Whether the vendor charged it.
    pub charged: bool,
    /// Who says so.
    pub by: String,
    /// When it was said.
    pub at: Timestamp,
}

/// What one account asked of one model on one day (UTC). The line of model `*` counts calls, whatever their models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BillLine {
    /// The day.
    pub day: Date,
    /// The provider.
    pub provider: String,
    /// The account: the name of its limit stack.
    pub account: String,
    /// The model, or `*`.
    pub model: String,
    /// Calls that were answered.
    pub answered: u64,
    /// Those of them that are counted as paid for.
    pub charged: u64,
    /// What those cost, in millionths of `currency`; a call's cost is shared by its models.
    pub cost_micros: u64,
    /// The provider's unit of money.
    pub currency: String,
}

/// What is known of each call.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// Takes up a job that was lent before, and tells what is known of it. Until [`let_go`](Self::let_go) it is in this
    /// process's hands, also when the process dies.
    async fn take_up(&self, job: &Job) -> Result<TakenUp, LedgerError>;

    /// The process lives and has done with the job for now, however its delivery ended. Returns at once.
    fn let_go(&self, job: &Job);

    /// Records that a call is about to leave, unless what is known of its turn stands against it. Saying the same call
    /// again (its id decides, not its process) is no contradiction.
    async fn depart(&self, intent: &Intent) -> Result<Known, LedgerError>;

    /// Says what became of a call. Returns at once; told within milliseconds, as soon as the ledger can be reached.
    fn answered(&self, intent: &Intent, answered: Answered);

    /// Waits until what was said of the job's turn is stored, and answers whether it still stands: nobody has ended the turn
    /// meanwhile, or gone on to the next. A process that stood still for long comes too late.
    async fn stands(&self, job: &Job) -> Result<bool, LedgerError>;

    /// A call was never answered: it is listed, with what was decided, and nobody who meets it waits for it. Returns at once, as
    /// [`answered`](Self::answered).
    fn lost(&self, intent: &Intent, then: Lost);

    /// Says that a turn is over. Returns at once, as [`answered`](Self::answered); unsaid, it costs at most a repetition that is
    /// noticed.
    fn settled(&self, mark: Mark);

    /// A dead letter is about to be sent again, as `job`: its results no longer count as dead, and its new turn is free.
    /// Answers whether that is news; else it was said before.
    async fn reopen(&self, job: &Job) -> Result<bool, LedgerError>;

    /// Waits, within a bound, until what was said is stored.
    async fn flush(&self);

    /// The days (UTC) of which something is kept, the oldest first.
    async fn days(&self) -> Result<Vec<Date>, LedgerError>;

    /// The calls that were noted as never answered on this day.
    async fn unanswered(&self, day: Date) -> Result<Vec<Unanswered>, LedgerError>;

    /// Keeps what somebody found out about such a call. Answers whether it is listed on this day.
    async fn resolve(&self, day: Date, call: Id, resolution: &Resolution) -> Result<bool, LedgerError>;

    /// What was answered on this day, by account and model.
    async fn bill(&self, day: Date) -> Result<Vec<BillLine>, LedgerError>;
}

/// The ledger can't answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LedgerError {
    /// Ask again: the server is away.
    #[error("the ledger is away: {0}")]
    Away(String),
}
