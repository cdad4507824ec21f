//! Where descriptions come from: the presets of this build, a file, and the settings over them.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use pixfleet_shared::{
    limiter::Stack,
    settings::{Document, Problems},
};
use serde_json::Value;

use super::{Provider, compile};

const PRESETS: [(&str, &str); 5] = [
    ("generic", include_str!("../presets/generic.toml")),
    ("openai", include_str!("../presets/openai.toml")),
    ("rapidocr", include_str!("../presets/rapidocr.toml")),
    ("restb", include_str!("../presets/restb.toml")),
    ("tiliter", include_str!("../presets/tiliter.toml")),
];

/// Largest description that is read from a file, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The presets of this build.
pub fn preset_names() -> impl Iterator<Item = &'static str> + Clone {
    PRESETS.iter().map(|(name, _)| *name)
}

/// Every provider of the settings, compiled.
#[derive(Clone, Debug, Default)]
pub struct Catalog(BTreeMap<String, Arc<Provider>>);

/// Where keys and files come from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Looks up an environment variable.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// The folder that a relative `file` is in: that of the settings file.
    pub folder: &'a Path,
}

impl<'a> Source<'a> {
    /// The environment of this process, and the folder of the settings file.
    pub fn process(folder: &'a Path) -> Self {
        Self { env: &|name| std::env::var(name).ok(), folder }
    }
}

impl Catalog {
    /// Compiles every table below `providers` of the settings.
    ///
    /// # Errors
    /// Everything that is wrong with any of them.
    pub fn load(settings: &Document, source: Source<'_>) -> Result<Self, Problems> {
        Self::load_with(settings, source.folder, Some(source.env))
    }

    /// As [`load`](Self::load), but looks for no keys: for roles that plan calls and make none, and so run where
    /// the keys are not. Such a provider refuses to be asked.
    ///
    /// # Errors
    /// Everything that is wrong with any of them.
    pub fn load_without_keys(settings: &Document, folder: &Path) -> Result<Self, Problems> {
        Self::load_with(settings, folder, None)
    }

    fn load_with(settings: &Document, folder: &Path, env: compile::Env<'_>) -> Result<Self, Problems> {
        let mut found = Problems::default();
        let mut providers = BTreeMap::new();
        let tables = settings.subtable("providers").unwrap_or_else(|| Document::empty("settings"));
        for name in tables.keys() {
            let Some(own) = settings.subtable(&format!("providers.\"{name}\"")) else {
                continue;
            };
            match load(name, &own, folder, env) {
                Ok(provider) => {
                    providers.insert(name.to_owned(), Arc::new(provider));
                }
                Err(problems) => found.extend(problems),
            }
        }
        for (one, other, stack) in differing(&providers) {
            let why = format!(
                "stack `{stack}` has other limits than at provider `{other}`: whoever shares a stack gives the same limits"
            );
            found.push(tables.problem(&format!("\"{one}\".stack"), why));
        }
        found.or(Self(providers))
    }

    /// The provider of this name.
    ///
    /// # Errors
    /// Which one was probably meant, and how to add one.
    pub fn get(&self, name: &str) -> Result<&Arc<Provider>, String> {
        self.0.get(name).ok_or_else(|| {
            let known = self.0.keys().map(String::as_str);
            let presets: Vec<&str> = preset_names().collect();
            let hint = if self.0.is_empty() {
                "the settings have none".to_owned()
            } else {
                compile::meant(name, known)
            };
            format!(
                "there is no provider `{name}`: {hint} (add `[providers.{name}]`; presets: {})",
                presets.join(", ")
            )
        })
    }

    /// Every provider, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Provider>> {
        self.0.values()
    }
}

/// Two providers that give one stack different limits, and the stack.
fn differing(providers: &BTreeMap<String, Arc<Provider>>) -> Vec<(&str, &str, &str)> {
    let mut known: BTreeMap<&str, (&str, &Stack)> = BTreeMap::new();
    let mut found = Vec::new();
    for (name, provider) in providers {
        for stack in provider.stacks() {
            match known.get(stack.name.as_str()) {
                Some((other, first)) if **first != *stack => {
                    found.push((name.as_str(), *other, stack.name.as_str()));
                }
                Some(_) => {}
                None => drop(known.insert(&stack.name, (name, stack))),
            }
        }
    }
    found
}

impl Provider {
    /// Compiles the provider `name` from its table of the settings, over its preset or file.
    ///
    /// # Errors
    /// Everything that is wrong: a field, an expression, a missing key, a missing file.
    pub fn load(name: &str, own: &Document, source: Source<'_>) -> Result<Self, Problems> {
        load(name, own, source.folder, Some(source.env))
    }
}

fn load(name: &str, own: &Document, folder: &Path, env: compile::Env<'_>) -> Result<Provider, Problems> {
    let document = match base(name, own, folder)? {
        Some(base) => own.clone().merged_over(base),
        None => own.clone(),
    };
    compile::compile(name, &document, env)
}

/// What the provider's own table is laid over.
fn base(name: &str, own: &Document, folder: &Path) -> Result<Option<Document>, Problems> {
    let text = |field: &str| own.get(field).as_ref().and_then(Value::as_str).map(str::to_owned);
    match (text("preset"), text("file")) {
        (Some(_), Some(_)) => Err(own.problem("file", "give `preset` or `file`, not both").into()),
        (Some(preset), None) => match parsed_preset(&preset) {
            Some(document) => document.map(Some),
            None => {
                let meant = compile::meant(&preset, preset_names());
                Err(own.problem("preset", format!("there is no preset `{preset}`: {meant}")).into())
            }
        },
        (None, Some(file)) => {
            let path = folder.join(&file);
            let read = read(&path).map_err(|why| own.problem("file", why))?;
            Document::parse(&path.display().to_string(), &read).map(Some)
        }
        (None, None) => parsed_preset(name).transpose(),
    }
}

fn parsed_preset(name: &str) -> Option<Result<Document, Problems>> {
    let (name, text) = PRESETS.iter().find(|(known, _)| *known == name)?;
    Some(Document::parse(&format!("preset {name}"), text))
}

fn read(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let size = std::fs::metadata(path).map_err(|error| format!("`{shown}` can't be read: {error}"))?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("`{shown}` has {size} bytes: a description has at most {MAX_FILE_BYTES}"));
    }
    std::fs::read_to_string(path).map_err(|error| format!("`{shown}` can't be read: {error}"))
}
