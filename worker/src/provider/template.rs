//! Texts with placeholders: compiled once, filled for each call.
//!
//! A placeholder is filled where the text stands: in a JSON document inside a string that is escaped afterwards, in
//! a query or a form before it is encoded, in a path within one segment. So nothing that it holds, a model's name
//! or an image's URL, can change the shape of the request.

use std::collections::BTreeMap;

use pixfleet_shared::settings::nearest;
use serde_json::Value;

/// What placeholders stand for in one call.
pub(super) struct Values<'a> {
    /// The picture in the form that the request takes; empty for `bytes`.
    pub(super) image: &'a str,
    /// The user's id of the image.
    pub(super) image_id: &'a str,
    /// The job's id.
    pub(super) job_id: &'a str,
    pub(super) idempotency_key: &'a str,
    /// The models of the call.
    pub(super) models: &'a [String],
    /// The picture's content type; empty for a URL.
    pub(super) content_type: &'a str,
    /// The moment at which the request is made, ISO 8601 in UTC.
    pub(super) now: &'a str,
}

/// A text with placeholders.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Place(Place),
}

/// What can stand in a text beside `${option.NAME}`, which is filled when it is compiled.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Image,
    ImageId,
    JobId,
    IdempotencyKey,
    Model,
    Models,
    ContentType,
    Now,
}

const PLACES: [(&str, Place); 8] = [
    ("image", Place::Image),
    ("image_id", Place::ImageId),
    ("job_id", Place::JobId),
    ("idempotency_key", Place::IdempotencyKey),
    ("model", Place::Model),
    ("models", Place::Models),
    ("content_type", Place::ContentType),
    ("now", Place::Now),
];

/// The placeholder that is an array of the models, where a JSON string holds nothing else.
const MODEL_LIST: &str = "${model_list}";

type Options = BTreeMap<String, Value>;

impl Template {
    /// Compiles `text`. `$${` stands for `${`.
    ///
    /// # Errors
    /// The first placeholder that is not known or not closed, in words for the author.
    pub(super) fn compile(text: &str, options: &Options) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            if rest[..start].ends_with('$') {
                literal.push_str(&rest[..start - 1]);
                literal.push_str("${");
                rest = &rest[start + 2..];
                continue;
            }
            literal.push_str(&rest[..start]);
            let after = &rest[start + 2..];
            let end =
                after.find('}').ok_or_else(|| format!("`${{{}` has no closing brace", shortened(after)))?;
            match after[..end].strip_prefix("option.") {
                Some(name) => literal.push_str(&as_text(option(name, options)?)),
                None => {
                    parts.push(Part::Text(std::mem::take(&mut literal)));
                    parts.push(Part::Place(place(&after[..end])?));
                }
            }
            rest = &after[end + 1..];
        }
        literal.push_str(rest);
        parts.push(Part::Text(literal));
        parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
        Ok(Self(parts))
    }

    /// Whether the text is `${image}` and nothing else.
    pub(super) fn is_image(&self) -> bool {
        self.0 == [Part::Place(Place::Image)]
    }

    /// Whether the picture appears in the text.
    pub(super) fn has_image(&self) -> bool {
        self.0.contains(&Part::Place(Place::Image))
    }

    /// The text with its placeholders filled.
    pub(super) fn fill(&self, values: &Values<'_>) -> String {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(literal) => text.push_str(literal),
                Part::Place(Place::Image) => text.push_str(values.image),
                Part::Place(Place::ImageId) => text.push_str(values.image_id),
                Part::Place(Place::JobId) => text.push_str(values.job_id),
                Part::Place(Place::IdempotencyKey) => text.push_str(values.idempotency_key),
                Part::Place(Place::Model) => text.push_str(values.models.first().map_or("", String::as_str)),
                Part::Place(Place::Models) => text.push_str(&values.models.join(",")),
                Part::Place(Place::ContentType) => text.push_str(values.content_type),
                Part::Place(Place::Now) => text.push_str(values.now),
            }
        }
        text
    }
}

/// A JSON document whose strings hold placeholders.
#[derive(Clone, Debug)]
pub(super) struct JsonTemplate(Vec<Piece>);

#[derive(Clone, Debug)]
enum Piece {
    /// JSON text that is the same in every call.
    Fixed(String),
    /// A string.
    Text(Template),
    /// The array of the models.
    ModelList,
}

impl JsonTemplate {
    /// Parses `text` as JSON, and compiles its strings.
    ///
    /// # Errors
    /// As [`Template::compile`], or where the JSON is not.
    pub(super) fn compile(text: &str, options: &Options) -> Result<Self, String> {
        let document: Value =
            serde_json::from_str(text).map_err(|error| format!("this is no JSON document: {error}"))?;
        let mut template = Self(Vec::new());
        template.take(&document, options)?;
        Ok(template)
    }

    /// Whether the picture appears in the document.
    pub(super) fn has_image(&self) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Text(text) if text.has_image()))
    }

    /// The document with its placeholders filled.
    pub(super) fn fill(&self, values: &Values<'_>) -> Vec<u8> {
        let mut json = String::with_capacity(1024 + values.image.len());
        for piece in &self.0 {
            match piece {
                Piece::Fixed(text) => json.push_str(text),
                Piece::Text(text) => json.push_str(&Value::from(text.fill(values)).to_string()),
                Piece::ModelList => json.push_str(&Value::from(values.models).to_string()),
            }
        }
        json.into_bytes()
    }

    fn take(&mut self, value: &Value, options: &Options) -> Result<(), String> {
        match value {
            Value::String(text) => self.take_text(text, options)?,
            Value::Array(items) => {
                self.fixed("[");
                for (i, item) in items.iter().enumerate() {
                    self.fixed(if i == 0 { "" } else { "," });
                    self.take(item, options)?;
                }
                self.fixed("]");
            }
            Value::Object(fields) => {
                self.fixed("{");
                for (i, (name, item)) in fields.iter().enumerate() {
                    self.fixed(if i == 0 { "" } else { "," });
                    self.fixed(&Value::from(fixed_text(name, options)?).to_string());
                    self.fixed(":");
                    self.take(item, options)?;
                }
                self.fixed("}");
            }
            other => self.fixed(&other.to_string()),
        }
        Ok(())
    }

    /// A string that is one option keeps the option's type: a number stays a number.
    fn take_text(&mut self, text: &str, options: &Options) -> Result<(), String> {
        let whole = text.strip_prefix("${option.").and_then(|rest| rest.strip_suffix('}'));
        match whole.filter(|name| !name.contains('}')) {
            _ if text == MODEL_LIST => self.0.push(Piece::ModelList),
            Some(name) => self.fixed(&option(name, options)?.to_string()),
            None => self.0.push(Piece::Text(Template::compile(text, options)?)),
        }
        Ok(())
    }

    fn fixed(&mut self, text: &str) {
        match self.0.last_mut() {
            Some(Piece::Fixed(before)) => before.push_str(text),
            _ => self.0.push(Piece::Fixed(text.to_owned())),
        }
    }
}

/// A field's name: options may stand in it, what differs from call to call may not.
fn fixed_text(text: &str, options: &Options) -> Result<String, String> {
    match Template::compile(text, options)?.0.as_slice() {
        [] => Ok(String::new()),
        [Part::Text(fixed)] => Ok(fixed.clone()),
        _ => Err(format!("a field's name takes only options: `{}`", shortened(text))),
    }
}

fn place(name: &str) -> Result<Place, String> {
    let known = PLACES.iter().find(|(known, _)| *known == name).map(|(_, place)| *place);
    known.ok_or_else(|| {
        let name = shortened(name);
        if name == "model_list" {
            return format!("`{MODEL_LIST}` is an array: it stands alone in a string of a JSON document");
        }
        let names: Vec<&str> = PLACES.iter().map(|(known, _)| *known).collect();
        match nearest(&name, names.iter().copied()) {
            Some(meant) => format!("there is no placeholder `${{{name}}}`: did you mean `${{{meant}}}`?"),
            None => format!(
                "there is no placeholder `${{{name}}}`: there are {} and option.NAME",
                names.join(", ")
            ),
        }
    })
}

fn option<'a>(name: &str, options: &'a Options) -> Result<&'a Value, String> {
    options.get(name).ok_or_else(|| {
        let known: Vec<&str> = options.keys().map(String::as_str).collect();
        let name = shortened(name);
        format!("there is no option `{name}`: add it below `options`, which has [{}]", known.join(", "))
    })
}

fn as_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn options() -> Options {
        BTreeMap::from([
            ("prompt".into(), json!("say \"hi\"")),
            ("n".into(), json!(3)),
            ("none".into(), json!(null)),
        ])
    }

    fn values<'a>(image: &'a str, models: &'a [String]) -> Values<'a> {
        Values {
            image,
            image_id: "row 1",
            job_id: "ab",
            idempotency_key: "cd",
            models,
            content_type: "image/png",
            now: "2026-01-01T00:00:00Z",
        }
    }

    fn filled(text: &str) -> String {
        let models = ["a".to_owned(), "b".to_owned()];
        Template::compile(text, &options()).unwrap().fill(&values("IMG", &models))
    }

    #[test]
    fn every_placeholder_is_filled() {
        assert_eq!(
            filled("${image}|${image_id}|${model}|${models}|${content_type}"),
            "IMG|row 1|a|a,b|image/png"
        );
        assert_eq!(
            filled("${option.prompt} ${option.n} ${now} ${job_id}"),
            "say \"hi\" 3 2026-01-01T00:00:00Z ab"
        );
        assert_eq!(filled("costs $5, $${image} stays"), "costs $5, ${image} stays");
    }

    #[test]
    fn what_is_filled_in_is_not_read_again() {
        let models = ["${image}".to_owned()];
        let text = Template::compile("${model}", &options()).unwrap();
        assert_eq!(text.fill(&values("IMG", &models)), "${image}");
    }

    #[test]
    fn a_wrong_placeholder_is_refused_with_the_right_one() {
        let why = |text: &str| Template::compile(text, &options()).unwrap_err();
        assert!(why("${imgae}").contains("`${image}`"), "{}", why("${imgae}"));
        assert!(why("${option.promt}").contains("prompt"));
        assert!(why("${image").contains("closing brace"));
        assert!(why("x ${model_list}").contains("alone"));
    }

    #[test]
    fn a_fields_name_takes_options_and_nothing_that_differs_from_call_to_call() {
        let options = BTreeMap::from([("field".into(), json!("max \"tokens"))]);
        let json = JsonTemplate::compile(r#"{"${option.field}": 1, "": 2}"#, &options).unwrap();
        let json: Value = serde_json::from_slice(&json.fill(&values("", &[]))).unwrap();
        assert_eq!(json, json!({"max \"tokens": 1, "": 2}));
        assert!(JsonTemplate::compile(r#"{"${model}": 1}"#, &options).unwrap_err().contains("only options"));
    }

    #[test]
    fn a_json_document_keeps_the_types_of_options_and_models() {
        let text = r#"{"n": "${option.n}", "none": "${option.none}", "m": "${model_list}", "t": "is ${option.n}", "fixed": [1, null, true]}"#;
        let models = ["a".to_owned(), "b".to_owned()];
        let json = JsonTemplate::compile(text, &options()).unwrap().fill(&values("", &models));
        let json: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(
            json,
            json!({"n": 3, "none": null, "m": ["a", "b"], "t": "is 3", "fixed": [1, null, true]})
        );
    }

    proptest! {
        #[test]
        fn nothing_that_is_filled_in_changes_the_shape_of_a_document(image: String, model: String) {
            let template = JsonTemplate::compile(r#"{"a": [{"i": "x${image}y", "m": "${models}"}]}"#, &options()).unwrap();
            let models = [model.clone()];
            let json: Value = serde_json::from_slice(&template.fill(&values(&image, &models))).unwrap();
            prop_assert_eq!(json, json!({"a": [{"i": format!("x{image}y"), "m": model}]}));
        }

        #[test]
        fn any_text_is_compiled_or_refused(text: String) {
            let _ = Template::compile(&text, &options());
            let _ = JsonTemplate::compile(&text, &options());
        }
    }
}
