//! Tiliter's product recognition: `POST /recognition/` (also under `/v1/15`) and its catalogue, `GET /products/`.
//!
//! Read from the vendor's public demo: it reads `product_recognition.result_type` and `.options[].product_id`,
//! `bag_recognition.present`, and `products[].product_id` and `.product_name`. The error body is the sandbox's own.

use hyper::http::request::Parts;
use serde_json::{Value, json};

use super::{Asked, Refusal, Wishes, object, uuid};
use crate::answer::{PRODUCTS, TILITER_MODEL, digest, label_for, score_for};
use crate::image::{Alphabet, by_base64};

pub(super) fn key(head: &Parts) -> Option<String> {
    head.headers.get("tiliter-api-key")?.to_str().ok().map(str::to_owned)
}

pub(super) fn read(head: &Parts, body: &[u8]) -> Asked {
    let mut asked = Asked { key: key(head), models: vec![TILITER_MODEL.into()], ..Asked::default() };
    match object(body) {
        Ok(request) => {
            asked.wishes.scores = request["include_scores"].as_bool().unwrap_or(false);
            asked.wishes.threshold = request["score_threshold"].as_f64().unwrap_or(0.0);
            match image(&request) {
                Ok(image) => asked.image = Some(image),
                Err(refusal) => asked.refusal = Some(refusal),
            }
        }
        Err(refusal) => asked.refusal = Some(refusal),
    }
    asked
}

/// Several images are several views of one thing; the first stands for all, and each must be readable.
fn image(request: &Value) -> Result<String, Refusal> {
    if !request["device_id"].is_string() {
        return Err(Refusal::Malformed("device_id is missing".into()));
    }
    let views = request["images"].as_array().map(Vec::as_slice).unwrap_or_default();
    let read = |view: &Value| match view["image"].as_str() {
        Some(data) => by_base64(data, Alphabet::Standard),
        None => Err(Refusal::MissingImage),
    };
    let references = views.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    references.into_iter().next().ok_or(Refusal::MissingImage)
}

pub(super) fn answer(image: &str, wishes: Wishes, mark: u128) -> Value {
    let score = score_for(image, TILITER_MODEL);
    let options: Vec<Value> = if score >= wishes.threshold {
        let product_id = label_for(image, TILITER_MODEL);
        vec![if wishes.scores {
            json!({ "product_id": product_id, "score": score })
        } else {
            json!({ "product_id": product_id })
        }]
    } else {
        Vec::new()
    };
    let result_type = if options.is_empty() { "unrecognised" } else { "recognised" };
    json!({
        "recognition_id": uuid(mark),
        "product_recognition": { "result_type": result_type, "options": options },
        "bag_recognition": { "present": digest(image, "bag") % 2 == 1 },
    })
}

pub(super) fn error(refusal: &Refusal) -> Value {
    json!({ "detail": refusal.message() })
}

/// The catalogue.
pub(crate) fn products() -> Value {
    let all: Vec<Value> =
        PRODUCTS.iter().map(|(id, name)| json!({ "product_id": id, "product_name": name })).collect();
    json!({ "products": all })
}
