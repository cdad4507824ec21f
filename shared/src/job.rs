//! The job: one image, one provider, one or more models. What goes through the queue, and what one call serves.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{batch::BatchName, budget::Budget, id::Id, trace::TraceParent};

/// The version of the job's and the result's message format that this build writes and reads.
pub const WIRE_VERSION: u32 = 1;

/// The largest job message in bytes. Larger pictures travel by URL or by path.
pub const MAX_JOB_BYTES: usize = 1024 * 1024;

/// Turns of a job from one replay to the next; attempts are at most a hundred.
pub const TURNS_A_REPLAY: u64 = 1_000;

/// The most that a job's message may say of a count of its own.
const MOST_COUNTED: u32 = 1_000_000;

/// The most turns that a batch may have for each of one of weight 1.
pub const MOST_WEIGHT: u8 = 100;

/// One image, one provider, one or more models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// Version of this format: 1.
    pub v: u32,
    /// Hash of batch, image, provider and models: the same work has the same id.
    pub id: Id,
    /// The batch that this job belongs to.
    pub batch: BatchName,
    /// The picture.
    pub image: Image,
    /// The provider's name in the worker's settings.
    pub provider: String,
    /// The models still to be answered. A retry carries only what is missing; the id keeps naming the whole job.
    pub models: Vec<String>,
    /// The class that the job waits in.
    #[serde(default)]
    pub priority: Priority,
    /// The queue of that class that the batch keeps to.
    #[serde(default)]
    pub lane: u8,
    /// How many turns the batch has for each of one of weight 1, where both wait in the same class: 1 to 100.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1, max = 100))]
    pub weight: u8,
    /// What the whole batch may spend; none means no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Calls that counted against the retry budget so far.
    #[serde(default)]
    pub attempt: u32,
    /// Times that the provider answered "over the limit" so far. Never an attempt.
    #[serde(default)]
    pub throttled: u32,
    /// Calls that left and whose answer never came. Counted among the attempts, too.
    #[serde(default)]
    pub ambiguous: u32,
    /// Times that the job was sent again from the dead letters.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub replays: u32,
    /// Whether answers of before are passed over: the call is made in any case.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refresh: bool,
    /// After this moment no call is made for it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub deadline: Option<Timestamp>,
    /// When the producer made the job.
    #[schemars(with = "String")]
    pub enqueued_at: Timestamp,
    /// Columns of the manifest that travel to the results untouched.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// W3C trace context of the enqueue, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<TraceParent>,
}

fn one() -> u8 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out a reference")]
fn is_one(weight: &u8) -> bool {
    *weight == 1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// A picture with an id of the user's, and where to find it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Image {
    /// The user's name for the picture: a row id, a file name or, by default, its URL.
    pub id: String,
    /// Where the bytes are.
    pub source: Source,
}

/// Where a picture's bytes are.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// An `http` or `https` URL.
    Url(String),
    /// The bytes themselves, in standard base64.
    Inline(String),
    /// A path that the workers can read, below one of their configured roots.
    Object(String),
}

/// The class of a job. Workers pull from every class by weight, so none starves.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Someone waits for it.
    High,
    /// The default.
    #[default]
    Normal,
    /// Whenever there is room.
    Bulk,
}

/// A job's message that can't be read, with the word under which it is dead-lettered.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// A message of no bytes.
    #[error("the message is empty: send a job as JSON (docs/schemas/job.v1.json)")]
    Empty,
    /// A message above [`MAX_JOB_BYTES`].
    #[error("the message has {0} bytes, above {MAX_JOB_BYTES}: send the picture by URL or by path")]
    Oversize(usize),
    /// A version that this build does not know.
    #[error(
        "the message says v = {0}, this worker reads v = {WIRE_VERSION}: upgrade the workers, then replay"
    )]
    UnknownVersion(u64),
    /// Not a job.
    #[error("the message is not a job: {0} (docs/schemas/job.v1.json)")]
    Malformed(String),
}

impl Priority {
    /// Every class, the most urgent first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Bulk];

    /// The class's word on the wire and in queue names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Bulk => "bulk",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A picture's bytes have no place in a log, and a URL's query may hold a signature.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.public())
    }
}

impl Source {
    /// The source as it may be shown: a URL without its query and credentials, a path, or a size.
    pub fn public(&self) -> String {
        match self {
            Self::Url(url) => {
                let bare = url.split(['?', '#']).next().unwrap_or_default();
                match (bare.find("://"), bare.rfind('@')) {
                    (Some(scheme), Some(at)) if at > scheme => {
                        format!("{}{}", &bare[..scheme + 3], &bare[at + 1..])
                    }
                    _ => bare.to_owned(),
                }
            }
            Self::Inline(base64) => format!("inline:{} bytes", base64.len() / 4 * 3),
            Self::Object(path) => path.clone(),
        }
    }

    fn id_parts(&self) -> (&'static [u8], &[u8]) {
        match self {
            Self::Url(url) => (b"url", url.as_bytes()),
            Self::Inline(base64) => (b"inline", base64.as_bytes()),
            Self::Object(path) => (b"object", path.as_bytes()),
        }
    }
}

impl Image {
    /// Hash of the user's id and the source.
    pub fn hash(&self) -> Id {
        let (kind, value) = self.source.id_parts();
        Id::of(&[b"pixfleet.image.v1", self.id.as_bytes(), kind, value])
    }
}

impl Job {
    /// A new job with its deterministic id.
    pub fn new(batch: BatchName, image: Image, provider: String, models: Vec<String>) -> Self {
        let hash = image.hash().to_bytes();
        let mut parts: Vec<&[u8]> =
            vec![b"pixfleet.job.v1", batch.as_str().as_bytes(), &hash, provider.as_bytes()];
        parts.extend(models.iter().map(String::as_bytes));
        Self {
            v: WIRE_VERSION,
            id: Id::of(&parts),
            batch,
            image,
            provider,
            models,
            priority: Priority::default(),
            lane: 0,
            weight: 1,
            budget: None,
            attempt: 0,
            throttled: 0,
            ambiguous: 0,
            replays: 0,
            refresh: false,
            deadline: None,
            enqueued_at: Timestamp::now(),
            metadata: BTreeMap::new(),
            traceparent: None,
        }
    }

    /// The id of this job's result for `model`: hash of batch, image, provider and model.
    pub fn result_id(&self, model: &str) -> Id {
        Id::of(&[
            b"pixfleet.result.v1",
            self.batch.as_str().as_bytes(),
            &self.image.hash().to_bytes(),
            self.provider.as_bytes(),
            model.as_bytes(),
        ])
    }

    /// The job's turn: it grows with each attempt and each replay, so an old copy of the message is known by it.
    pub fn turn(&self) -> u64 {
        u64::from(self.replays) * TURNS_A_REPLAY + u64::from(self.attempt).min(TURNS_A_REPLAY - 1)
    }

    /// The weight as it counts: whoever wrote the job, it is within its bounds.
    pub fn weight(&self) -> u8 {
        self.weight.clamp(1, MOST_WEIGHT)
    }

    /// The routing key of the job: `<priority>.<lane>`.
    pub fn routing_key(&self) -> String {
        format!("{}.{}", self.priority, self.lane)
    }

    /// The job as its message.
    ///
    /// # Errors
    /// [`Unreadable::Oversize`], because no worker would read it.
    pub fn to_message(&self) -> Result<Vec<u8>, Unreadable> {
        let bytes = serde_json::to_vec(self).map_err(|error| Unreadable::Malformed(error.to_string()))?;
        if bytes.len() > MAX_JOB_BYTES { Err(Unreadable::Oversize(bytes.len())) } else { Ok(bytes) }
    }

    /// Whoever wrote the message: workers add to its counts, and tell its turns apart by them.
    fn within_bounds(self) -> Result<Self, Unreadable> {
        if self.models.is_empty() {
            return Err(Unreadable::Malformed("`models` is empty".to_owned()));
        }
        let counts = [
            ("attempt", self.attempt, TURNS_A_REPLAY as u32 - 1),
            ("throttled", self.throttled, MOST_COUNTED),
            ("ambiguous", self.ambiguous, MOST_COUNTED),
            ("replays", self.replays, MOST_COUNTED),
        ];
        match counts.into_iter().find(|(_, count, most)| count > most) {
            Some((name, count, most)) => {
                Err(Unreadable::Malformed(format!("`{name}` is {count}; it may be {most} at most")))
            }
            None => Ok(self),
        }
    }

    /// Reads a message; every way in which it can be wrong has its own error.
    ///
    /// # Errors
    /// See [`Unreadable`].
    pub fn from_message(bytes: &[u8]) -> Result<Self, Unreadable> {
        #[derive(Deserialize)]
        struct Versioned {
            v: u64,
        }
        match bytes.len() {
            0 => return Err(Unreadable::Empty),
            n if n > MAX_JOB_BYTES => return Err(Unreadable::Oversize(n)),
            _ => {}
        }
        let malformed = |error: serde_json::Error| Unreadable::Malformed(error.to_string());
        match serde_json::from_slice::<Self>(bytes) {
            Ok(job) if job.v == WIRE_VERSION => job.within_bounds(),
            // A later version may not parse as this one: say that it is later, not that it is broken.
            read => match serde_json::from_slice::<Versioned>(bytes).map_err(malformed)? {
                Versioned { v } if v != u64::from(WIRE_VERSION) => Err(Unreadable::UnknownVersion(v)),
                _ => Err(read.err().map_or_else(|| Unreadable::UnknownVersion(0), malformed)),
            },
        }
    }
}

impl Unreadable {
    /// The reason under which such a message is dead-lettered.
    pub fn reason(&self) -> crate::queue::Reason {
        match self {
            Self::Empty => crate::queue::Reason::Empty,
            Self::Oversize(_) => crate::queue::Reason::Oversize,
            Self::UnknownVersion(_) => crate::queue::Reason::UnknownVersion,
            Self::Malformed(_) => crate::queue::Reason::Malformed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn job(models: &[&str]) -> Job {
        let image =
            Image { id: "row-1".into(), source: Source::Url("https://example.com/a.jpg?sig=s".into()) };
        Job::new(
            "b1".parse().unwrap(),
            image,
            "restb".into(),
            models.iter().map(|m| (*m).to_owned()).collect(),
        )
    }

    #[test]
    fn a_job_made_twice_has_one_id_and_each_model_its_own_result() {
        let (one, two) = (job(&["a", "b"]), job(&["a", "b"]));
        assert_eq!(one.id, two.id);
        assert_ne!(one.id, job(&["a"]).id);
        assert_ne!(one.result_id("a"), one.result_id("b"));
        assert_eq!(one.result_id("a"), job(&["a"]).result_id("a"), "grouping does not change a result's id");
    }

    #[test]
    fn counts_at_their_ends_are_no_job() {
        type Set = fn(&mut Job);
        let sets: [Set; 4] = [
            |job| job.attempt = 1_000,
            |job| job.throttled = u32::MAX,
            |job| job.ambiguous = u32::MAX,
            |job| job.replays = u32::MAX,
        ];
        for set in sets {
            let mut job = job(&["a"]);
            set(&mut job);
            let error = Job::from_message(&job.to_message().unwrap()).unwrap_err();
            assert!(matches!(&error, Unreadable::Malformed(why) if why.contains("at most")), "{error}");
        }
    }

    #[test]
    fn a_job_is_read_back_from_its_message() {
        let job = job(&["a"]);
        assert_eq!(Job::from_message(&job.to_message().unwrap()).unwrap(), job);
    }

    #[test]
    fn each_unreadable_message_has_its_reason() {
        let later = br#"{"v": 2, "whatever": true}"#;
        assert!(matches!(Job::from_message(b""), Err(Unreadable::Empty)));
        assert!(matches!(Job::from_message(&vec![b' '; MAX_JOB_BYTES + 1]), Err(Unreadable::Oversize(_))));
        assert!(matches!(Job::from_message(later), Err(Unreadable::UnknownVersion(2))));
        assert!(matches!(Job::from_message(b"{\"v\":1}"), Err(Unreadable::Malformed(_))));
        assert!(matches!(Job::from_message(b"nonsense"), Err(Unreadable::Malformed(_))));
        assert!(matches!(Job::from_message(&job(&[]).to_message().unwrap()), Err(Unreadable::Malformed(_))));
    }

    #[test]
    fn a_shown_source_keeps_no_signature_password_or_picture() {
        let url = Source::Url("https://user:pw@cdn.example.com/a.jpg?X-Signature=secret".into());
        assert_eq!(url.public(), "https://cdn.example.com/a.jpg");
        assert_eq!(format!("{:?}", Source::Inline("QUJD".into())), "inline:3 bytes");
    }

    #[test]
    fn a_job_of_an_earlier_build_has_weight_one_and_no_budget_and_is_written_as_before() {
        let mut job = job(&["a"]);
        let plain = String::from_utf8(job.to_message().unwrap()).unwrap();
        assert!(!plain.contains("weight") && !plain.contains("budget"), "{plain}");
        let id = job.id;
        (job.weight, job.budget) = (3, Some(Budget::Thousandths(500)));
        let read = Job::from_message(&job.to_message().unwrap()).unwrap();
        assert_eq!((read.weight, read.budget, read.id), (3, Some(Budget::Thousandths(500)), id));
        let heavy = plain.replacen("\"v\":1", "\"v\":1,\"weight\":255", 1);
        assert_eq!(Job::from_message(heavy.as_bytes()).unwrap().weight(), MOST_WEIGHT);
    }

    proptest! {
        #[test]
        fn no_bytes_crash_the_reader(bytes: Vec<u8>) {
            let _ = Job::from_message(&bytes);
        }
    }
}
