//! Restb.ai, vision v2: `predict` (one model) and `multipredict` (several, joined by commas).
//!
//! Read from public clients of the vendor: both answer `response.solutions.<model>`, `error` is the *text* `"false"`
//! or `"true"`, and `time`, `correlation_id` and `version` stand beside it. A failure has `message` and `error_id`;
//! only `005` (over the rate) is known to be the vendor's, the other identifiers are the sandbox's own.

use hyper::Method;
use hyper::http::request::Parts;
use serde_json::{Map, Value, json};

use super::{Asked, Refusal, uuid};
use crate::answer::{Shape, label_for, labels_for, score_for, shape_of};
use crate::image::{Alphabet, by_base64, by_url};
use crate::settings::Settings;

pub(super) fn head_key(head: &Parts) -> Option<String> {
    query(head, "client_key")
}

/// How many models a GET asks.
pub(super) fn head_models(head: &Parts) -> Option<usize> {
    (head.method == Method::GET).then(|| query(head, "model_id").map_or(0, |models| split(&models).len()))
}

pub(super) fn read(head: &Parts, body: &[u8], settings: &Settings, several: bool) -> Asked {
    // A POST may put any field into either place; the vendor's own sample has the key in the query.
    let field = |name: &str| {
        let form = if head.method == Method::POST { body } else { b"" };
        query(head, name).or_else(|| find(form, name))
    };
    let models = field("model_id").map(|models| split(&models)).unwrap_or_default();
    let image = match (field("image_url"), field("image_base64")) {
        (Some(url), _) => by_url(&url),
        (None, Some(data)) => by_base64(&data, Alphabet::UrlSafe),
        (None, None) => Err(Refusal::MissingImage),
    };
    let refusal = refuse_models(&models, settings, several).or_else(|| image.as_ref().err().cloned());
    Asked { key: field("client_key"), models, image: image.ok(), refusal, ..Asked::default() }
}

fn refuse_models(models: &[String], settings: &Settings, several: bool) -> Option<Refusal> {
    if models.is_empty() {
        return Some(Refusal::Malformed("No model_id was given".into()));
    }
    if models.len() > 1 && !several {
        return Some(Refusal::Malformed("predict takes one model_id; use multipredict for several".into()));
    }
    let known = |model: &&String| settings.restb_models.iter().any(|name| name == "*" || name == *model);
    models.iter().find(|model| !known(model)).map(|model| Refusal::UnknownModel(model.clone()))
}

pub(super) fn answer(image: &str, models: &[String], mark: u128) -> Value {
    let solutions: Map<String, Value> =
        models.iter().map(|model| (model.clone(), solution(image, model))).collect();
    json!({
        "response": { "solutions": solutions },
        "error": "false",
        "time": now(),
        "correlation_id": uuid(mark),
        "version": "2",
    })
}

fn solution(image: &str, model: &str) -> Value {
    let score = score_for(image, model);
    match shape_of(model) {
        Shape::Rating => json!({ "score": score }),
        Shape::Detection => {
            let seen: Vec<Value> =
                labels_for(image, model).iter().map(|label| detection(label, model)).collect();
            json!({ "detections": seen })
        }
        Shape::Prediction => {
            let top = json!({ "label": label_for(image, model), "confidence": score });
            // The runners-up share what is left.
            let others = labels_for(image, model).into_iter().skip(1).enumerate().map(|(i, label)| {
                json!({ "label": label, "confidence": ((1.0 - score) / f64::from(2 << i) * 1e6).round() / 1e6 })
            });
            let all: Vec<Value> = std::iter::once(top.clone()).chain(others).collect();
            json!({ "predictions": all, "top_prediction": top })
        }
    }
}

fn detection(label: &str, model: &str) -> Value {
    if model.contains("logo") {
        let corners = json!({
            "top_left_x": 0.05, "top_left_y": 0.85, "bottom_right_x": 0.25, "bottom_right_y": 0.95,
        });
        return json!({ "label": label, "bounding_box": corners });
    }
    json!({ "label": label, "details": [] })
}

pub(super) fn error(refusal: &Refusal, mark: u128) -> Value {
    let error_id = match refusal {
        Refusal::BadKey => "001",
        Refusal::UnknownModel(_) => "002",
        Refusal::MissingImage => "003",
        Refusal::InvalidImage(_) | Refusal::TooBig(_) => "004",
        Refusal::Throttled => "005",
        Refusal::Malformed(_) => "006",
        Refusal::Broken => "007",
    };
    json!({
        "error": "true",
        "error_id": error_id,
        "message": refusal.message(),
        "time": now(),
        "correlation_id": uuid(mark),
        "version": "2",
    })
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6f").to_string()
}

fn split(models: &str) -> Vec<String> {
    models.split(',').map(str::trim).filter(|model| !model.is_empty()).map(str::to_owned).collect()
}

fn query(head: &Parts, name: &str) -> Option<String> {
    find(head.uri.query().unwrap_or_default().as_bytes(), name)
}

fn find(form: &[u8], name: &str) -> Option<String> {
    let mut fields = url::form_urlencoded::parse(form);
    fields.find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.into_owned())
}
