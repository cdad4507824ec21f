//! Settings from the environment: `PIXFLEET_<SECTION>_<KEY>`.

use std::ffi::OsString;

use pixfleet_shared::settings::{Document, Problem, Problems, nearest};

use super::fields;

/// Names the settings file.
pub(super) const CONFIG: &str = "PIXFLEET_CONFIG";

/// Variables of the commands and scripts around pixfleet (`tests/services`, `tests/bench`, `deploy/compose.yaml`): not settings.
const OF_SCRIPTS: [&str; 8] = [
    CONFIG,
    crate::limits::BY,
    "PIXFLEET_BENCH_CELLS",
    "PIXFLEET_BINARY",
    "PIXFLEET_IMAGE",
    "PIXFLEET_NGINX",
    "PIXFLEET_RABBITMQ_SBIN",
    "PIXFLEET_REDIS_SERVER",
];
/// Families of them, and the variables of the sandbox, which has no section.
const FAMILIES: [&str; 3] = ["PIXFLEET_SANDBOX_", "PIXFLEET_SERVICES_", "PIXFLEET_TEST_"];

/// Sets what the environment says over `document`. An empty variable says nothing.
pub(super) fn apply(environment: &[(OsString, OsString)], document: &mut Document) -> Problems {
    let (known, mut problems) = (fields::fields(), Problems::default());
    let secrets = named_secrets(document);
    for (name, value) in environment {
        let Some(name) = name.to_str().filter(|name| name.starts_with("PIXFLEET_")) else {
            continue;
        };
        let Some(value) = value.to_str() else {
            problems.push(Problem::of(name, "not UTF-8 text"));
            continue;
        };
        if value.is_empty() {
            continue;
        }
        match known.iter().find(|field| field.variable() == name) {
            Some(field) => problems.extend(document.set(&field.name, field.value(value), name).err()),
            None if is_foreign(name, value) || secrets.iter().any(|secret| secret == name) => {}
            None => problems.push(Problem::of(name, unknown(name, &known))),
        }
    }
    problems
}

/// What a provider's `*_env` names is a secret, and may begin like a setting.
fn named_secrets(document: &Document) -> Vec<String> {
    let leaves = document.leaves().into_iter().filter(|leaf| leaf.key.ends_with("_env"));
    leaves.filter_map(|leaf| leaf.value.as_str().map(str::to_owned)).collect()
}

/// Whether the variable is someone else's: of our own scripts, or what Kubernetes sets for a service that is
/// called `pixfleet…` (`PIXFLEET_WORKER_SERVICE_HOST`, `PIXFLEET_WORKER_PORT=tcp://…`).
fn is_foreign(name: &str, value: &str) -> bool {
    let is_port = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    let of_kubernetes = name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.ends_with("_PORT") && value.contains("://")
        || name.split("_PORT_").nth(1).is_some_and(is_port);
    of_kubernetes || OF_SCRIPTS.contains(&name) || FAMILIES.iter().any(|family| name.starts_with(family))
}

fn unknown(name: &str, known: &[fields::Field]) -> String {
    let variables: Vec<String> = known.iter().map(fields::Field::variable).collect();
    let candidates = variables.iter().map(String::as_str).chain([CONFIG]);
    match nearest(name, candidates) {
        Some(meant) => format!("unknown variable: did you mean `{meant}`?"),
        None => "unknown variable: `pixfleet config example` lists the settings; unset it, or rename it"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn applied(pairs: &[(&str, &str)]) -> (Document, String) {
        let environment: Vec<_> = pairs.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let toml = "providers.mine.auth.key_env = 'PIXFLEET_MY_KEY'";
        let mut document = Document::parse("pixfleet.toml", toml).unwrap();
        let problems = apply(&environment, &mut document).to_string();
        (document, problems)
    }

    #[test]
    fn a_variable_sets_its_field_and_an_empty_one_nothing() {
        let (document, problems) =
            applied(&[("PIXFLEET_RABBITMQ_LANES", "8"), ("PIXFLEET_LOG_FILTER", ""), ("HOME", "/")]);
        assert_eq!(problems, "");
        assert_eq!(document.get("rabbitmq.lanes"), Some(json!(8)));
        assert_eq!(document.origin("rabbitmq.lanes"), "PIXFLEET_RABBITMQ_LANES");
        assert!(!document.has("log"));
    }

    #[test]
    fn a_mistyped_variable_is_refused_with_the_one_that_was_meant() {
        let (_, problems) = applied(&[("PIXFLEET_RABITMQ_URL", "amqp://u:hunter2@h")]);
        assert_eq!(problems, "PIXFLEET_RABITMQ_URL: unknown variable: did you mean `PIXFLEET_RABBITMQ_URL`?");
    }

    #[test]
    fn variables_of_others_are_left_alone() {
        let (_, problems) = applied(&[
            ("PIXFLEET_SERVICE_HOST", "10.0.0.1"),
            ("PIXFLEET_WORKER_PORT", "tcp://10.0.0.1:9600"),
            ("PIXFLEET_WORKER_PORT_9600_TCP_ADDR", "10.0.0.1"),
            ("PIXFLEET_SERVICES_SET", "1"),
            ("PIXFLEET_NGINX", "/opt/nginx/sbin/nginx"),
            ("PIXFLEET_MY_KEY", "secret"),
            ("PIXFLEET_CONFIG", "pixfleet.toml"),
        ]);
        assert_eq!(problems, "");
    }

    #[test]
    fn a_port_that_someone_believes_in_is_not_taken_for_one_of_kubernetes() {
        let (_, problems) = applied(&[("PIXFLEET_ADMIN_PORT", "9700")]);
        assert!(problems.starts_with("PIXFLEET_ADMIN_PORT: unknown variable"), "{problems}");
    }
}
