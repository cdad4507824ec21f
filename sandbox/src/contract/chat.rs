//! An OpenAI-compatible chat completion with an `image_url` part (an URL or a `data:` URL).
//!
//! The answer's text is the label; with a JSON `response_format` it is `{"label", "score"}`. Streaming is refused.

use hyper::http::request::Parts;
use serde_json::{Value, json};

use super::{Asked, Refusal, Wishes, bearer, is_known, object};
use crate::answer::{label_for, score_for};
use crate::image::by_url_or_data;

pub(super) fn read(head: &Parts, body: &[u8]) -> Asked {
    let mut asked = Asked { key: bearer(head), ..Asked::default() };
    let request = match object(body) {
        Ok(request) => request,
        Err(refusal) => {
            return Asked { refusal: Some(refusal), ..asked };
        }
    };
    let model = request["model"].as_str().unwrap_or_default();
    asked.models = if model.is_empty() { Vec::new() } else { vec![model.to_owned()] };
    asked.wishes.json =
        request["response_format"]["type"].as_str().is_some_and(|kind| kind.starts_with("json"));
    let image = last_image(&request).map_or(Err(Refusal::MissingImage), by_url_or_data);
    asked.refusal = if request["stream"].as_bool() == Some(true) {
        Some(Refusal::Malformed("stream is not supported here".into()))
    } else if !is_known(model) {
        Some(Refusal::UnknownModel(model.to_owned()))
    } else {
        image.as_ref().err().cloned()
    };
    asked.image = image.ok();
    asked
}

fn last_image(request: &Value) -> Option<&str> {
    let messages = request["messages"].as_array()?;
    let parts = messages.iter().filter_map(|message| message["content"].as_array()).flatten();
    parts
        .filter(|part| part["type"] == "image_url")
        .filter_map(|part| part["image_url"]["url"].as_str())
        .next_back()
}

pub(super) fn answer(image: &str, models: &[String], wishes: Wishes, mark: u128) -> Value {
    let model = models.first().map(String::as_str).unwrap_or_default();
    let label = label_for(image, model);
    let text = if wishes.json {
        json!({ "label": label, "score": score_for(image, model) }).to_string()
    } else {
        label
    };
    json!({
        "id": format!("chatcmpl-{mark:032x}"),
        "object": "chat.completion",
        "created": jiff::Timestamp::now().as_second(),
        "model": model,
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": text, "refusal": null },
            "logprobs": null,
            "finish_reason": "stop",
        }],
        "usage": { "prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105 },
    })
}

pub(super) fn error(refusal: &Refusal) -> Value {
    let (kind, code) = match refusal {
        Refusal::BadKey => ("invalid_request_error", Some("invalid_api_key")),
        Refusal::UnknownModel(_) => ("invalid_request_error", Some("model_not_found")),
        Refusal::InvalidImage(_) => ("invalid_request_error", Some("invalid_image")),
        Refusal::Throttled => ("requests", Some("rate_limit_exceeded")),
        Refusal::Broken => ("server_error", None),
        Refusal::MissingImage | Refusal::Malformed(_) | Refusal::TooBig(_) => ("invalid_request_error", None),
    };
    json!({ "error": { "message": refusal.message(), "type": kind, "param": null, "code": code } })
}
