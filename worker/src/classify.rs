//! What a call's outcome means. Pure: the provider's description, the outcome, and `now`.

use std::time::Duration;

use jiff::Timestamp;
use pixfleet_shared::result::{Answer, Failure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    client::{CallOutcome, Content, NoReply, Reply},
    provider::{Provider, unreadable},
};

/// What an outcome means, and so what is done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Answered: complete.
    Ok,
    /// Over the limit: pause the fleet, release the job; no attempt is spent.
    Throttled,
    /// May work later: try again, within the attempts.
    Transient,
    /// Will never work: a failed result, no further attempt.
    Rejected,
    /// The account is refused: stop the provider, keep the jobs.
    Unauthorized,
    /// The request left and no answer came: the provider's policy decides.
    Ambiguous,
}

impl Class {
    /// The class's word in results, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Throttled => "throttled",
            Self::Transient => "transient",
            Self::Rejected => "rejected",
            Self::Unauthorized => "unauthorized",
            Self::Ambiguous => "ambiguous",
        }
    }
}

/// Why a model has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Never [`Class::Ok`].
    pub class: Class,
    /// What the provider or the network said: bounded, and without the key.
    pub message: String,
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        Self {
            class: failed.class.as_str().to_owned(),
            message: failed.message,
        }
    }
}

/// What one call came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// What the call as a whole means. [`Class::Ok`] when at least one model is answered: the others' own classes
    /// then say whether they are tried again. Without an answer [`Class::Transient`] goes before [`Class::Rejected`].
    pub class: Class,
    /// Every model of the call, in its order, with its answer or why it has none.
    pub models: Vec<(String, Result<Answer, Failed>)>,
    /// For how long the fleet is to pause; only with [`Class::Throttled`].
    pub hold_off: Option<Duration>,
    /// One line for the log: the first failure's message, or the status.
    pub message: String,
    /// Whether the call is to be counted as paid: it was answered with success, or nobody can know.
    pub charged: bool,
}

/// What `outcome` means for the `models` that the call asked.
pub fn classify(provider: &Provider, outcome: &CallOutcome, models: &[String], now: Timestamp) -> Verdict {
    match &outcome.answer {
        Err(no_reply) => alike(
            models,
            no_reply_class(no_reply),
            provider.bounded(&no_reply.message),
        ),
        Ok(reply) => classify_reply(provider, reply, models, now),
    }
}

/// Before a byte was sent nothing can have happened; after that nobody knows.
fn no_reply_class(no_reply: &NoReply) -> Class {
    if no_reply.left {
        Class::Ambiguous
    } else {
        Class::Transient
    }
}

fn classify_reply(provider: &Provider, reply: &Reply, models: &[String], now: Timestamp) -> Verdict {
    let body: Option<Value> = match &reply.content {
        Content::Whole(bytes) => serde_json::from_slice(bytes).ok(),
        Content::TooLarge(_) | Content::Cut(_) => None,
    };
    let success = (200..300).contains(&reply.status);
    let class = match provider.error_class(reply.status, body.as_ref()) {
        Some(class) => class,
        None if success => return classify_success(provider, reply, body.as_ref(), models),
        None => by_status(reply.status, provider.says_when(&reply.headers, now)),
    };
    let message = failure_message(provider, reply, body.as_ref());
    Verdict {
        hold_off: (class == Class::Throttled).then(|| provider.hold_off(&reply.headers, body.as_ref(), now)),
        charged: success && !matches!(class, Class::Throttled | Class::Unauthorized),
        ..alike(models, class, message)
    }
}

/// The meaning of a status that the provider's own rules say nothing about.
fn by_status(status: u16, says_when: bool) -> Class {
    match status {
        429 => Class::Throttled,
        503 if says_when => Class::Throttled,
        401 | 402 | 403 | 407 => Class::Unauthorized,
        408 | 425 => Class::Transient,
        400..=499 => Class::Rejected,
        // Redirects are not followed: a wrong endpoint must not turn every image into a rejected one.
        _ => Class::Transient,
    }
}

fn classify_success(provider: &Provider, reply: &Reply, body: Option<&Value>, models: &[String]) -> Verdict {
    let why = match (&reply.content, body) {
        (Content::Cut(why), _) => {
            let message = format!("status {}, but the answer was cut off: {why}", reply.status);
            return alike(models, Class::Ambiguous, provider.bounded(&message));
        }
        (_, Some(body)) => return per_model(provider, reply.status, body, models),
        (Content::TooLarge(limit), _) => format!("it has more than {limit} bytes (http.max_response_bytes)"),
        (Content::Whole(bytes), _) => format!("{} bytes that are no JSON", bytes.len()),
    };
    let Failed { class, message } = unreadable(&why);
    Verdict {
        charged: true,
        ..alike(models, class, message)
    }
}

fn per_model(provider: &Provider, status: u16, body: &Value, models: &[String]) -> Verdict {
    let read = |model: &String| {
        let answer = provider.read(body, model);
        let answer = answer.map_err(|failed| Failed {
            message: provider.bounded(&failed.message),
            ..failed
        });
        (model.clone(), answer)
    };
    let models: Vec<_> = models.iter().map(read).collect();
    let has = |class| {
        models
            .iter()
            .any(|(_, answer)| matches!(answer, Err(failed) if failed.class == class))
    };
    let class = match () {
        () if models.iter().any(|(_, answer)| answer.is_ok()) => Class::Ok,
        () if has(Class::Transient) => Class::Transient,
        () => Class::Rejected,
    };
    let failure = models.iter().find_map(|(_, answer)| answer.as_ref().err());
    let message = failure.map_or_else(|| format!("status {status}"), |failed| failed.message.clone());
    Verdict {
        class,
        models,
        hold_off: None,
        message,
        charged: true,
    }
}

/// The same failure for every model.
fn alike(models: &[String], class: Class, message: String) -> Verdict {
    let failed = Failed {
        class,
        message: message.clone(),
    };
    Verdict {
        class,
        models: models
            .iter()
            .map(|model| (model.clone(), Err(failed.clone())))
            .collect(),
        hold_off: None,
        message,
        charged: class == Class::Ambiguous,
    }
}

fn failure_message(provider: &Provider, reply: &Reply, body: Option<&Value>) -> String {
    let status = reply.status;
    let said = body
        .and_then(|body| provider.error_message(body))
        .or_else(|| match &reply.content {
            Content::Whole(bytes) => {
                Some(String::from_utf8_lossy(&bytes[..bytes.len().min(600)]).into_owned())
            }
            Content::TooLarge(_) | Content::Cut(_) => None,
        });
    let said = said.unwrap_or_default();
    let redirect = (300..400)
        .contains(&status)
        .then(|| " (redirects are not followed: check `endpoint`)");
    provider.bounded(&format!(
        "status {status}{}: {}",
        redirect.unwrap_or_default(),
        said.trim()
    ))
}
