//! The settings in effect, without their secrets, each with where it came from.

use pixfleet_shared::settings::{Document, Leaf};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Config, example::toml, load::Loaded, secrets};

/// One setting in effect.
#[derive(Serialize)]
struct Shown {
    value: Value,
    origin: String,
}

/// Every value in effect: what was said, over the defaults. Secrets are redacted.
fn effective(loaded: &Loaded) -> Vec<Leaf> {
    let defaults = Document::of("default", serde_json::to_value(Config::default()).unwrap_or_default());
    let leaves = loaded.document.clone().merged_over(defaults).leaves();
    let shown = |leaf: Leaf| Leaf { value: secrets::shown(&leaf.key, &leaf.value), ..leaf };
    leaves.into_iter().filter(|leaf| !leaf.value.is_null()).map(shown).collect()
}

/// The settings as TOML, with `# origin` behind each where asked for.
pub(super) fn text(loaded: &Loaded, origins: bool) -> String {
    let line = |leaf: Leaf| {
        let value = toml(&leaf.value);
        if origins {
            format!("{} = {value} # {}\n", leaf.field, leaf.origin)
        } else {
            format!("{} = {value}\n", leaf.field)
        }
    };
    effective(loaded).into_iter().map(line).collect()
}

/// The settings as one JSON object by field: the value, or the value and its origin.
pub(super) fn json(loaded: &Loaded, origins: bool) -> Value {
    let entry = |leaf: Leaf| {
        let shown = Shown { value: leaf.value, origin: leaf.origin };
        let value = if origins { serde_json::to_value(&shown).unwrap_or_default() } else { shown.value };
        (leaf.field, value)
    };
    Value::Object(effective(loaded).into_iter().map(entry).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn loaded() -> Loaded {
        let directory = tempfile::tempdir().unwrap();
        let toml = "[log]\nfilter = 'warn'\n[providers.mine]\nlimits = [{ name = 'rate', calls = 4 }]\n";
        std::fs::write(directory.path().join("pixfleet.toml"), toml).unwrap();
        let environment = [("PIXFLEET_RABBITMQ_URL".into(), "amqp://me:hunter2@mq/v".into())];
        Sources::default().gather(&environment, directory.path()).read().unwrap()
    }

    #[test]
    fn each_value_is_shown_with_its_origin_and_no_secret() {
        let text = text(&loaded(), true);
        for line in [
            "log.filter = \"warn\" # pixfleet.toml:2",
            "rabbitmq.url = \"amqp://me:[redacted]@mq/v\" # PIXFLEET_RABBITMQ_URL",
            "rabbitmq.lanes = 4 # default",
            "providers.mine.limits[0].calls = 4 # pixfleet.toml:4",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("hunter2"));
    }

    #[test]
    fn the_json_form_has_the_same_fields() {
        let (plain, origins) = (json(&loaded(), false), json(&loaded(), true));
        assert_eq!(plain["log.filter"], "warn");
        assert_eq!(origins["log.filter"]["origin"], "pixfleet.toml:2");
        assert_eq!(plain.as_object().unwrap().len(), text(&loaded(), false).lines().count());
    }
}
