//! What an answer says of each model, by the provider's jq expressions.

use jaq_json::Val;
use pixfleet_shared::result::{Answer, Label};
use serde_json::Value;

use super::jq::{self, Jq};
use crate::classify::{Class, Failed};

/// Most labels that are kept of one model.
const MAX_LABELS: usize = 1000;
/// Most characters of one label.
const MAX_LABEL_CHARS: usize = 1000;

/// The compiled expressions of a provider.
pub(super) struct Mapping {
    /// By name or by `prefix*`, the longest first; the last one is `*`.
    pub(super) models: Vec<(String, ModelMapping)>,
    pub(super) keep_raw: bool,
}

/// The compiled expressions for some models.
pub(super) struct ModelMapping {
    pub(super) part: Option<Jq>,
    pub(super) labels: Option<Jq>,
    pub(super) value: Option<Jq>,
    pub(super) error: Option<Jq>,
}

impl Mapping {
    /// What `body` says of `model`.
    ///
    /// # Errors
    /// [`Failed`]: the body's own word that this model failed, or that it can't be read.
    pub(super) fn read(&self, body: &Value, model: &str) -> Result<Answer, Failed> {
        let mapping = self.models.iter().find(|(name, _)| matches(name, model));
        let mapping =
            mapping.map(|(_, mapping)| mapping).ok_or_else(|| unreadable("no mapping fits the model"))?;
        let part = mapping.part(body, model)?;
        let input = jq::input(&part);
        if let Some(failed) = mapping.failed(&input, model)? {
            return Err(failed);
        }
        let labels = mapping.labels(&input, model)?;
        let value = run_first(mapping.value.as_ref(), "value", &input, model)?;
        if labels.is_none() && value.is_none() {
            return Err(unreadable("it holds neither labels nor a value for this model"));
        }
        Ok(Answer { labels: labels.unwrap_or_default(), value, raw: self.keep_raw.then_some(part) })
    }
}

impl ModelMapping {
    fn part(&self, body: &Value, model: &str) -> Result<Value, Failed> {
        match &self.part {
            None => Ok(body.clone()),
            Some(part) => run_first(Some(part), "part", &jq::input(body), model)?
                .ok_or_else(|| unreadable("it holds nothing for this model")),
        }
    }

    /// The body's own word that this model failed.
    fn failed(&self, part: &Val, model: &str) -> Result<Option<Failed>, Failed> {
        let said = run_first(self.error.as_ref(), "error", part, model)?;
        Ok(said.filter(|said| *said != Value::Bool(false)).map(|said| {
            let class = match said.get("class").and_then(Value::as_str) {
                Some("transient") => Class::Transient,
                _ => Class::Rejected,
            };
            let message = said.get("message").unwrap_or(&said);
            Failed { class, message: message.as_str().map_or_else(|| message.to_string(), str::to_owned) }
        }))
    }

    /// `None` when the expression has no output: the model has no labels at all.
    fn labels(&self, part: &Val, model: &str) -> Result<Option<Vec<Label>>, Failed> {
        let Some(labels) = &self.labels else {
            return Ok(None);
        };
        let outputs = labels.run(part, model).map_err(|why| unreadable(&format!("labels: {why}")))?;
        let mut said = false;
        let mut all = Vec::new();
        for output in outputs {
            match output {
                Value::Null => continue,
                Value::Array(items) => {
                    for item in items.iter().take(MAX_LABELS) {
                        all.push(label(item)?);
                    }
                }
                one => all.push(label(&one)?),
            }
            said = true;
            all.truncate(MAX_LABELS);
        }
        // A stable sort: where the provider tells no confidence, its own order stays.
        all.sort_by(|a, b| sureness(b).total_cmp(&sureness(a)));
        Ok(said.then_some(all))
    }
}

/// Whether `pattern`, a name or the beginning of one with a final `*`, stands for `model`.
pub(super) fn matches(pattern: &str, model: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => model.starts_with(beginning),
        None => model == pattern,
    }
}

fn sureness(label: &Label) -> f64 {
    label.confidence.unwrap_or(0.0)
}

fn label(item: &Value) -> Result<Label, Failed> {
    let text = item.get("label").unwrap_or(item);
    let label: String = match text {
        Value::String(text) => text.chars().take(MAX_LABEL_CHARS).collect(),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        _ => {
            return Err(unreadable("labels: one is neither a text nor an object with a text `label`"));
        }
    };
    Ok(Label { label, confidence: item.get("confidence").and_then(number) })
}

/// Some APIs write their numbers as texts.
fn number(value: &Value) -> Option<f64> {
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
    number.is_finite().then_some(number)
}

fn run_first(jq: Option<&Jq>, field: &str, input: &Val, model: &str) -> Result<Option<Value>, Failed> {
    jq.map_or(Ok(None), |jq| jq.first(input, model).map_err(|why| unreadable(&format!("{field}: {why}"))))
}

/// A call that was answered, and so perhaps paid for, but whose answer says nothing that we can read.
pub(crate) fn unreadable(why: &str) -> Failed {
    Failed {
        class: Class::Ambiguous,
        message: format!(
            "the call was answered, and may have been paid for, but the answer can't be read: {why}"
        ),
    }
}
