//! The answers seam: what was answered before, so that the same picture is not paid for twice.
//!
//! A key is the hash of a prepared picture, or of its URL and validator, with provider, model, version and parameters.
//! Whoever finds nothing has the claim on it, and others wait for that one call.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{id::Id, ledger::LedgerError, result::Answer};

/// An answer that is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// What the model saw.
    pub answer: Answer,
    /// The call that it was paid with.
    pub call: Id,
    /// When it was answered.
    pub at: Timestamp,
}

/// What is there under a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Recalled {
    /// An answer.
    Found(Box<Kept>),
    /// Nothing: the claim is this process's, until it keeps an answer, gives up, dies, or the time is over.
    Claimed,
    /// Another one has the claim; look again after this time.
    Awaited(Duration),
}

/// What was answered before.
#[async_trait]
pub trait Answers: Send + Sync + 'static {
    /// Looks under every key, in their order. At the first that another one has the claim on it claims nothing more, so
    /// that no two wait for each other: give keys in their natural order. A claim is kept for `claim_for` at most.
    async fn recall(&self, keys: &[Id], claim_for: Duration) -> Result<Vec<Recalled>, LedgerError>;

    /// Keeps an answer for `ttl`, and ends the claim. Returns at once.
    fn keep(&self, key: Id, kept: Kept, ttl: Duration);

    /// There will be no answer from here: the claim ends, and the next one who looks has it. Returns at once.
    fn give_up(&self, key: Id);
}
