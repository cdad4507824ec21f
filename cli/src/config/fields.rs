//! The known settings, from the schema: what may be set, how it is written, what it means.

use pixfleet_shared::settings;
use serde_json::{Map, Value};

use super::Config;

/// One setting that is not a table.
pub(crate) struct Field {
    /// The dotted name: `worker.fetch.max_bytes`.
    pub(crate) name: String,
    /// What it means, one paragraph.
    pub(crate) about: String,
    /// Its value when nothing is said; none for a setting that has none.
    pub(crate) default: Option<Value>,
    /// Its schema.
    pub(crate) schema: Value,
}

/// One section of the file, with its settings and those of the tables below it.
pub(crate) struct Section {
    /// Its name: `worker`.
    pub(crate) name: String,
    /// What it is about, one paragraph.
    pub(crate) about: String,
    /// Its settings, in the order of their declaration; none where the user chooses the names.
    pub(crate) fields: Vec<Field>,
}

impl Field {
    /// The environment variable of the setting: `PIXFLEET_WORKER_FETCH_MAX_BYTES`.
    pub(crate) fn variable(&self) -> String {
        format!("PIXFLEET_{}", self.name.to_ascii_uppercase().replace('.', "_"))
    }

    /// The setting's name in its section.
    pub(crate) fn key(&self) -> &str {
        self.name.split_once('.').map_or("", |(_, key)| key)
    }

    /// The value that `text` means here: a text where the setting takes one, else TOML, or words with commas for
    /// a list. What can't be read stays a text, so that the check says what was expected.
    pub(crate) fn value(&self, text: &str) -> Value {
        match () {
            () if takes(&self.schema, "string") => Value::String(text.to_owned()),
            () if takes(&self.schema, "array") && !text.trim_start().starts_with('[') => {
                text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(Value::from).collect()
            }
            () => toml_value(text).unwrap_or_else(|| Value::String(text.to_owned())),
        }
    }
}

/// The value that `text` is in TOML.
pub(crate) fn toml_value(text: &str) -> Option<Value> {
    let document = settings::Document::parse("value", &format!("value = {text}")).ok()?;
    (document.keys().count() == 1).then(|| document.get("value"))?
}

/// Every section, in the order of the file.
pub(crate) fn sections() -> Vec<Section> {
    let schema = settings::schema::<Config>();
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    let section = |(name, schema): (&String, &Value)| {
        let mut fields = Vec::new();
        collect(schema, name, &defaults[name], &mut fields);
        Section { name: name.clone(), about: about(schema), fields }
    };
    properties(&schema).into_iter().flatten().map(section).collect()
}

/// Every setting that has a name of its own.
pub(crate) fn fields() -> Vec<Field> {
    sections().into_iter().flat_map(|section| section.fields).collect()
}

fn collect(schema: &Value, name: &str, default: &Value, fields: &mut Vec<Field>) {
    for (key, below) in properties(schema).into_iter().flatten() {
        let name = format!("{name}.{key}");
        let default = default.get(key).unwrap_or(&Value::Null);
        if properties(below).is_some() {
            collect(below, &name, default, fields);
        } else {
            let default = (!default.is_null()).then(|| default.clone());
            fields.push(Field { name, about: about(below), default, schema: below.clone() });
        }
    }
}

/// The keys of a table, also of one that may be left out.
fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    let own = schema.get("properties").and_then(Value::as_object);
    own.or_else(|| match schema.get("anyOf").and_then(Value::as_array).map(Vec::as_slice) {
        Some([some, none]) if none.get("type").is_some_and(|kind| kind == "null") => properties(some),
        _ => None,
    })
}

fn takes(schema: &Value, kind: &str) -> bool {
    let is = |value: &Value| value == kind;
    let own = match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(is),
        Some(single) => is(single),
        None => false,
    };
    let branches = ["anyOf", "oneOf"].iter().filter_map(|keyword| schema.get(*keyword)?.as_array());
    own || branches.flatten().any(|branch| takes(branch, kind))
}

/// A schema's description as one line a paragraph.
fn about(schema: &Value) -> String {
    let text = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    let paragraphs =
        text.split("\n\n").map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    paragraphs.collect::<Vec<_>>().join("\n\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    #[test]
    fn every_setting_says_what_it_means_and_no_two_share_a_variable() {
        let mut variables = BTreeMap::new();
        for field in fields() {
            assert!(field.about.len() > 10, "{} has no description", field.name);
            assert!(
                field.about.contains("Default: "),
                "{} does not say its default: {}",
                field.name,
                field.about
            );
            if let Some(other) = variables.insert(field.variable(), field.name.clone()) {
                panic!("{other} and {} share {}", field.name, field.variable());
            }
        }
        assert!(
            variables.contains_key("PIXFLEET_RABBITMQ_URL") && variables.contains_key("PIXFLEET_REDIS_URL")
        );
    }

    #[test]
    fn a_described_default_is_the_default() {
        for field in fields() {
            let said = field.about.split("Default: ").nth(1).unwrap_or_default();
            let word = said.trim_start_matches('`').split(['`', ' ', ';']).next().unwrap_or_default();
            let word = word.trim_end_matches(['.', ',']).replace(',', "");
            match &field.default {
                Some(Value::Number(number)) => {
                    let said: f64 =
                        word.parse().unwrap_or_else(|_| panic!("{} says `{word}`, not a number", field.name));
                    assert_eq!(Some(said), number.as_f64(), "{}", field.name);
                }
                Some(Value::String(text)) if said.starts_with('`') => {
                    assert_eq!(said.split('`').nth(1), Some(text.as_str()), "{}", field.name);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn a_text_becomes_what_the_setting_takes() {
        let field = |schema: Value| Field { name: "a.b".into(), about: String::new(), default: None, schema };
        assert_eq!(field(json!({"type": "integer"})).value("64"), json!(64));
        assert_eq!(field(json!({"type": ["boolean", "null"]})).value("true"), json!(true));
        assert_eq!(field(json!({"type": "integer"})).value("many"), json!("many"));
        assert_eq!(field(json!({"type": "string"})).value("64"), json!("64"));
        assert_eq!(field(json!({"type": "array"})).value("/a, /b"), json!(["/a", "/b"]));
        assert_eq!(field(json!({"type": "array"})).value("[80, 443]"), json!([80, 443]));
        assert_eq!(field(json!({"type": "integer"})).value("1\nother = 2"), json!("1\nother = 2"));
    }
}
