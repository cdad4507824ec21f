//! What is shown of one dead letter: no picture, no signature of a URL.

use jiff::Timestamp;
use pixfleet_shared::{
    id::Id,
    job::{Job, Source},
    queue::{DeadLetter, Death},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::words;

/// The digits of an id that tell letters apart in a list.
const SHORT: usize = 12;

/// One line of a list.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    pub(super) id: Id,
    #[serde(flatten)]
    pub(super) death: Death,
    /// Calls that counted.
    pub(super) attempts: u32,
    #[serde(flatten)]
    pub(super) of: Of,
}

/// What died.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Of {
    /// A job.
    Job {
        batch: String,
        image: String,
        source: String,
        provider: String,
        /// Those that have no answer.
        models: Vec<String>,
        replays: u32,
    },
    /// A message that is none.
    Bytes { bytes: usize },
}

impl Shown {
    /// What is shown of `letter`.
    pub(super) fn of(letter: &DeadLetter) -> Self {
        let of = match &letter.job {
            Ok(job) => Of::Job {
                batch: job.batch.to_string(),
                image: job.image.id.clone(),
                source: job.image.source.public(),
                provider: job.provider.clone(),
                models: job.models.clone(),
                replays: job.replays,
            },
            Err(bytes) => Of::Bytes { bytes: bytes.len() },
        };
        Self { id: letter.id(), death: letter.death.clone(), attempts: attempts(letter), of }
    }

    /// The cells of a list, each on one line: a job of a stranger may say anything.
    pub(super) fn cells(&self) -> [String; 9] {
        let (batch, provider, models) = match &self.of {
            Of::Job { batch, provider, models, .. } => (batch.clone(), provider.clone(), models.join(", ")),
            Of::Bytes { bytes } => ("-".to_owned(), "-".to_owned(), format!("no job: {bytes} bytes")),
        };
        let Death { reason, class, message, at, .. } = &self.death;
        [
            self.id.to_string()[..SHORT].to_owned(),
            batch,
            provider,
            models,
            reason.as_str().to_owned(),
            class.clone().unwrap_or_else(|| "-".to_owned()),
            self.attempts.to_string(),
            at.map_or_else(|| "-".to_owned(), moment),
            message.clone(),
        ]
        .map(|cell| words::one_line(&cell))
    }
}

/// A moment to the second, in UTC, without blanks.
pub(super) fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Calls that counted: the job's own number does not hold the one that it died of.
fn attempts(letter: &DeadLetter) -> u32 {
    let before = letter.job.as_ref().map_or(0, |job| job.attempt);
    before + u32::from(letter.death.worker.is_some())
}

/// Everything that may be shown of a letter, as JSON.
pub(super) fn whole(letter: &DeadLetter) -> serde_json::Result<Value> {
    let mut whole = json!({ "id": letter.id(), "death": letter.death, "attempts": attempts(letter) });
    match &letter.job {
        Ok(job) => whole["job"] = serde_json::to_value(public(job))?,
        Err(bytes) => whole["bytes"] = bytes.len().into(),
    }
    Ok(whole)
}

/// The job without the bytes of its picture and without secrets of its URL.
fn public(job: &Job) -> Job {
    let mut job = job.clone();
    let public = job.image.source.public();
    job.image.source = match job.image.source {
        Source::Url(_) => Source::Url(public),
        Source::Inline(_) => Source::Inline(public),
        Source::Object(_) => Source::Object(public),
    };
    job
}
