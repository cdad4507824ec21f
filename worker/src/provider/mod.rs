//! Providers are data: an image API described in TOML, compiled into requests and readings.
//!
//! `definition.rs` is what a file may say; `compile.rs` checks all of it at once and makes a [`Provider`];
//! `catalog.rs` finds the file or the preset. `request.rs` makes a call's bytes, `answer.rs` reads what came back,
//! and `hold_off.rs` how long a throttled answer asks to pause. `docs/providers.md` is the users' guide.

pub mod definition;

mod answer;
mod catalog;
mod compile;
mod hold_off;
mod jq;
mod request;
mod secret;
mod template;

use std::{fmt, time::Duration};

use jiff::Timestamp;
use pixfleet_shared::{
    limiter::{Limit, Stack},
    result::Answer,
    settings::nearest,
};
use reqwest::header::HeaderMap;
use serde_json::Value;
use url::Url;

pub(crate) use answer::unreadable;
pub use catalog::{Catalog, Source, preset_names};
pub use definition::{Ambiguous, Cost, Count, Definition};
pub use request::{PreparedRequest, Unaskable};

use crate::{
    classify::{Class, Failed},
    client::Transport,
    image::Wanted,
};
use jq::Jq;
use secret::Secret;

/// Most characters of a message that a provider's words become.
const MAX_MESSAGE_CHARS: usize = 300;

/// A provider, checked and compiled: cheap to use for every call, and free of surprises at run time.
pub struct Provider {
    name: String,
    definition: Definition,
    endpoint: Url,
    key: Option<Secret>,
    /// The key was not looked for: this provider can be planned with, and not asked.
    keyless: bool,
    asks: Vec<request::Ask>,
    mapping: answer::Mapping,
    rules: Vec<Rule>,
    error_message: Jq,
    pause_in_body: Option<Jq>,
    wanted: Wanted,
}

/// A compiled [`definition::ErrorRule`].
struct Rule {
    status: Vec<u16>,
    when: Option<Jq>,
    class: Class,
}

impl Provider {
    /// The name under which jobs ask for it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it was compiled from.
    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    /// Most models that one call may ask.
    pub fn models_per_call(&self) -> usize {
        self.definition.models_per_call as usize
    }

    /// What a call costs.
    pub fn tariff(&self) -> &Cost {
        &self.definition.cost
    }

    /// The limits that every call must pass, under the provider's name for the whole fleet.
    pub fn limits(&self) -> Stack {
        let limits: Vec<Limit> = self.definition.limits.clone();
        Stack { name: self.name.clone(), limits }
    }

    /// What becomes of a call that left, and whose answer was never seen.
    pub fn ambiguous(&self) -> Ambiguous {
        self.definition.ambiguous
    }

    /// Times, sizes and connections of the calls: what its [`Client`](crate::client::Client) is made of.
    pub fn transport(&self) -> &Transport {
        &self.definition.http
    }

    /// How it wants its pictures: what [`Images::prepare`](crate::image::Images::prepare) is told.
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Whether the provider knows `model`, as far as its description says.
    ///
    /// # Errors
    /// Why not, with the name that was probably meant.
    pub fn accepts(&self, model: &str) -> Result<(), String> {
        let known = &self.definition.models;
        if model.is_empty() {
            return Err(format!("provider `{}`: a model's name is empty", self.name));
        }
        if known.is_empty() || known.iter().any(|pattern| answer::matches(pattern, model)) {
            return Ok(());
        }
        let meant = match nearest(model, known.iter().map(String::as_str)) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("it knows {}", known.join(", ")),
        };
        Err(format!("provider `{}` does not know the model `{model}`: {meant}", self.name))
    }

    /// What a successful body says of `model`.
    ///
    /// # Errors
    /// [`Failed`]: the body's own word that this model failed, or that it can't be read.
    pub(crate) fn read(&self, body: &Value, model: &str) -> Result<Answer, Failed> {
        self.mapping.read(body, model)
    }

    /// What the provider's own rules say of a reply; the first that fits.
    pub(crate) fn error_class(&self, status: u16, body: Option<&Value>) -> Option<Class> {
        let input = body.map(jq::input);
        let holds = |when: &Jq| {
            let said = input.as_ref().and_then(|input| when.first(input, "").ok().flatten());
            said.is_some_and(|said| said != Value::Bool(false))
        };
        let fits = |rule: &&Rule| {
            (rule.status.is_empty() || rule.status.contains(&status)) && rule.when.as_ref().is_none_or(holds)
        };
        self.rules.iter().find(fits).map(|rule| rule.class)
    }

    /// The provider's own words in a failed body.
    pub(crate) fn error_message(&self, body: &Value) -> Option<String> {
        let said = self.error_message.first(&jq::input(body), "").ok()??;
        Some(said.as_str().map_or_else(|| said.to_string(), str::to_owned))
    }

    /// Whether the headers say when to come back.
    pub(crate) fn says_when(&self, headers: &HeaderMap, now: Timestamp) -> bool {
        hold_off::is_said(headers, now)
    }

    /// How long a throttled reply asks the fleet to pause.
    pub(crate) fn hold_off(&self, headers: &HeaderMap, body: Option<&Value>, now: Timestamp) -> Duration {
        hold_off::pause(&self.definition.retry_after, self.pause_in_body.as_ref(), headers, body, now)
    }

    /// Someone else's words as they may be shown: without the key, on one line, and not too long.
    pub(crate) fn bounded(&self, text: &str) -> String {
        let text = self.key.as_ref().map_or_else(|| text.to_owned(), |key| key.scrub(text));
        let words: Vec<&str> =
            text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
        words.join(" ").chars().take(MAX_MESSAGE_CHARS).collect()
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
