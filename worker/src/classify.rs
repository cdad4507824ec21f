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
    /// The request left and no answer came, or none that can be read: it may have been paid for, and the provider's policy
    /// decides.
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
        Self { class: failed.class.as_str().to_owned(), message: failed.message }
    }
}

/// What one call came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// What the call as a whole means. [`Class::Ok`] when at least one model is answered: the others' own classes
    /// then say whether they are tried again. Without an answer [`Class::Ambiguous`] goes before
    /// [`Class::Transient`], and that before [`Class::Rejected`].
    pub class: Class,
    /// Every model of the call, in its order, with its answer or why it has none.
    pub models: Vec<(String, Result<Answer, Failed>)>,
    /// For how long the fleet is to pause; only with [`Class::Throttled`].
    pub hold_off: Option<Pause>,
    /// One line for the log: the first failure's message, or the status.
    pub message: String,
    /// Whether the call is to be counted as paid: it was answered with success, or nobody can know.
    pub charged: bool,
}

/// How long a throttled answer asks to pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// So long.
    pub length: Duration,
    /// Whether the answer said so; else it is the provider's default.
    pub said: bool,
}

/// What `outcome` means for the `models` that the call asked.
pub fn classify(provider: &Provider, outcome: &CallOutcome, models: &[String], now: Timestamp) -> Verdict {
    match &outcome.answer {
        Err(no_reply) => alike(models, no_reply_class(no_reply), provider.bounded(&no_reply.message)),
        Ok(reply) => classify_reply(provider, reply, models, now),
    }
}

/// Before a byte was sent nothing can have happened; after that nobody knows.
fn no_reply_class(no_reply: &NoReply) -> Class {
    if no_reply.left { Class::Ambiguous } else { Class::Transient }
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
    Verdict { charged: true, ..alike(models, class, message) }
}

fn per_model(provider: &Provider, status: u16, body: &Value, models: &[String]) -> Verdict {
    let read = |model: &String| {
        let answer = provider.read(body, model);
        let answer = answer.map_err(|failed| Failed { message: provider.bounded(&failed.message), ..failed });
        (model.clone(), answer)
    };
    let models: Vec<_> = models.iter().map(read).collect();
    let has = |class| models.iter().any(|(_, answer)| matches!(answer, Err(failed) if failed.class == class));
    let class = match () {
        () if models.iter().any(|(_, answer)| answer.is_ok()) => Class::Ok,
        () if has(Class::Ambiguous) => Class::Ambiguous,
        () if has(Class::Transient) => Class::Transient,
        () => Class::Rejected,
    };
    let failure = models.iter().find_map(|(_, answer)| answer.as_ref().err());
    let message = failure.map_or_else(|| format!("status {status}"), |failed| failed.message.clone());
    Verdict { class, models, hold_off: None, message, charged: true }
}

impl Verdict {
    /// The same failure for every model.
    pub(crate) fn alike(models: &[String], class: Class, message: String) -> Self {
        alike(models, class, message)
    }
}

/// The same failure for every model.
fn alike(models: &[String], class: Class, message: String) -> Verdict {
    let failed = Failed { class, message: message.clone() };
    Verdict {
        class,
        models: models.iter().map(|model| (model.clone(), Err(failed.clone()))).collect(),
        hold_off: None,
        message,
        charged: class == Class::Ambiguous,
    }
}

fn failure_message(provider: &Provider, reply: &Reply, body: Option<&Value>) -> String {
    let status = reply.status;
    let said = body.and_then(|body| provider.error_message(body)).or_else(|| match &reply.content {
        Content::Whole(bytes) => Some(String::from_utf8_lossy(&bytes[..bytes.len().min(600)]).into_owned()),
        Content::TooLarge(_) | Content::Cut(_) => None,
    });
    let said = said.unwrap_or_default();
    let redirect = (300..400).contains(&status).then_some(" (redirects are not followed: check `endpoint`)");
    let mut message = format!("status {status}{}", redirect.unwrap_or_default());
    if !said.trim().is_empty() {
        message += &format!(": {}", said.trim());
    }
    provider.bounded(&message)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;
    use pixfleet_shared::settings::Document;
    use proptest::prelude::*;
    use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

    use super::*;
    use crate::provider::Source;

    fn provider(name: &str) -> Provider {
        let source = Source { env: &|_| Some("test-key-1234".into()), folder: Path::new(".") };
        Provider::load(name, &Document::empty("t"), source).unwrap()
    }

    fn reply(status: u16, header: Option<(&str, &[u8])>, content: Content) -> CallOutcome {
        let mut headers = HeaderMap::new();
        if let Some((name, value)) = header {
            headers.insert(HeaderName::try_from(name).unwrap(), HeaderValue::from_bytes(value).unwrap());
        }
        outcome(Ok(Reply { status, headers, content }))
    }

    fn outcome(answer: Result<Reply, NoReply>) -> CallOutcome {
        CallOutcome { sent_at: Timestamp::now(), duration: Duration::from_millis(5), answer }
    }

    fn judge(outcome: &CallOutcome) -> Verdict {
        classify(&provider("generic"), outcome, &["a".to_owned()], Timestamp::now())
    }

    fn whole(body: &'static [u8]) -> Content {
        Content::Whole(Bytes::from_static(body))
    }

    #[test]
    fn each_status_has_its_class() {
        let class = |status, header| judge(&reply(status, header, whole(b"{}"))).class;
        for (status, expected) in [
            (429, Class::Throttled),
            (503, Class::Transient),
            (500, Class::Transient),
            (502, Class::Transient),
            (504, Class::Transient),
            (529, Class::Transient),
            (408, Class::Transient),
            (425, Class::Transient),
            (401, Class::Unauthorized),
            (402, Class::Unauthorized),
            (403, Class::Unauthorized),
            (400, Class::Rejected),
            (404, Class::Rejected),
            (413, Class::Rejected),
            (415, Class::Rejected),
            (422, Class::Rejected),
            (301, Class::Transient),
        ] {
            assert_eq!(class(status, None), expected, "{status}");
        }
        assert_eq!(class(503, Some(("retry-after", b"3"))), Class::Throttled);
        assert_eq!(class(503, Some(("retry-after", b"soon"))), Class::Transient);
    }

    #[test]
    fn only_a_throttled_call_pauses_the_fleet() {
        let throttled = judge(&reply(429, Some(("retry-after", b"7")), whole(b"slow down")));
        assert_eq!(
            (throttled.hold_off, throttled.charged),
            (Some(Pause { length: Duration::from_secs(7), said: true }), false)
        );
        assert_eq!(judge(&reply(500, Some(("retry-after", b"7")), whole(b""))).hold_off, None);
    }

    #[test]
    fn before_a_byte_left_a_failure_is_transient_and_after_it_ambiguous() {
        let no_reply =
            |left| judge(&outcome(Err(NoReply { left, message: "cut, key test-key-1234".into() })));
        assert_eq!((no_reply(false).class, no_reply(false).charged), (Class::Transient, false));
        let ambiguous = no_reply(true);
        assert_eq!((ambiguous.class, ambiguous.charged), (Class::Ambiguous, true));
        assert_eq!(ambiguous.message, "cut, key [redacted]");
    }

    #[test]
    fn an_answer_that_was_paid_for_and_can_not_be_read_is_left_to_the_policy_and_says_so() {
        for content in
            [whole(b"<html>"), whole(b""), whole(b"[]"), whole(b"{}"), whole(b"null"), Content::TooLarge(9)]
        {
            let verdict = judge(&reply(200, None, content));
            assert_eq!((verdict.class, verdict.charged), (Class::Ambiguous, true), "{}", verdict.message);
            assert!(verdict.message.contains("may have been paid for"), "{}", verdict.message);
        }
        let cut = judge(&reply(200, None, Content::Cut("eof".into())));
        assert_eq!(cut.class, Class::Ambiguous);
        assert_eq!(judge(&reply(500, None, Content::Cut("eof".into()))).class, Class::Transient);
    }

    #[test]
    fn a_message_is_one_short_line() {
        let long = Bytes::from("line\r\n\x1b[31m".repeat(1000));
        let message = judge(&reply(400, None, Content::Whole(long))).message;
        assert!(message.len() <= 300 && !message.contains(char::is_control), "{message:?}");
    }

    fn any_content() -> impl Strategy<Value = Content> {
        let json = prop_oneof![
            Just(r#"{"response": {"solutions": {"a": {"score": 1}}}}"#.to_owned()),
            Just(r#"{"results": {"a": {"label": ["x"]}}}"#.to_owned()),
            Just(r#"{"choices": [{"message": 7}]}"#.to_owned()),
            Just("[".repeat(5000)),
            "[\\[\\]{}:,\"a-z0-9 .]{0,60}",
        ];
        prop_oneof![
            any::<Vec<u8>>().prop_map(|bytes| Content::Whole(bytes.into())),
            json.prop_map(|text| Content::Whole(text.into())),
            Just(Content::TooLarge(7)),
            ".*".prop_map(Content::Cut),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn any_reply_has_a_verdict_on_every_model(
            status in 100u16..1000, value in "[ -~]{0,40}", header in 0usize..5, content in any_content(), which in 0usize..5,
            models in proptest::collection::vec("[a-z]{0,3}", 1..4),
        ) {
            let name = crate::provider::preset_names().nth(which).unwrap();
            let provider = provider(name);
            let header = ["retry-after", "ratelimit", "x-ratelimit-reset", "retry-after-ms", "location"][header];
            let verdict = classify(&provider, &reply(status, Some((header, value.as_bytes())), content), &models, Timestamp::now());
            prop_assert_eq!(verdict.models.len(), models.len());
            prop_assert_eq!(verdict.class == Class::Ok, verdict.models.iter().any(|(_, answer)| answer.is_ok()));
            prop_assert_eq!(verdict.class == Class::Throttled, verdict.hold_off.is_some());
            prop_assert!(verdict.class != Class::Ok || (200..300).contains(&status));
            prop_assert!(verdict.message.chars().count() <= 300);
        }
    }
}
