//! The ledger seam: what is known of each job, so that a redelivery is not paid for twice.
//!
//! Here it holds one fact a job, "its results are out". Intent and ambiguous calls join it later.

use async_trait::async_trait;

use crate::id::Id;

/// What is known of a job that is about to be worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// Nothing: go on.
    Fresh,
    /// Its results are published already: settle the delivery and spend nothing.
    Settled,
}

/// What is known of each job.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// Asks before any money is spent.
    async fn begin(&self, job: Id) -> Result<Begun, LedgerError>;

    /// Records that every result of the job is durable. Said as soon as they are.
    async fn settled(&self, job: Id) -> Result<(), LedgerError>;
}

/// The ledger can't answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LedgerError {
    /// Ask again: the server is away.
    #[error("the ledger is away: {0}")]
    Away(String),
}
