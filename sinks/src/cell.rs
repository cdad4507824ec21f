//! What a model saw, as the text of one field. Pure.

use pixfleet_shared::result::{Failure, Label};
use serde_json::Value;

/// A JSON value as text: a string as it is, anything else as compact JSON.
pub fn value(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Every label with its confidence: `kitchen=0.97; dining_room=0.02`.
pub fn labels(labels: &[Label]) -> String {
    let one = |label: &Label| match label.confidence {
        Some(confidence) => format!("{}={confidence}", label.label),
        None => label.label.clone(),
    };
    labels.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// A failure in one line: `rejected: the image can't be decoded`.
pub fn failure(failure: &Failure) -> String {
    format!("{}: {}", failure.class, failure.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(label: &str, confidence: Option<f64>) -> Label {
        Label { label: label.into(), confidence }
    }

    #[test]
    fn every_label_keeps_its_confidence_in_the_long_form() {
        assert_eq!(labels(&[label("kitchen", Some(0.97)), label("logo", None)]), "kitchen=0.97; logo");
    }
}
