//! The generic contract: `POST /v1/analyze` with `{"image_url" | "image_base64", "models": [...]}`.
//!
//! A model that is not known is reported under `errors` beside the `results` of the others; only when none is known
//! is the whole call refused.

use hyper::http::request::Parts;
use serde_json::{Map, Value, json};

use super::{Asked, Refusal, bearer, is_known, object};
use crate::answer::{label_for, score_for};
use crate::image::{Alphabet, by_base64, by_url};

pub(super) fn read(head: &Parts, body: &[u8]) -> Asked {
    let key = bearer(head);
    let request = match object(body) {
        Ok(request) => request,
        Err(refusal) => {
            return Asked { key, refusal: Some(refusal), ..Asked::default() };
        }
    };
    let models: Vec<String> = request["models"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let image = match (request["image_url"].as_str(), request["image_base64"].as_str()) {
        (Some(url), _) => by_url(url),
        (None, Some(data)) => by_base64(data, Alphabet::Standard),
        (None, None) => Err(Refusal::MissingImage),
    };
    let refusal = match models.first() {
        None => Some(Refusal::Malformed("models must be a list with at least one name".into())),
        Some(first) if !models.iter().any(|model| is_known(model)) => {
            Some(Refusal::UnknownModel(first.clone()))
        }
        Some(_) => image.as_ref().err().cloned(),
    };
    Asked { key, models, image: image.ok(), refusal, ..Asked::default() }
}

pub(super) fn answer(image: &str, models: &[String]) -> Value {
    let (mut results, mut errors) = (Map::new(), Map::new());
    for model in models {
        if is_known(model) {
            let said = json!({ "label": label_for(image, model), "score": score_for(image, model) });
            results.insert(model.clone(), said);
        } else {
            errors.insert(model.clone(), body(&Refusal::UnknownModel(model.clone())));
        }
    }
    if errors.is_empty() {
        json!({ "results": results })
    } else {
        json!({ "results": results, "errors": errors })
    }
}

pub(super) fn error(refusal: &Refusal) -> Value {
    json!({ "error": body(refusal) })
}

fn body(refusal: &Refusal) -> Value {
    let code = match refusal {
        Refusal::BadKey => "unauthorized",
        Refusal::UnknownModel(_) => "unknown_model",
        Refusal::MissingImage => "missing_image",
        Refusal::InvalidImage(_) => "invalid_image",
        Refusal::Malformed(_) => "malformed",
        Refusal::TooBig(_) => "too_big",
        Refusal::Throttled => "rate_limited",
        Refusal::Broken => "internal",
    };
    json!({ "code": code, "message": refusal.message() })
}
