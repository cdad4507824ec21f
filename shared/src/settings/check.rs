//! A document against the schema of a type: every problem, each at its line, in words.

use jsonschema::{
    ValidationError,
    error::ValidationErrorKind as Fault,
    paths::{Location, LocationSegment},
};
use schemars::{JsonSchema, generate::SchemaSettings};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{
    Document,
    describe::{constants, either, expected, found, is_null, nearest, one_of, resolved},
    is_secret,
    path::{Path, Step},
    problem::{Problem, Problems},
};

/// The JSON Schema of `T`, without references where it does not hold itself, and with the bounds of its integers.
pub fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    bound_integers(&mut schema);
    schema
}

/// `schemars` bounds 8 and 16 bit integers only; a number that serde would refuse is found here, with the others.
fn bound_integers(schema: &mut Value) {
    if let Value::Object(map) = schema {
        let bounds = match map.get("format").and_then(Value::as_str) {
            Some("uint32") => Some((0, i64::from(u32::MAX))),
            Some("int32") => Some((i64::from(i32::MIN), i64::from(i32::MAX))),
            _ => None,
        };
        if let Some((least, most)) = bounds {
            map.entry("minimum").or_insert(least.into());
            map.entry("maximum").or_insert(most.into());
        }
    }
    match schema {
        Value::Object(map) => map.values_mut().for_each(bound_integers),
        Value::Array(list) => list.iter_mut().for_each(bound_integers),
        _ => {}
    }
}

pub(super) fn read<T: DeserializeOwned + JsonSchema>(document: &Document) -> Result<T, Problems> {
    let (schema, value) = (schema::<T>(), document.to_value());
    let mut check = Check { document, schema: &schema, problems: Problems::default() };
    match jsonschema::validator_for(&schema) {
        Ok(validator) => validator.iter_errors(&value).for_each(|error| check.explain(&error)),
        // Only a type with a broken schema of its own gets here; serde still says what it refuses.
        Err(error) => tracing::debug!(%error, "the settings' own schema can't be compiled"),
    }
    let value = check.problems.or(value)?;
    serde_path_to_error::deserialize(value).map_err(|error| refused(document, &error).into())
}

/// A value that has the right shape, but that the type's own `Deserialize` refuses.
fn refused(document: &Document, error: &serde_path_to_error::Error<serde_json::Error>) -> Problem {
    use serde_path_to_error::Segment;
    let steps = error.path().iter().filter_map(|segment| match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Map { key } => Some(Step::Key(key.clone())),
        Segment::Enum { .. } | Segment::Unknown => None,
    });
    document.problem_at(&Path(steps.collect()), error.inner().to_string())
}

struct Check<'a> {
    document: &'a Document,
    schema: &'a Value,
    problems: Problems,
}

impl<'a> Check<'a> {
    fn say(&mut self, path: &Path, message: impl Into<String>) {
        self.problems.push(self.document.problem_at(path, message));
    }

    fn explain(&mut self, error: &ValidationError<'_>) {
        let path = path(error.instance_path());
        match error.kind() {
            Fault::AdditionalProperties { unexpected } | Fault::UnevaluatedProperties { unexpected } => {
                unexpected.iter().for_each(|key| self.unknown(&path, key, error));
            }
            Fault::Required { property } => self.missing(&path, property, error),
            Fault::AnyOf { context } | Fault::OneOfNotValid { context } => {
                self.no_branch(&path, context, error)
            }
            Fault::Pattern { .. } | Fault::Type { .. } | Fault::Enum { .. } | Fault::Constant { .. } => {
                self.mismatch(&path, error);
            }
            Fault::Minimum { .. } | Fault::Maximum { .. } | Fault::ExclusiveMinimum { .. } => {
                self.mismatch(&path, error)
            }
            Fault::MinLength { .. } | Fault::MaxLength { .. } => self.mismatch(&path, error),
            Fault::MinItems { limit } => self.say(&path, format!("too few: give at least {limit}")),
            Fault::MaxItems { limit } => self.say(&path, format!("too many: give at most {limit}")),
            Fault::MinProperties { limit } => self.say(&path, format!("too few keys: give at least {limit}")),
            Fault::UniqueItems => self.say(&path, "an element stands in the list twice: give each once"),
            // Whatever else a schema may ask for, in the validator's words without the value.
            _ => self.say(&path, error.masked_with("the value").to_string()),
        }
    }

    fn unknown(&mut self, path: &Path, key: &str, error: &ValidationError<'_>) {
        let known: Vec<&str> = self
            .asked(error)
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flat_map(Map::keys)
            .map(String::as_str)
            .collect();
        let elsewhere = || nearest_field(self.schema, key);
        let hint = match nearest(key, known.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => match elsewhere() {
                Some(field) if known.len() > 12 || path.0.is_empty() => format!("did you mean `{field}`?"),
                _ => format!("known here: {}", known.join(", ")),
            },
        };
        self.say(&path.key(key), format!("unknown key: {hint}"));
    }

    fn missing(&mut self, path: &Path, property: &Value, error: &ValidationError<'_>) {
        let key = property.as_str().unwrap_or_default();
        let asked = self.asked(error).get("properties").and_then(|properties| properties.get(key));
        let what = asked.map_or_else(|| "it".to_owned(), |asked| expected(asked, self.schema));
        self.say(&path.key(key), format!("missing: give {what}"));
    }

    fn mismatch(&mut self, path: &Path, error: &ValidationError<'_>) {
        let (asked, value) = (self.asked(error), error.instance());
        self.wrong(path, value, &constants(asked, self.schema), &expected(asked, self.schema));
    }

    fn wrong(&mut self, path: &Path, value: &Value, words: &[String], expected: &str) {
        let secret = path.last_key().is_some_and(is_secret);
        let hint = match value {
            Value::String(text) if !secret => match nearest(text, words.iter().map(String::as_str)) {
                Some(meant) => format!(" (did you mean `{meant}`?)"),
                None if expected.contains("number") && text.parse::<f64>().is_ok() => {
                    format!(": {text} without quotes")
                }
                None => String::new(),
            },
            _ => String::new(),
        };
        self.say(path, format!("found {}: give {expected}{hint}", found(value, secret)));
    }

    /// None of the forms that the value may have fits: explain the one that was meant, else name them all.
    fn no_branch(
        &mut self,
        path: &Path,
        context: &[Vec<ValidationError<'static>>],
        error: &ValidationError<'_>,
    ) {
        let asked = self.asked(error);
        let branches = ["oneOf", "anyOf"].iter().find_map(|keyword| asked.get(*keyword)?.as_array());
        let forms: Vec<(&Value, &Vec<ValidationError<'static>>)> =
            branches.into_iter().flatten().map(|form| resolved(form, self.schema)).zip(context).collect();
        let mut meant = forms
            .iter()
            .filter(|(form, faults)| !is_null(form) && is_meant(form, error.instance_path(), faults));
        match (meant.next(), meant.next()) {
            (Some((_, faults)), None) => faults.iter().for_each(|fault| self.explain(fault)),
            _ => self.no_form(path, &forms, error.instance()),
        }
    }

    fn no_form(&mut self, path: &Path, forms: &[(&Value, &Vec<ValidationError<'static>>)], value: &Value) {
        if let Some(tag) = tag(forms) {
            let words: Vec<String> = forms
                .iter()
                .flat_map(|(form, _)| constants(&form["properties"][&tag], self.schema))
                .collect();
            return match value.get(&tag) {
                Some(word) => self.wrong(&path.key(&tag), word, &words, &one_of(&words)),
                None if value.is_object() => {
                    self.say(&path.key(&tag), format!("missing: give {}", one_of(&words)))
                }
                None => self.wrong(path, value, &[], &format!("a table with `{tag}`, {}", one_of(&words))),
            };
        }
        let words: Vec<String> = forms.iter().flat_map(|(form, _)| constants(form, self.schema)).collect();
        let all = either(
            forms.iter().filter(|(form, _)| !is_null(form)).map(|(form, _)| expected(form, self.schema)),
        );
        self.wrong(path, value, &words, &all);
    }

    /// The schema whose keyword refused: the parent of the place in the schema.
    fn asked(&self, error: &ValidationError<'_>) -> &'a Value {
        let pointer = error.schema_path().as_str();
        let parent = pointer.rsplit_once('/').map_or("", |(parent, _)| parent);
        self.schema.pointer(parent).unwrap_or(&Value::Null)
    }
}

/// Whether the value has this form's kind: its type, its tag and its one key, where the form has one, are right.
fn is_meant(form: &Value, at: &Location, faults: &[ValidationError<'static>]) -> bool {
    let depth = at.iter().count();
    let keys = form.get("properties").and_then(Value::as_object).map_or(0, Map::len);
    !faults.iter().any(|fault| {
        let below = fault.instance_path().iter().count() - depth;
        match fault.kind() {
            Fault::Type { .. } | Fault::Enum { .. } => below == 0,
            Fault::Constant { .. } => below <= 1,
            Fault::Required { property } => below == 0 && (keys == 1 || is_constant(form, property)),
            _ => false,
        }
    })
}

fn is_constant(form: &Value, key: &Value) -> bool {
    key.as_str().is_some_and(|key| form["properties"][key].get("const").is_some())
}

/// The key by which every form says which one it is.
fn tag(forms: &[(&Value, &Vec<ValidationError<'static>>)]) -> Option<String> {
    let tables: Vec<&Map<String, Value>> =
        forms.iter().filter_map(|(form, _)| form.get("properties")?.as_object()).collect();
    let is_tag = |key: &String| {
        tables.iter().all(|table| table.get(key).is_some_and(|value| value.get("const").is_some()))
    };
    tables.first()?.keys().find(|key| is_tag(key)).cloned()
}

/// The field somewhere in `schema` whose last key is like `key`.
fn nearest_field(schema: &Value, key: &str) -> Option<String> {
    let mut fields = Vec::new();
    fields_of(schema, &Path::default(), &mut fields);
    let last = |path: &Path| path.last_key().unwrap_or_default().to_owned();
    let keys: Vec<String> = fields.iter().map(last).collect();
    let meant = nearest(key, keys.iter().map(String::as_str))?;
    fields.iter().find(|field| last(field) == meant).map(Path::to_string)
}

fn fields_of(schema: &Value, path: &Path, fields: &mut Vec<Path>) {
    for (key, below) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        fields.push(path.key(key));
        fields_of(below, &path.key(key), fields);
    }
}

fn path(location: &Location) -> Path {
    let step = |segment| match segment {
        LocationSegment::Property(key) => Step::Key(key.into_owned()),
        LocationSegment::Index(index) => Step::Index(index),
    };
    Path(location.iter().map(step).collect())
}
