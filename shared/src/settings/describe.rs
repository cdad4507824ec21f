//! What a schema asks for and what was found instead, in words.

use serde_json::Value;

/// The candidate that `word` was probably meant to be.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_', '.'], "");
    let likeness = |candidate: &str| {
        let (word, candidate) = (plain(word), plain(candidate));
        // A beginning counts as much as two slips: `conc` for `concurrency`, `sliding-window` for `sliding`.
        let begun = word.len().min(candidate.len()) >= 3
            && (candidate.starts_with(&word) || word.starts_with(&candidate));
        let alike = strsim::normalized_damerau_levenshtein(&word, &candidate);
        if begun { alike.max(0.7) } else { alike }
    };
    let scored = candidates.into_iter().map(|candidate| (likeness(candidate), candidate));
    let best = scored.max_by(|one, two| one.0.total_cmp(&two.0))?;
    (best.0 >= 0.6).then_some(best.1)
}

/// What a schema of [`schema`](super::schema) asks for, in words: `a whole number from 1 to 100`.
pub fn wanted(schema: &Value) -> String {
    expected(schema, schema)
}

/// What `schema` asks for: `a whole number from 1 to 100`, `one of `text`, `json``.
pub(super) fn expected(schema: &Value, root: &Value) -> String {
    let schema = resolved(schema, root);
    let words = constants(schema, root);
    if !words.is_empty() {
        return one_of(&words);
    }
    for keyword in ["anyOf", "oneOf"] {
        if let Some(Value::Array(branches)) = schema.get(keyword) {
            return either(
                branches.iter().filter(|branch| !is_null(branch)).map(|branch| expected(branch, root)),
            );
        }
    }
    match schema.get("type") {
        Some(Value::String(kind)) => of_type(kind, schema, root),
        Some(Value::Array(kinds)) => either(
            kinds
                .iter()
                .filter_map(Value::as_str)
                .filter(|kind| *kind != "null")
                .map(|kind| of_type(kind, schema, root)),
        ),
        _ if schema.get("properties").is_some() => of_type("object", schema, root),
        _ => "another value".to_owned(),
    }
}

/// Every word that `schema` allows, where it allows only words.
pub(super) fn constants(schema: &Value, root: &Value) -> Vec<String> {
    let schema = resolved(schema, root);
    if let Some(word) = schema.get("const") {
        return vec![plain(word)];
    }
    if let Some(Value::Array(words)) = schema.get("enum") {
        return words.iter().filter(|word| !word.is_null()).map(plain).collect();
    }
    let branches = ["oneOf", "anyOf"].iter().find_map(|keyword| schema.get(*keyword)?.as_array());
    let mut words = Vec::new();
    for branch in branches.into_iter().flatten().filter(|branch| !is_null(branch)) {
        match constants(branch, root) {
            none if none.is_empty() => return Vec::new(),
            some => words.extend(some),
        }
    }
    words
}

/// What was found: the value, where showing it can't give a secret away.
pub(super) fn found(value: &Value, secret: bool) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a table".to_owned(),
        Value::Bool(_) | Value::Number(_) if !secret => value.to_string(),
        Value::String(text) if !secret && text.len() <= 40 && !text.contains("://") => {
            format!("the text `{text}`")
        }
        Value::String(_) => "a text".to_owned(),
        _ => "a value".to_owned(),
    }
}

/// "`a`, `b` or `c`".
pub(super) fn one_of(words: &[String]) -> String {
    match words {
        [word] => format!("`{word}`"),
        words => either(words.iter().map(|word| format!("`{word}`"))),
    }
}

pub(super) fn either(parts: impl Iterator<Item = String>) -> String {
    let mut unique: Vec<String> = Vec::new();
    parts.for_each(|part| {
        if !unique.contains(&part) {
            unique.push(part);
        }
    });
    match unique.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => "nothing".to_owned(),
    }
}

/// `schema`, or what its `$ref` points to.
pub(super) fn resolved<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    let target =
        schema.get("$ref").and_then(Value::as_str).and_then(|to| root.pointer(to.trim_start_matches('#')));
    target.unwrap_or(schema)
}

pub(super) fn is_null(schema: &Value) -> bool {
    schema.get("type").is_some_and(|kind| kind == "null")
}

fn plain(word: &Value) -> String {
    word.as_str().map_or_else(|| word.to_string(), str::to_owned)
}

fn of_type(kind: &str, schema: &Value, root: &Value) -> String {
    match kind {
        "integer" => format!("a whole number{}", range(schema)),
        "number" => format!("a number{}", range(schema)),
        "boolean" => "true or false".to_owned(),
        "array" => match schema.get("items") {
            Some(items) => format!("a list, each {}", expected(items, root)),
            None => "a list".to_owned(),
        },
        "object" => table(schema),
        "string" => text(schema),
        other => other.to_owned(),
    }
}

fn text(schema: &Value) -> String {
    let bound = |name| schema.get(name).and_then(Value::as_u64);
    match (bound("minLength"), bound("maxLength"), schema.get("pattern").and_then(Value::as_str)) {
        (_, _, Some(pattern)) => format!("a text that matches {pattern}"),
        (Some(1), None, _) => "a text that is not empty".to_owned(),
        (Some(least), Some(most), _) => format!("a text of {least} to {most} characters"),
        (Some(least), None, _) => format!("a text of at least {least} characters"),
        (None, Some(most), _) => format!("a text of at most {most} characters"),
        _ => "a text".to_owned(),
    }
}

fn table(schema: &Value) -> String {
    let names = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    match schema.get("required").map(names) {
        Some(required) if !required.is_empty() => {
            format!("a table with {}", one_of(&required).replace(" or ", " and "))
        }
        _ => "a table".to_owned(),
    }
}

fn range(schema: &Value) -> String {
    let bound = |name| schema.get(name).filter(|bound| bound.is_number());
    match (bound("minimum"), bound("maximum"), bound("exclusiveMinimum")) {
        (Some(least), Some(most), _) => format!(" from {least} to {most}"),
        (None, Some(most), Some(above)) => format!(" above {above}, at most {most}"),
        (Some(least), None, _) => format!(", {least} or more"),
        (None, Some(most), None) => format!(", at most {most}"),
        (None, None, Some(above)) => format!(" above {above}"),
        (None, None, None) => String::new(),
    }
}
