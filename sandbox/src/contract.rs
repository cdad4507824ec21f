//! The contracts: what each vendor's clients send, and what they read.
//!
//! One module a vendor; this file is the closed list of them. A contract only reads and writes: whether a call may
//! pass, and what becomes of it, is `call`'s.

mod analyze;
mod chat;
mod restb;
mod tiliter;

use hyper::header::AUTHORIZATION;
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use serde_json::Value;

use crate::settings::{Cost, Settings};

pub(crate) use tiliter::products;

/// An endpoint that judges and charges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contract {
    RestbPredict,
    RestbMultipredict,
    Tiliter,
    Analyze,
    Chat,
}

/// What a call asks, as far as it could be understood.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) key: Option<String>,
    pub(crate) models: Vec<String>,
    pub(crate) image: Option<String>,
    pub(crate) wishes: Wishes,
    /// Why it will never be answered, if so.
    pub(crate) refusal: Option<Refusal>,
}

/// The optional parts of a request that change the answer's form.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wishes {
    /// Tiliter: scores beside the options.
    pub(crate) scores: bool,
    /// Tiliter: no option below this score.
    pub(crate) threshold: f64,
    /// Chat: the answer as a JSON object in the text.
    pub(crate) json: bool,
}

/// Why a call gets no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    BadKey,
    UnknownModel(String),
    MissingImage,
    InvalidImage(String),
    Malformed(String),
    TooBig(usize),
    Throttled,
    Broken,
}

impl Refusal {
    fn message(&self) -> String {
        match self {
            Self::BadKey => "Invalid or missing API key".into(),
            Self::UnknownModel(model) => format!("Unknown model: {model}"),
            Self::MissingImage => "No image was given".into(),
            Self::InvalidImage(why) | Self::Malformed(why) => why.clone(),
            Self::TooBig(most) => format!("The request body is larger than {most} bytes"),
            Self::Throttled => "API rate limit exceeded".into(),
            Self::Broken => "Internal server error".into(),
        }
    }
}

impl Contract {
    pub(crate) fn of(path: &str) -> Option<Self> {
        match path.trim_end_matches('/') {
            "/vision/v2/predict" => Some(Self::RestbPredict),
            "/vision/v2/multipredict" => Some(Self::RestbMultipredict),
            "/recognition" | "/v1/15/recognition" => Some(Self::Tiliter),
            "/v1/analyze" => Some(Self::Analyze),
            "/v1/chat/completions" => Some(Self::Chat),
            _ => None,
        }
    }

    pub(crate) fn allows(self, method: &Method) -> bool {
        let by_query = matches!(self, Self::RestbPredict | Self::RestbMultipredict);
        method == Method::POST || (by_query && method == Method::GET)
    }

    /// The key, where the head alone tells it.
    pub(crate) fn head_key(self, head: &Parts) -> Option<String> {
        match self {
            Self::RestbPredict | Self::RestbMultipredict => restb::head_key(head),
            Self::Tiliter => tiliter::key(head),
            Self::Analyze | Self::Chat => bearer(head),
        }
    }

    /// What the call will count for, where the head alone tells it.
    pub(crate) fn head_cost(self, head: &Parts, cost: Cost) -> Option<u32> {
        match (cost, self) {
            (Cost::PerCall, _) | (_, Self::RestbPredict | Self::Tiliter | Self::Chat) => Some(1),
            (Cost::PerModel, Self::RestbMultipredict) => restb::head_models(head).map(|count| cost.of(count)),
            (Cost::PerModel, Self::Analyze) => None,
        }
    }

    pub(crate) fn read(self, head: &Parts, body: &[u8], settings: &Settings) -> Asked {
        match self {
            Self::RestbPredict => restb::read(head, body, settings, false),
            Self::RestbMultipredict => restb::read(head, body, settings, true),
            Self::Tiliter => tiliter::read(head, body),
            Self::Analyze => analyze::read(head, body),
            Self::Chat => chat::read(head, body),
        }
    }

    /// The answer to a call that was let in; `mark` is a number of the call's own.
    pub(crate) fn answer(self, asked: &Asked, mark: u128) -> Value {
        let image = asked.image.as_deref().unwrap_or_default();
        match self {
            Self::RestbPredict | Self::RestbMultipredict => restb::answer(image, &asked.models, mark),
            Self::Tiliter => tiliter::answer(image, asked.wishes, mark),
            Self::Analyze => analyze::answer(image, &asked.models),
            Self::Chat => chat::answer(image, &asked.models, asked.wishes, mark),
        }
    }

    /// The status and the body that tell a client why it gets no answer.
    pub(crate) fn refuse(self, refusal: &Refusal, settings: &Settings, mark: u128) -> (StatusCode, Value) {
        let status = match refusal {
            Refusal::BadKey => StatusCode::UNAUTHORIZED,
            Refusal::UnknownModel(_) => StatusCode::NOT_FOUND,
            Refusal::MissingImage | Refusal::InvalidImage(_) | Refusal::Malformed(_) => {
                StatusCode::BAD_REQUEST
            }
            Refusal::TooBig(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::Throttled => {
                StatusCode::from_u16(settings.throttle_status).unwrap_or(StatusCode::TOO_MANY_REQUESTS)
            }
            Refusal::Broken => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let body = match self {
            Self::RestbPredict | Self::RestbMultipredict => restb::error(refusal, mark),
            Self::Tiliter => tiliter::error(refusal),
            Self::Analyze => analyze::error(refusal),
            Self::Chat => chat::error(refusal),
        };
        (status, body)
    }
}

/// The token of `Authorization: Bearer <token>`.
fn bearer(head: &Parts) -> Option<String> {
    let value = head.headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}

/// The JSON object of a body.
fn object(body: &[u8]) -> Result<Value, Refusal> {
    match serde_json::from_slice(body) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(Refusal::Malformed("The body must be a JSON object".into())),
        Err(error) => Err(Refusal::Malformed(format!("The body is not JSON: {error}"))),
    }
}

/// Whether the contracts without a list of their own know `model`.
fn is_known(model: &str) -> bool {
    !model.is_empty() && !model.starts_with("unknown")
}

/// `mark` in the form of a UUID.
fn uuid(mark: u128) -> String {
    let hex = format!("{mark:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
