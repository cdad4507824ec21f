//! A settings file with every setting, its meaning and its default, from the schema.

use serde_json::Value;

use super::fields::{Field, Section, sections};

const HEAD: &str = "\
# Every setting of pixfleet, with its default. A line that begins with `#` and a name shows the default: take the
# `#` away to change it. The environment (PIXFLEET_SECTION_KEY) and --set section.key=value win over this file.
# Passwords and keys do not belong here: give them in the environment, or name a file that holds them.
";

const PROVIDERS: &str = "\
#[providers.restb]
#preset = \"restb\"
#auth.key_env = \"RESTB_CLIENT_KEY\"
#limits = [{ name = \"rate\", calls = 4, per_ms = 1000 }]
";

/// The file.
pub(super) fn example() -> String {
    sections().iter().fold(HEAD.to_owned(), |text, section| text + "\n" + &of_section(section))
}

fn of_section(section: &Section) -> String {
    let mut text = comment(&section.about);
    if section.fields.is_empty() {
        return text + PROVIDERS;
    }
    text += &format!("[{}]\n", section.name);
    section.fields.iter().fold(text, |text, field| text + &of_field(field))
}

fn of_field(field: &Field) -> String {
    let comment = comment(&field.about);
    match &field.default {
        Some(default) => format!("{comment}#{} = {}\n", field.key(), toml(default)),
        None => format!("{comment}# {} is not set.\n", field.key()),
    }
}

fn comment(text: &str) -> String {
    const WIDTH: usize = 110;
    let mut lines = String::new();
    for paragraph in text.split("\n\n") {
        let mut line = "#".to_owned();
        for word in paragraph.split_whitespace() {
            if line.len() + 1 + word.len() > WIDTH {
                lines += &format!("{line}\n");
                line = "#".to_owned();
            }
            line += &format!(" {word}");
        }
        lines += &format!("{line}\n");
    }
    lines
}

/// `value` as TOML writes it in one line.
pub(super) fn toml(value: &Value) -> String {
    match value {
        Value::Array(values) => format!("[{}]", values.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let entries: Vec<String> =
                map.iter().map(|(key, value)| format!("{} = {}", key_text(key), toml(value))).collect();
            format!("{{ {} }}", entries.join(", "))
        }
        // Basic strings of TOML know every escape that JSON writes, but for the bare DEL.
        scalar => scalar.to_string().replace('\u{7f}', "\\u007f"),
    }
}

fn key_text(key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if bare { key.to_owned() } else { Value::from(key).to_string() }
}

#[cfg(test)]
mod tests {
    use pixfleet_shared::settings::Document;

    use super::*;
    use crate::config::Config;

    #[test]
    fn the_example_is_read_as_it_stands() {
        let config = Document::parse("example.toml", &example()).unwrap().read::<Config>().unwrap();
        assert_eq!(config, Config::default());
    }

    #[test]
    fn every_shown_default_is_read_as_the_default_when_the_sign_is_taken_away() {
        let is_setting = |line: &str| line.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[');
        let text: Vec<String> = example()
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| is_setting(rest)).unwrap_or(line).to_owned())
            .collect();
        let mut config = Document::parse("example.toml", &text.join("\n")).unwrap().read::<Config>().unwrap();
        assert_eq!(config.providers.remove("restb").map(|table| table.len()), Some(3));
        assert_eq!(config, Config::default());
        assert!(text.iter().any(|line| line == "lanes = 4"), "{text:?}");
    }
}
