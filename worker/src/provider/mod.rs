//! Providers are data: an image API described in TOML, compiled into requests and readings.
//!
//! `definition.rs` is what a file may say; `compile.rs` checks all of it at once and makes a [`Provider`];
//! `catalog.rs` finds the file or the preset. `request.rs` makes a call's bytes, `answer.rs` reads what came back, `keeping.rs`
//! says under which keys answers are kept,
//! and `hold_off.rs` how long a throttled answer asks to pause. `docs/providers.md` is the users' guide.

pub mod definition;

mod answer;
mod catalog;
mod compile;
mod hold_off;
mod jq;
mod keeping;
mod request;
mod secret;
mod template;

use std::fmt;

use jiff::Timestamp;
use pixfleet_shared::{
    id::Id,
    limiter::{Stack, Weight},
    result::Answer,
    settings::nearest,
};
use reqwest::header::HeaderMap;
use serde_json::Value;
use url::Url;

pub(crate) use answer::unreadable;
pub use catalog::{Catalog, Source, preset_names};
pub use definition::{Ambiguous, Cost, Count, Definition};
pub(crate) use keeping::Likeness;
pub use keeping::{ByUrl, Cache};
pub use request::{PreparedRequest, Unaskable};

use crate::{
    classify::{Class, Failed, Pause},
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
    /// At least one.
    accounts: Vec<Account>,
    /// The key was not looked for: this provider can be planned with, and not asked.
    keyless: bool,
    asks: Vec<request::Ask>,
    mapping: answer::Mapping,
    rules: Vec<Rule>,
    error_message: Jq,
    pause_in_body: Option<Jq>,
    wanted: Wanted,
    /// What kept answers are known by, beside their pictures.
    shape: Id,
}

/// One account: where its calls go, who pays, and what they must pass.
struct Account {
    endpoint: Url,
    key: Option<Secret>,
    stack: Stack,
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

    /// The limit stacks that a call may pass, one for each account, the first account's first: any one of them will do.
    pub fn stacks(&self) -> impl Iterator<Item = &Stack> {
        self.accounts.iter().map(|account| &account.stack)
    }

    /// The first account's limit stack.
    pub fn limits(&self) -> Stack {
        self.accounts[0].stack.clone()
    }

    /// Calls of this weight per second that the rates of all accounts allow together; none where one has no rate.
    pub fn rate_per_s(&self, weight: Weight) -> Option<f64> {
        self.stacks().map(|stack| stack.rate_per_s(weight)).sum()
    }

    /// What a call weighs that asks `models` models and has a body of `bytes` bytes.
    pub fn weight(&self, models: usize, bytes: usize) -> Weight {
        Weight {
            models: u32::try_from(models).unwrap_or(u32::MAX),
            bytes: bytes as u64,
            price_micros: (self.tariff().of_call(models) * 1e6).round() as u64,
        }
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
    pub(crate) fn hold_off(&self, headers: &HeaderMap, body: Option<&Value>, now: Timestamp) -> Pause {
        hold_off::pause(&self.definition.retry_after, self.pause_in_body.as_ref(), headers, body, now)
    }

    /// Someone else's words as they may be shown: without the key, on one line, and not too long.
    pub(crate) fn bounded(&self, text: &str) -> String {
        let keys = self.accounts.iter().filter_map(|account| account.key.as_ref());
        let text = keys.fold(text.to_owned(), |text, key| key.scrub(&text));
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
