//! An image API as data: what a preset, or a file of the user's own, says of it.
//!
//! The types here are read from TOML as they stand; `compile.rs` turns a definition into a
//! [`Provider`](super::Provider) and reports what is wrong with it. `docs/providers.md` is the guide.

use std::{collections::BTreeMap, num::NonZeroU32};

use pixfleet_shared::limiter::Limit;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::keeping::Cache;
use crate::{breaker, classify::Class, client::Transport, image::Preparation, retry};

/// One image API: where it is, how it is asked, and what its answers mean.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// The preset that this description is laid over: its tables are merged, anything else is replaced. Default:
    /// the preset of the provider's own name, if there is one and no `file` is given.
    #[serde(default)]
    pub preset: Option<String>,
    /// The file that this description is laid over, beside the settings' file. Default: none.
    #[serde(default)]
    pub file: Option<String>,
    /// One line for people. Default: none.
    #[serde(default)]
    pub about: String,
    /// The API's base URL, `http` or `https`; every path is below it. No default.
    pub endpoint: String,
    /// How a call proves whose it is. Default: not at all.
    #[serde(default)]
    pub auth: Auth,
    /// How the API is asked, one entry a way of passing the picture. The first that can carry a job's picture as
    /// it is serves the job. At least one.
    pub request: Vec<Request>,
    /// When a picture that has a URL is fetched by the worker and sent as bytes. Default: `when_needed`.
    #[serde(default)]
    pub fetch: Fetch,
    /// How bytes are made ready before they are sent. Default: sent as they are.
    #[serde(default)]
    pub prepare: Preparation,
    /// Most calls that one worker has under way at this provider, 1 to 10000: for a server of your own, which has so
    /// many processors. It does not bind the fleet. Default: none, so `worker.concurrency` alone decides.
    #[serde(default)]
    #[schemars(range(min = 1, max = 10_000))]
    pub calls_at_once: Option<NonZeroU32>,
    /// Most models that one call may ask, 1 to 1000. Default: 1.
    #[serde(default = "one")]
    pub models_per_call: u32,
    /// The models that the API knows, so that a typing error is found before it is paid for; a final `*` stands
    /// for anything. Default: empty, which accepts every name.
    #[serde(default)]
    pub models: Vec<String>,
    /// Values of your own for `${option.NAME}`: texts, numbers, booleans, arrays or tables. Default: none.
    #[serde(default)]
    pub options: BTreeMap<String, Value>,
    /// What an answer says of a model.
    pub answer: Answer,
    /// What a failure means, the first entry that fits; before the table of statuses. Default: none.
    #[serde(default)]
    pub errors: Vec<ErrorRule>,
    /// A jq expression that finds the API's own words in a failed body. Default: the usual places
    /// (`.error.message`, `.error`, `.message`, `.detail`), else the body's first 300 characters.
    #[serde(default)]
    pub error_message: Option<String>,
    /// Where a throttled answer says when to come back.
    #[serde(default)]
    pub retry_after: RetryAfter,
    /// What a call costs. Default: nothing.
    #[serde(default)]
    pub cost: Cost,
    /// The limits that every call must pass together, for the whole fleet. Default: none, so calls leave at once.
    #[serde(default)]
    pub limits: Vec<Limit>,
    /// The name of its limit stack, in the whole fleet: providers that give the same one share its limits, and have to
    /// give the same. Default: the provider's name.
    #[serde(default)]
    pub stack: Option<String>,
    /// Calls a second that each worker may go on to make while the limiter can't be reached: its part of the limit by your
    /// own reckoning (the limit, divided by the most workers that there will be, less a fifth). Quotas are not counted
    /// meanwhile, and a job that is delivered twice may be paid for twice. Default: none, so nothing leaves.
    #[serde(default)]
    #[schemars(range(min = 0.001, max = 100_000.0))]
    pub safe_rate: Option<f64>,
    /// Several accounts, each with a limit stack of its own: a call goes by the one that is free first. Default: one, which
    /// is what `auth`, `endpoint` and `limits` say.
    #[serde(default)]
    pub accounts: Vec<Account>,
    /// What becomes of a call that left, and whose answer was never seen. Default: `resend_once`.
    #[serde(default)]
    pub ambiguous: Ambiguous,
    /// How failed calls are tried again, where it differs from `worker.retry`. Default: as there.
    #[serde(default)]
    pub retry: retry::Overrides,
    /// When the API counts as down, and for how long the fleet leaves it alone.
    #[serde(default)]
    pub breaker: breaker::Settings,
    /// For how long answers are kept, so that the same picture is not paid for twice. Default: none, so nothing is kept: an
    /// answer may change with the vendor's model, and some contracts forbid to keep it.
    #[serde(default)]
    pub cache: Option<Cache>,
    /// Times, sizes and connections of the calls.
    #[serde(default)]
    pub http: Transport,
}

/// How a call proves whose it is. The secret itself is never in a file of settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// Where the key goes. Default: `none`.
    pub kind: AuthKind,
    /// The query parameter (`query`) or the header (`header`) that carries the key. Default: none; needed there.
    pub name: String,
    /// What stands before the key in the header, a blank included: `"Token "`. Default: nothing.
    pub prefix: String,
    /// The environment variable that holds the key. Default: none.
    pub key_env: Option<String>,
    /// A file that holds the key; read once, white space at its end is dropped. Used where `key_env` is not set or
    /// its variable is empty. Default: none.
    pub key_file: Option<String>,
}

/// One of several accounts at a provider. What it leaves out is the provider's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// Its name, unique at the provider.
    pub name: String,
    /// Its base URL: the same API somewhere else. Default: the provider's.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The environment variable that holds its key. Default: the provider's `auth.key_env`.
    #[serde(default)]
    pub key_env: Option<String>,
    /// A file that holds its key. Default: the provider's `auth.key_file`.
    #[serde(default)]
    pub key_file: Option<String>,
    /// The name of its limit stack. Default: `<provider>.<account>`.
    #[serde(default)]
    pub stack: Option<String>,
    /// Its limits. Default: those of the provider, for itself.
    #[serde(default)]
    pub limits: Option<Vec<Limit>>,
}

/// Where the key goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AuthKind {
    /// There is no key.
    #[default]
    None,
    /// Into the query, whatever the method.
    Query,
    /// Into a header.
    Header,
    /// Into `Authorization: Bearer`. The key may be missing: nothing is sent then, as self-hosted servers like it.
    Bearer,
}

/// One way of asking. Texts may hold placeholders (`${image}`, `${model}`, ...), see `docs/providers.md`.
///
/// At most one of `json`, `form`, `multipart` and `raw` is given; with none the request has no body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The forms that `${image}` can take here, the best first. At least one.
    pub image: Vec<ImageForm>,
    /// Default: `POST`.
    #[serde(default)]
    pub method: Method,
    /// The path below the endpoint. Default: `/`.
    #[serde(default = "slash")]
    pub path: String,
    /// The path for a call of several models, where it is another. Default: `path`.
    #[serde(default)]
    pub path_many: Option<String>,
    /// Query parameters. Default: none.
    #[serde(default)]
    pub query: BTreeMap<String, String>,
    /// Further headers. Default: none.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// A JSON document as text. Placeholders stand inside its strings, and are replaced after it is parsed, so
    /// nothing that they hold can change its shape. Default: none.
    #[serde(default)]
    pub json: Option<String>,
    /// Fields of a URL-encoded form. Default: none.
    #[serde(default)]
    pub form: BTreeMap<String, String>,
    /// Fields of a multipart form; `${image}` alone, as `bytes`, is a file. Default: none.
    #[serde(default)]
    pub multipart: BTreeMap<String, String>,
    /// Whether the picture's bytes are the body, under their own content type. Default: no.
    #[serde(default)]
    pub raw: bool,
}

/// A form that the picture takes in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageForm {
    /// Its URL: the API fetches it.
    Url,
    /// Standard base64, padded.
    Base64,
    /// URL-safe base64, padded.
    Base64url,
    /// `data:<content type>;base64,...`
    DataUrl,
    /// The bytes themselves: as a file of `multipart`, or as the `raw` body.
    Bytes,
}

/// An HTTP method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// Without a body.
    Get,
    /// The default.
    #[default]
    Post,
    /// For the few that want it.
    Put,
}

/// When the worker fetches a picture that has a URL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fetch {
    /// When no request takes a URL.
    #[default]
    WhenNeeded,
    /// Always: only the workers can reach the pictures, or they must be prepared first.
    Always,
    /// Never: where no request takes a URL, such a job is rejected.
    Never,
}

/// What an answer says, as jq expressions. `$model` is the model that is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Answer {
    /// The model's part of the body; what the other expressions see as `.`. Default: `.`, all of it.
    pub part: Option<String>,
    /// The labels: objects of `label` and perhaps `confidence`, or plain texts; as one array or one by one. An
    /// empty array says that nothing was seen, no output that the model has no labels. Default: none.
    pub labels: Option<String>,
    /// The value: anything but null. Default: none.
    pub value: Option<String>,
    /// Whether this model failed where others of the call did not: a text rejects the image at this model, an
    /// object of `class` (`rejected` or `transient`) and `message` says more, null says that all is well.
    /// Default: none.
    pub error: Option<String>,
    /// Whether results carry the model's part of the body untouched. Default: no.
    pub keep_raw: bool,
    /// Other expressions for some models, by name; a final `*` stands for anything, the longest match counts, and
    /// what it leaves out is taken from above. Default: none.
    pub models: BTreeMap<String, ModelAnswer>,
}

/// What one model's answer says, where it differs from the others'.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelAnswer {
    /// As in `answer`.
    pub part: Option<String>,
    /// As in `answer`.
    pub labels: Option<String>,
    /// As in `answer`.
    pub value: Option<String>,
    /// As in `answer`.
    pub error: Option<String>,
}

/// What a failure means. An entry fits when its status and its condition do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorRule {
    /// The statuses, 100 to 599. Default: empty, which is any, 200 included.
    #[serde(default)]
    pub status: Vec<u16>,
    /// A jq expression on the body that is true; a body that is no JSON never fits. Default: none, which fits.
    #[serde(default)]
    pub when: Option<String>,
    /// What it means: `throttled`, `transient`, `rejected` or `unauthorized`.
    pub class: Class,
}

/// Where a throttled answer says when to come back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetryAfter {
    /// The headers to look at, the first readable one counts. Seconds, a date, an epoch, or `1m30s`; milliseconds
    /// where the header's name ends in `-ms`. Default: `retry-after-ms`, `retry-after`, `ratelimit`,
    /// `ratelimit-reset`, `x-ratelimit-reset`.
    pub headers: Vec<String>,
    /// A jq expression on the body that yields seconds; looked at before the headers. Default: none.
    pub body: Option<String>,
    /// The longest pause where the answer says nothing readable, in milliseconds: the first is the time between two calls of
    /// the tightest rate, and each further one in a row twice as long. Default: 1000.
    pub default_ms: u64,
    /// The longest pause that is believed, in milliseconds. Default: 3600000, an hour.
    pub max_ms: u64,
}

impl Default for RetryAfter {
    fn default() -> Self {
        let headers = ["retry-after-ms", "retry-after", "ratelimit", "ratelimit-reset", "x-ratelimit-reset"];
        Self { headers: headers.map(str::to_owned).to_vec(), body: None, default_ms: 1000, max_ms: 3_600_000 }
    }
}

/// What a call costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cost {
    /// The price of one unit, in `currency`. Default: 0.
    pub price: f64,
    /// What is a unit. Default: `per_call`.
    pub count: Count,
    /// The currency, or a word such as `credits`. Default: `USD`.
    pub currency: String,
}

/// What a provider charges for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Count {
    /// Each call, however many models it asks.
    #[default]
    PerCall,
    /// Each model of a call.
    PerModel,
}

impl Default for Cost {
    fn default() -> Self {
        Self { price: 0.0, count: Count::default(), currency: "USD".to_owned() }
    }
}

impl Cost {
    /// What a call of `models` models costs, in `currency`.
    pub fn of_call(&self, models: usize) -> f64 {
        match self.count {
            Count::PerCall => self.price,
            Count::PerModel => self.price * models as f64,
        }
    }
}

/// What becomes of a call that left, and whose answer was never seen: it may have been paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ambiguous {
    /// It is sent again like any failed attempt: right where calls cost nothing.
    Resend,
    /// It is sent again once, and parked if that answer is not seen either.
    #[default]
    ResendOnce,
    /// It is kept as a dead letter for a person to look at: right where a call is dear.
    Park,
}

fn one() -> u32 {
    1
}

fn slash() -> String {
    "/".to_owned()
}
