//! The batch: what one enqueue put in, with a name, its jobs, and the number of results to expect.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    id::Id,
    result::{ImageResult, Outcome},
};

/// A batch's name: 1 to 64 letters, digits, `-` or `_`, so that it can be a word of a routing key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^[A-Za-z0-9_-]{1,64}$"))]
pub struct BatchName(String);

/// A text that can't name a batch.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` can't name a batch: use 1 to 64 letters, digits, `-` or `_`, for example `spring-2026`")]
pub struct BadBatchName(String);

impl BatchName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BatchName {
    type Err = BadBatchName;

    fn from_str(text: &str) -> Result<Self, BadBatchName> {
        let allowed = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if allowed && (1..=64).contains(&text.len()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadBatchName(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for BatchName {
    type Error = BadBatchName;

    fn try_from(text: String) -> Result<Self, BadBatchName> {
        text.parse()
    }
}

impl From<BatchName> for String {
    fn from(name: BatchName) -> Self {
        name.0
    }
}

impl fmt::Display for BatchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What subscribers are told of a batch as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BatchEvent {
    /// Version of this format: 1.
    pub v: u32,
    /// The batch.
    pub batch: BatchName,
    /// What happened to it.
    pub state: BatchState,
    /// Jobs of the batch so far: distinct, over every run of the enqueue.
    pub jobs: u64,
    /// Results to expect: the models of those jobs.
    pub results: u64,
    /// When it was said.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// What its results count as; only with `complete`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tally: Option<Tally>,
}

/// What the results of a batch count as, each once: at its end they are as many as were expected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tally {
    /// Answered by a call.
    pub ok: u64,
    /// Answered before: no call was made.
    pub cached: u64,
    /// The picture will never work at the model.
    pub rejected: u64,
    /// Given up: a dead letter waits.
    pub dead: u64,
    /// The batch was cancelled first: no call was made.
    pub cancelled: u64,
    /// A call left, its answer never came, and it is not sent again.
    pub ambiguous: u64,
}

impl Tally {
    /// What these results count as.
    pub fn of<'a>(results: impl IntoIterator<Item = &'a ImageResult>) -> Self {
        let mut tally = Self::default();
        for result in results {
            let count = match result.outcome {
                Outcome::Ok if result.cached => &mut tally.cached,
                Outcome::Ok => &mut tally.ok,
                Outcome::Rejected => &mut tally.rejected,
                Outcome::Dead => &mut tally.dead,
                Outcome::Cancelled => &mut tally.cancelled,
                Outcome::Ambiguous => &mut tally.ambiguous,
            };
            *count += 1;
        }
        tally
    }

    /// The counts with their words, in their order.
    pub fn named(&self) -> [(&'static str, u64); 6] {
        let Self { ok, cached, rejected, dead, cancelled, ambiguous } = *self;
        [
            ("ok", ok),
            ("cached", cached),
            ("rejected", rejected),
            ("dead", dead),
            ("cancelled", cancelled),
            ("ambiguous", ambiguous),
        ]
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.named().into_iter().map(|(_, count)| count).sum()
    }
}

/// What happened to a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BatchState {
    /// An enqueue began; `jobs` and `results` count what earlier runs put in.
    Opened,
    /// An enqueue put in all that it had; the batch is complete when that many results are seen.
    Closed,
    /// Every result that was expected is out.
    Complete,
}

impl BatchState {
    /// The state's word on the wire and in routing keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Closed => "closed",
            Self::Complete => "complete",
        }
    }
}

impl BatchEvent {
    /// The event's deterministic id: saying the same thing twice is one event.
    pub fn id(&self) -> Id {
        let counts = [self.jobs.to_be_bytes(), self.results.to_be_bytes()].concat();
        Id::of(&[
            b"pixfleet.batch.v1",
            self.batch.as_str().as_bytes(),
            self.state.as_str().as_bytes(),
            &counts,
        ])
    }
}
