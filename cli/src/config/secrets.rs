//! Secrets stay out of settings files and flags, and out of everything that is shown.

use pixfleet_shared::settings::{Document, Leaf, Problems, is_secret};
use serde_json::Value;

/// What is shown instead of a secret.
const REDACTED: &str = "[redacted]";

/// Every secret that stands in a file or a flag, with the place where it belongs.
pub(super) fn refused(document: &Document) -> Problems {
    let mut problems = Problems::default();
    for leaf in document.leaves() {
        if let Some(advice) = advice(&leaf) {
            problems.push(document.problem(&leaf.field, advice));
        }
    }
    problems
}

fn advice(leaf: &Leaf) -> Option<String> {
    let provider = leaf.field.starts_with("providers.");
    let field = leaf.field.rsplit(']').next().unwrap_or_default();
    if texts(&leaf.value).iter().any(|text| password_in(text).is_some()) {
        let key = leaf.key.as_str();
        return Some(if provider {
            "holds a password: take it out, and let `auth.key_env` or `auth.key_file` say where it is"
                .to_owned()
        } else {
            let variable = format!("PIXFLEET_{}", field.to_ascii_uppercase().replace('.', "_"));
            format!("holds a password: put the URL into {variable}, or into a file that `{key}_file` names")
        });
    }
    // A placeholder (`${key}`) is how a request says where the secret goes.
    let secret = provider
        && is_secret(&leaf.key)
        && texts(&leaf.value).iter().any(|text| !text.is_empty() && !text.contains("${"));
    secret.then(|| {
        "looks like a secret: put it into an environment variable or a file, and let `auth.key_env` or `auth.key_file` name that".to_owned()
    })
}

fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(values) => values.iter().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

/// Where the password stands in a URL.
fn password_in(text: &str) -> Option<std::ops::Range<usize>> {
    let start = text.find("://")? + 3;
    let authority = &text[start..];
    let authority = &authority[..authority.find(['/', '?', '#']).unwrap_or(authority.len())];
    let at = authority.rfind('@')?;
    let colon = authority[..at].find(':')?;
    (colon + 1 < at).then(|| start + colon + 1..start + at)
}

/// `value` of the field `key` as it may be shown.
pub(super) fn shown(key: &str, value: &Value) -> Value {
    match value {
        Value::String(text) if is_secret(key) && !text.is_empty() && !text.contains("${") => REDACTED.into(),
        Value::String(text) => match password_in(text) {
            Some(password) => {
                format!("{}{REDACTED}{}", &text[..password.start], &text[password.end..]).into()
            }
            None => value.clone(),
        },
        Value::Array(values) => values.iter().map(|value| shown(key, value)).collect(),
        _ => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_a_file_is_refused_with_the_place_where_it_belongs() {
        let text = r#"
rabbitmq.url = "amqp://me:hunter2@mq/v"
[providers.tiliter]
auth.key_env = "TILITER_KEY"
auth.key = "hunter2"
endpoint = "https://me:hunter2@api.example.com"
[[providers.tiliter.request]]
headers = { tiliter-api-key = "hunter2", x-api-key = "${key}" }
"#;
        let problems = refused(&Document::parse("pixfleet.toml", text).unwrap()).to_string();
        let lines: Vec<&str> = problems.lines().collect();
        assert_eq!(lines.len(), 4, "{problems}");
        assert_eq!(
            lines[0],
            "pixfleet.toml:2: rabbitmq.url: holds a password: put the URL into PIXFLEET_RABBITMQ_URL, or into a file that \
             `url_file` names"
        );
        assert!(lines[1].starts_with("pixfleet.toml:5: providers.tiliter.auth.key: looks like a secret"));
        assert!(lines[2].starts_with("pixfleet.toml:6: providers.tiliter.endpoint: holds a password"));
        assert!(
            lines[3].starts_with("pixfleet.toml:8: providers.tiliter.request[0].headers.tiliter-api-key: ")
        );
        assert!(!problems.contains("hunter2"));
    }

    #[test]
    fn a_shown_value_keeps_no_password() {
        let show = |key: &str, text: &str| shown(key, &Value::from(text)).as_str().unwrap().to_owned();
        assert_eq!(show("url", "amqp://me:p@ss@mq:5672/v"), "amqp://me:[redacted]@mq:5672/v");
        assert_eq!(show("url", "redis://:pw@r"), "redis://:[redacted]@r");
        assert_eq!(show("url", "amqp://me@mq/v?a=b:c@d"), "amqp://me@mq/v?a=b:c@d");
        assert_eq!(show("client_key", "x"), "[redacted]");
        assert_eq!(show("key_env", "RESTB_KEY"), "RESTB_KEY");
    }
}
