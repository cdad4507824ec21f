//! What a model saw, as the text of one cell of a summary. Pure.

use pixfleet_shared::result::{Answer, Failure, Label};
use pixfleet_sinks::cell;

/// A label below this confidence is not shown in a summary's cell, unless it is the best one.
const CONFIDENT: f64 = 0.5;

/// The answer in short: its value, or the labels of which the model is confident, and at least the best one.
/// A failure shows its class in brackets.
pub(crate) fn short(answer: Option<&Answer>, failure: Option<&Failure>) -> String {
    let Some(answer) = answer else {
        return failure.map_or_else(String::new, |failure| format!("[{}]", failure.class));
    };
    let confident = |(at, label): &(usize, &Label)| {
        *at == 0 || label.confidence.is_none_or(|confidence| confidence >= CONFIDENT)
    };
    let mut parts: Vec<String> =
        answer.labels.iter().enumerate().filter(confident).map(|(_, label)| label.label.clone()).collect();
    parts.extend(answer.value.as_ref().map(cell::value));
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn label(label: &str, confidence: Option<f64>) -> Label {
        Label { label: label.into(), confidence }
    }

    #[test]
    fn a_cell_shows_what_the_model_is_sure_of() {
        let classes = Answer {
            labels: vec![label("kitchen", Some(0.4)), label("bathroom", Some(0.3))],
            ..Answer::default()
        };
        assert_eq!(short(Some(&classes), None), "kitchen");
        let features = Answer {
            labels: vec![label("pool", None), label("garden", Some(0.9)), label("sauna", Some(0.1))],
            ..Answer::default()
        };
        assert_eq!(short(Some(&features), None), "pool; garden");
        let score = Answer { value: Some(json!(4.2)), ..Answer::default() };
        assert_eq!(short(Some(&score), None), "4.2");
        let failed = Failure { class: "rejected".into(), message: "not an image".into() };
        assert_eq!(short(None, Some(&failed)), "[rejected]");
    }
}
