use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::{batch::BatchName, limiter::Limit};

#[derive(Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Provider {
    endpoint: String,
    #[serde(default)]
    auth: Auth,
    #[serde(default)]
    limits: Vec<Limit>,
    #[serde(default)]
    models: std::collections::BTreeMap<String, Model>,
    #[serde(default)]
    attempts: Option<u32>,
    #[serde(default)]
    batch: Option<BatchName>,
    #[serde(default)]
    cost: Cost,
    #[serde(default)]
    pace: Option<Pace>,
}

#[derive(Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Auth {
    #[default]
    None,
    Query {
        name: String,
        key_env: String,
    },
    Header {
        name: String,
    },
}

#[derive(Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Cost {
    #[default]
    PerCall,
    PerModel,
}

#[derive(Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Pace {
    Fixed { ms: u32 },
    Jitter(f64),
    Off,
}

#[derive(Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Model {
    query: String,
}

fn lines(text: &str) -> Vec<String> {
    match Document::parse("p.toml", text).and_then(|document| document.read::<Provider>()) {
        Ok(provider) => panic!("read as {provider:?}"),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn every_problem_is_reported_at_once_with_its_line_and_a_way_out() {
    let text = r#"
endpont = "https://api.example.com"
attempts = -1
cost = "per_cal"

[auth]
kind = "query"
nam = "client_key"

[[limits]]
name = "rate"
calls = 4
judge = "sliding-window"

[[limits]]
name = 7
calls = "4"
burst = 5_000_000_000

[models.room]
query = ".x"
[models."a b"]
"#;
    assert_eq!(
        lines(text),
        [
            "p.toml: endpoint: missing: give a text",
            "p.toml:2: endpont: unknown key: did you mean `endpoint`?",
            "p.toml:3: attempts: found -1: give a whole number from 0 to 4294967295",
            "p.toml:4: cost: found the text `per_cal`: give `per_call` or `per_model` (did you mean `per_call`?)",
            "p.toml:6: auth.key_env: missing: give a text",
            "p.toml:6: auth.name: missing: give a text",
            "p.toml:8: auth.nam: unknown key: did you mean `name`?",
            "p.toml:13: limits[0].judge: found the text `sliding-window`: give `sliding`, `fixed`, `bucket`, `leaky` \
             or `concurrent` (did you mean `sliding`?)",
            "p.toml:16: limits[1].name: found 7: give a text",
            "p.toml:17: limits[1].calls: found the text `4`: give a whole number from 0 to 4294967295: 4 without quotes",
            "p.toml:18: limits[1].burst: found 5000000000: give a whole number from 0 to 4294967295",
            "p.toml:22: models.\"a b\".query: missing: give a text",
        ]
    );
}

#[test]
fn a_wrong_kind_of_table_names_the_kinds() {
    let endpoint = "endpoint = 'e'\n";
    for (text, expected) in [
        (
            "auth.kind = 'heder'",
            "auth.kind: found the text `heder`: give `none`, `query` or `header` (did you mean `header`?)",
        ),
        ("auth = {}", "auth.kind: missing: give `none`, `query` or `header`"),
        ("auth = 3", "auth: found 3: give a table with `kind`, `none`, `query` or `header`"),
        (
            "pace = 'of'",
            "pace: found the text `of`: give `off`, a table with `fixed` or a table with `jitter` (did you mean `off`?)",
        ),
        (
            "pace = {fixed = {ms = 'x'}}",
            "pace.fixed.ms: found the text `x`: give a whole number from 0 to 4294967295",
        ),
        (
            "pace = {fixd = {ms = 1}}",
            "pace: found a table: give `off`, a table with `fixed` or a table with `jitter`",
        ),
    ] {
        assert_eq!(lines(&format!("{endpoint}{text}")), [format!("p.toml:2: {expected}")]);
    }
}

#[test]
fn what_only_the_type_itself_refuses_has_its_line_too() {
    let found = lines("endpoint = 'e'\nattempts = 2.0\n");
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("p.toml:2: attempts: "), "{found:?}");
    let found = lines("endpoint = 'e'\n\nbatch = 'two words'\n");
    assert!(found[0].starts_with("p.toml:3: batch: "), "{found:?}");
}

#[test]
fn syntax_errors_have_their_lines_and_do_not_quote_the_file() {
    let found = lines("a = 1\nclient_key = hunter2\n\nc = [1,\n");
    assert!(found[0].starts_with("p.toml:2: "), "{found:?}");
    assert!(!found.join("\n").contains("hunter2"), "{found:?}");
    assert!(lines("a = 1\na = 2\n")[0].starts_with("p.toml:2: duplicate key"));
    assert!(
        lines("a = 99999999999999999999\nb = nan")[0].starts_with("p.toml:1: a: the number is out of range")
    );
}

#[test]
fn a_problem_names_the_document_that_its_value_came_from() {
    let preset =
        Document::parse("preset restb", "endpoint = 3\n[[limits]]\nname = 'rate'\ncalls = 4\n").unwrap();
    let user = Document::parse("pixfleet.toml", "[providers.restb]\nattempts = 'many'\ncost = 'per_model'\n")
        .unwrap();
    let mut merged = user.subtable("providers.restb").unwrap().merged_over(preset);
    merged.set("limits[0].calls", json!("x"), "PIXFLEET_CALLS").unwrap();
    let problems = merged.read::<Provider>().unwrap_err().to_string();
    let starts = [
        "PIXFLEET_CALLS: providers.restb.limits[0].calls: ",
        "pixfleet.toml:2: providers.restb.attempts: ",
        "preset restb:1: providers.restb.endpoint: ",
    ];
    for (line, start) in problems.lines().zip(starts) {
        assert!(line.starts_with(start), "{problems}");
    }
    assert_eq!(problems.lines().count(), 3);
    assert_eq!(merged.origin("cost"), "pixfleet.toml:3");
    assert_eq!(
        merged.problem("limits[0].burst", "above calls").to_string(),
        "preset restb:2: providers.restb.limits[0].burst: above calls"
    );
}

#[test]
fn merging_joins_tables_and_replaces_everything_else() {
    let base = Document::parse("base", "list = [1, 2]\n[t]\na = 1\nb = 2\n[t.deep]\nx = 1").unwrap();
    let over = Document::parse("over", "list = [3]\n[t]\nb = 3\n[t.deep]\ny = 2").unwrap();
    let merged = over.merged_over(base).to_value();
    assert_eq!(merged, json!({"list": [3], "t": {"a": 1, "b": 3, "deep": {"x": 1, "y": 2}}}));
}

#[test]
fn a_value_is_set_where_it_can_be_and_refused_where_not() {
    let mut document = Document::parse("f", "a = 1\nlist = [1]").unwrap();
    document.set("new.table.x", json!(true), "--set").unwrap();
    assert_eq!(document.get("new.table.x"), Some(json!(true)));
    for path in ["a.b", "list[4]", "list.x", "..", "a..b", "a[", ""] {
        let refused = document.clone().set(path, json!(1), "--set");
        assert!(refused.is_err(), "{path}");
    }
}

#[test]
fn no_value_of_a_secret_is_shown() {
    #[derive(Debug, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code)]
    struct Login {
        api_key: u32,
        url: u32,
    }
    let document = Document::parse("f", "api_key = 'hunter2'\nurl = 'amqp://u:hunter2@h'").unwrap();
    let problems = document.read::<Login>().unwrap_err().to_string();
    assert_eq!(problems.lines().count(), 2);
    assert!(!problems.contains("hunter2"), "{problems}");
}

#[test]
fn secrets_are_known_by_their_names() {
    for name in ["key", "client_key", "API-KEY", "password", "x_secret", "token"] {
        assert!(is_secret(name), "{name}");
    }
    for name in ["key_env", "client_key_file", "monkey", "keys_per_call", "url"] {
        assert!(!is_secret(name), "{name}");
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_text_crashes_the_reader(text in "[a-c\\[\\]{}=.\"'\\n 0-9_#,-]{0,80}") {
            if let Ok(document) = Document::parse("f", &text) {
                let _ = document.read::<Provider>();
                for leaf in document.leaves() {
                    prop_assert_eq!(document.get(&leaf.field), Some(leaf.value));
                }
            }
        }

        /// Whichever lines are wrong, exactly those are named.
        #[test]
        fn exactly_the_wrong_lines_are_named(wrong in proptest::collection::vec(any::<bool>(), 1..20)) {
            let mut text = "endpoint = 'e'\n".to_owned();
            for (index, wrong) in wrong.iter().enumerate() {
                let value = if *wrong { "1" } else { "'q'" };
                text.push_str(&format!("models.m{index}.query = {value}\n"));
            }
            let named: Vec<usize> = match Document::parse("f", &text).unwrap().read::<Provider>() {
                Ok(_) => Vec::new(),
                Err(problems) => problems.iter().filter_map(Problem::line).collect(),
            };
            let expected: Vec<usize> = wrong.iter().enumerate().filter(|(_, wrong)| **wrong).map(|(index, _)| index + 2).collect();
            prop_assert_eq!(named, expected);
        }
    }
}
