//! The result: one image seen by one model, as subscribers receive it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    batch::{BatchEvent, BatchName},
    id::Id,
    job::{Job, Source, WIRE_VERSION},
    trace::TraceParent,
};

/// One image seen by one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ImageResult {
    /// Version of this format: 1.
    pub v: u32,
    /// Hash of batch, image, provider and model. A sink upserts by it; a redelivery then shows nowhere.
    pub id: Id,
    /// The job that asked.
    pub job: Id,
    /// The batch.
    pub batch: BatchName,
    /// The user's id of the image.
    pub image: String,
    /// Where the image is: its URL or path; null for inline bytes.
    pub source: Option<String>,
    /// The provider.
    pub provider: String,
    /// The model.
    pub model: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether the answer is one of before: no call was made for it, and nothing was paid.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cached: bool,
    /// What the model saw; null unless the outcome is `ok`.
    pub answer: Option<Answer>,
    /// Why there is no answer; null when the outcome is `ok`.
    pub failure: Option<Failure>,
    /// The call that settled it; null when none was made.
    pub call: Option<Call>,
    /// When the job was enqueued.
    #[schemars(with = "String")]
    pub enqueued_at: Timestamp,
    /// When the result was made.
    #[schemars(with = "String")]
    pub completed_at: Timestamp,
    /// The manifest's further columns.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// How one image ended at one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Answered.
    Ok,
    /// This image will never work at this model: a bad URL, an unsupported format, a 4xx.
    Rejected,
    /// Given up after its attempts, or unreadable: it waits as a dead letter.
    Dead,
    /// Its batch was cancelled first: no call was made.
    Cancelled,
    /// A call left and its answer never came; the provider's policy is not to send it again. It waits as a dead letter.
    Ambiguous,
}

/// What a model saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Answer {
    /// Labels, the most confident first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Label>,
    /// A value that is not a label: a score, a text, an object of the provider's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// The model's part of the provider's response, untouched, where the provider is set to keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<Value>,
}

/// One label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Label {
    /// The provider's word.
    pub label: String,
    /// 0 to 1 where the provider tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// The class of the last failure: `rejected`, `transient`, `ambiguous`, `unauthorized`, ...
    pub class: String,
    /// What the provider or the network said, bounded and without secrets.
    pub message: String,
}

/// The HTTP request that settled a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Call {
    /// Of this request and no other; the models of one call share it.
    pub id: Id,
    /// When the request left.
    #[schemars(with = "String")]
    pub sent_at: Timestamp,
    /// From the request's leaving to the response's last byte, in milliseconds.
    pub duration_ms: f64,
    /// The HTTP status, where one came.
    pub status: Option<u16>,
    /// Which attempt it was, from 1.
    pub attempt: u32,
    /// Times that the provider answered "over the limit" for this job before.
    pub throttled: u32,
    /// What the call cost, in the provider's units; shared by the models of the call.
    pub cost: f64,
    /// The binding rate of the limit stack when it left, in calls per second; null without a limit.
    pub limit_per_s: Option<f64>,
    /// The worker that made it.
    pub worker: String,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 5] = [Self::Ok, Self::Rejected, Self::Dead, Self::Cancelled, Self::Ambiguous];

    /// The outcome's word on the wire, in routing keys and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Rejected => "rejected",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Ambiguous => "ambiguous",
        }
    }
}

impl ImageResult {
    /// The result of `job` at `model`, without an answer yet: the caller fills in what it knows.
    pub fn of(job: &Job, model: &str, outcome: Outcome) -> Self {
        Self {
            v: WIRE_VERSION,
            id: job.result_id(model),
            job: job.id,
            batch: job.batch.clone(),
            image: job.image.id.clone(),
            source: match &job.image.source {
                Source::Url(place) | Source::Object(place) => Some(place.clone()),
                Source::Inline(_) => None,
            },
            provider: job.provider.clone(),
            model: model.to_owned(),
            outcome,
            cached: false,
            answer: None,
            failure: None,
            call: None,
            enqueued_at: job.enqueued_at,
            completed_at: Timestamp::now(),
            metadata: job.metadata.clone(),
        }
    }

    /// The routing key: `<provider>.<model>.<outcome>.<batch>`, each one word.
    pub fn routing_key(&self) -> String {
        let outcome = self.outcome.as_str();
        format!("{}.{}.{outcome}.{}", word(&self.provider), word(&self.model), self.batch)
    }
}

/// `text` as one word of a topic routing key: `.`, `*`, `#` and blanks become `_`, at most 60 bytes are kept.
///
/// A key has at most 255 bytes: two such words, a batch's 64, an outcome and the dots fit.
pub fn word(text: &str) -> String {
    let mut word: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "-_:/@+".contains(c) { c } else { '_' })
        .collect();
    word.truncate(60);
    word
}

/// A CloudEvents 1.0 envelope in structured JSON: what the results exchange carries.
///
/// Source: <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md>
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CloudEvent<T> {
    /// `"1.0"`.
    pub specversion: String,
    /// The result's or the batch event's id; with `source` it is unique, so a receiver can drop a repetition.
    pub id: Id,
    /// `"/pixfleet"`: the same for every worker, because a result made twice is one event.
    pub source: String,
    /// `"pixfleet.result.v1"` or `"pixfleet.batch.v1"`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The image's id, or the batch's name.
    pub subject: String,
    /// When the event was made.
    #[schemars(with = "String")]
    pub time: Timestamp,
    /// `"application/json"`.
    pub datacontenttype: String,
    /// W3C trace context (the CloudEvents distributed tracing extension).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<TraceParent>,
    /// The result or the batch event.
    pub data: T,
}

/// The `type` of a result's envelope.
pub const RESULT_EVENT: &str = "pixfleet.result.v1";
/// The `type` of a batch event's envelope.
pub const BATCH_EVENT: &str = "pixfleet.batch.v1";
/// The content type of every message on the results exchange.
pub const CLOUD_EVENT_TYPE: &str = "application/cloudevents+json";

/// What a subscriber of the results exchange receives.
#[derive(Clone, Debug, PartialEq)]
pub enum Announcement {
    /// One image seen by one model.
    Result(Box<ImageResult>, Option<TraceParent>),
    /// News of a batch.
    Batch(BatchEvent),
}

/// A message of the results exchange that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("a message on the results exchange is not a pixfleet event: {0}")]
pub struct UnreadableEvent(String);

impl Announcement {
    /// The event's id.
    pub fn id(&self) -> Id {
        match self {
            Self::Result(result, _) => result.id,
            Self::Batch(event) => event.id(),
        }
    }

    /// The routing key on the results exchange. A batch event's is `pixfleet.batch.<state>.<batch>`.
    pub fn routing_key(&self) -> String {
        match self {
            Self::Result(result, _) => result.routing_key(),
            Self::Batch(event) => format!("pixfleet.batch.{}.{}", event.state.as_str(), event.batch),
        }
    }

    /// The event as a CloudEvents 1.0 message.
    ///
    /// # Errors
    /// [`UnreadableEvent`] when a number in it has no JSON form.
    pub fn to_message(&self) -> Result<Vec<u8>, UnreadableEvent> {
        let bytes = match self {
            Self::Result(result, trace) => serde_json::to_vec(&CloudEvent {
                kind: RESULT_EVENT.to_owned(),
                subject: result.image.clone(),
                time: result.completed_at,
                traceparent: *trace,
                ..envelope(result.id, &**result)
            }),
            Self::Batch(event) => serde_json::to_vec(&CloudEvent {
                kind: BATCH_EVENT.to_owned(),
                subject: event.batch.to_string(),
                time: event.at,
                ..envelope(event.id(), event)
            }),
        };
        bytes.map_err(|error| UnreadableEvent(error.to_string()))
    }

    /// Reads a CloudEvents message.
    ///
    /// # Errors
    /// [`UnreadableEvent`] for other bytes, another `type`, or another version.
    pub fn from_message(bytes: &[u8]) -> Result<Self, UnreadableEvent> {
        #[derive(Deserialize)]
        struct Kind {
            #[serde(rename = "type")]
            kind: String,
        }
        match read::<Kind>(bytes)?.kind.as_str() {
            RESULT_EVENT => {
                let event: CloudEvent<ImageResult> = read(bytes)?;
                Ok(Self::Result(Box::new(event.data), event.traceparent))
            }
            BATCH_EVENT => Ok(Self::Batch(read::<CloudEvent<BatchEvent>>(bytes)?.data)),
            other => {
                Err(UnreadableEvent(format!("unknown type `{}`", other.chars().take(80).collect::<String>())))
            }
        }
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, UnreadableEvent> {
    serde_json::from_slice(bytes).map_err(|error| UnreadableEvent(error.to_string()))
}

fn envelope<T>(id: Id, data: T) -> CloudEvent<T> {
    CloudEvent {
        specversion: "1.0".to_owned(),
        id,
        source: "/pixfleet".to_owned(),
        kind: String::new(),
        subject: String::new(),
        time: Timestamp::UNIX_EPOCH,
        datacontenttype: "application/json".to_owned(),
        traceparent: None,
        data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Image;

    fn result() -> ImageResult {
        let image = Image { id: "i1".into(), source: Source::Inline("QUJD".into()) };
        let job = Job::new("b".parse().unwrap(), image, "my.provider".into(), vec!["m*1".into()]);
        ImageResult::of(&job, "m*1", Outcome::Ok)
    }

    #[test]
    fn a_result_travels_as_a_cloud_event_and_back() {
        let trace = TraceParent::random();
        let sent = Announcement::Result(Box::new(result()), Some(trace));
        let message = sent.to_message().unwrap();
        let json: Value = serde_json::from_slice(&message).unwrap();
        assert_eq!(json["specversion"], "1.0");
        assert_eq!(json["type"], RESULT_EVENT);
        assert_eq!(json["traceparent"], trace.to_string());
        assert_eq!(json["id"], json["data"]["id"]);
        assert_eq!(Announcement::from_message(&message).unwrap(), sent);
    }

    #[test]
    fn a_routing_key_has_four_words_whatever_the_names() {
        assert_eq!(result().routing_key(), "my_provider.m_1.ok.b");
        assert!(word(&"é".repeat(200)).len() <= 60);
    }

    #[test]
    fn inline_bytes_do_not_travel_to_the_results() {
        assert_eq!(result().source, None);
    }

    #[test]
    fn other_messages_are_refused_by_name() {
        let error = Announcement::from_message(br#"{"type": "com.example"}"#).unwrap_err();
        assert!(error.to_string().contains("com.example"));
    }
}
