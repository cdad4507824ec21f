//! The batches seam: what is known of each batch as a whole, and the word that stops it.

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    batch::{BatchName, Tally},
    ledger::LedgerError,
};

/// A batch, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The batch.
    pub batch: BatchName,
    /// Its jobs, over every run of its enqueue.
    pub jobs: u64,
    /// The results to expect: the models of those jobs.
    pub expected: u64,
    /// Whether its enqueue put in all that it had.
    pub closed: bool,
    /// Its results by what they count as, each counted once.
    pub tally: Tally,
    /// What keeps it, if anything.
    pub held: Option<Held>,
    /// When it was first heard of.
    pub opened_at: Timestamp,
}

/// What a producer says of its batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The batch.
    pub batch: BatchName,
    /// Its jobs, over every run of its enqueue.
    pub jobs: u64,
    /// The results to expect.
    pub results: u64,
    /// Whether that is all. Once it was, a batch stays closed while a further enqueue is under way.
    pub closed: bool,
}

/// What keeps a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// In which way.
    pub hold: Hold,
    /// Who said so.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// In which way a batch is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// No call leaves: its jobs are set aside until it is resumed.
    Paused,
    /// No call leaves any more: its jobs are settled as cancelled, for good.
    Cancelled,
}

impl Progress {
    /// Whether all that was expected is there.
    pub fn is_complete(&self) -> bool {
        self.closed && self.tally.total() >= self.expected
    }
}

/// What is known of each batch.
#[async_trait]
pub trait Batches: Send + Sync + 'static {
    /// Keeps what a producer says of its batch. Counts never shrink.
    async fn expect(&self, expected: &Expected) -> Result<(), LedgerError>;

    /// What keeps the batch, as far as this process knows without asking.
    fn held(&self, batch: &BatchName) -> Option<Hold>;

    /// Moves when what keeps some batch has changed.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Keeps a batch, or lets it go on (`None`), for the whole fleet. What is cancelled stays so: answers what holds then.
    async fn hold(&self, batch: &BatchName, held: Option<Held>) -> Result<Option<Held>, LedgerError>;

    /// What is known of a batch; none where it is not known.
    async fn progress(&self, batch: &BatchName) -> Result<Option<Progress>, LedgerError>;

    /// Every batch that is known, the youngest first.
    async fn list(&self) -> Result<Vec<Progress>, LedgerError>;

    /// Waits for a batch that became complete by what this process settled. Cancel-safe; for one task.
    async fn complete(&self) -> Progress;
}
