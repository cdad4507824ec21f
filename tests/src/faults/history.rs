//! What is left of a run: everything that the checker judges, as plain data.

use std::collections::BTreeMap;

use pixfleet_sandbox::{Fault, Line, Outcome as Served};
use pixfleet_shared::{
    batches::Progress,
    id::Id,
    ledger::Lost,
    queue::Reason,
    result::{ImageResult, Outcome},
};

/// All that is known of one batch at the end of a run.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The jobs that the producer put in, by their id.
    pub wanted: BTreeMap<Id, Wanted>,
    /// What a durable subscriber was sent, in its order, repetitions among it.
    pub received: Vec<Seen>,
    /// The same of the replay log.
    pub replayed: Vec<Seen>,
    /// Result ids in a file that a sink wrote, one a row.
    pub filed: Vec<String>,
    /// The dead letters.
    pub letters: Vec<Letter>,
    /// Jobs that are set aside, because their batch is paused.
    pub parked: Vec<Id>,
    /// The calls that the API saw.
    pub calls: Vec<CallSeen>,
    /// The calls that the ledger lists as never answered.
    pub listed: Vec<Listed>,
    /// Queues of jobs in which something is left: name, ready, unacked.
    pub left: Vec<(String, u64, u64)>,
    /// What is known of the batch as a whole.
    pub progress: Option<Progress>,
    /// What the provider's policy allows.
    pub policy: Policy,
}

/// A job that was put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The picture's URL: the API's log names it.
    pub url: String,
    /// The ids of its results.
    pub results: Vec<Id>,
}

/// A result, as a subscriber was sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub id: Id,
    /// Its job.
    pub job: Id,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether it is an answer of before.
    pub cached: bool,
    /// Whether a call for it was answered with success, whether or not that could be read.
    pub answered: bool,
}

/// A dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The job; none for a message that is no job.
    pub job: Option<Id>,
    /// Why; none where the headers do not say.
    pub reason: Option<Reason>,
}

/// A call that reached the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallSeen {
    /// The picture's URL.
    pub url: String,
    /// Whether it is on the bill.
    pub charged: bool,
    /// Whether its answer was whole, and nobody could read it: known as paid for, and of no use.
    pub unreadable: bool,
}

/// A call that was never answered, as the ledger lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The job.
    pub job: Id,
    /// What was decided.
    pub then: Lost,
}

/// What the provider's policy on unanswered calls allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// They are never sent again: no job is charged twice.
    #[default]
    Park,
    /// They are sent again once: a job is charged twice at most, and only where that is listed, or the first
    /// answer could not be read.
    ResendOnce,
}

impl Policy {
    /// Its word in a provider's definition.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Park => "park",
            Self::ResendOnce => "resend_once",
        }
    }
}

impl From<&ImageResult> for Seen {
    fn from(result: &ImageResult) -> Self {
        let status = result.call.as_ref().and_then(|call| call.status);
        let answered = !result.cached && status.is_some_and(|status| (200..300).contains(&status));
        Self { id: result.id, job: result.job, outcome: result.outcome, cached: result.cached, answered }
    }
}

impl CallSeen {
    /// From a line of the sandbox's access log; none for a call that was not understood.
    pub fn of(line: Line) -> Option<Self> {
        let charged = match line.outcome {
            Served::Accepted => true,
            Served::Faulted(fault) => fault.is_charged(),
            Served::Throttled | Served::Rejected => false,
        };
        let unreadable = matches!(line.outcome, Served::Faulted(Fault::Malformed | Fault::Huge));
        Some(Self { url: line.image?, charged, unreadable })
    }
}
