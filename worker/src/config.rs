//! The `[worker]` settings.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{image, retry};

/// How one worker works.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The worker's name in results and logs. Default: empty, which stands for `<host>-<process id>`.
    pub name: String,
    /// Jobs in hand at once: the most calls that can be in flight. Behind a limit a worker takes fewer, as many as
    /// rate and latency need. 1 to 10000. Default: 64.
    #[schemars(range(min = 1, max = 10_000))]
    pub concurrency: usize,
    /// Time to finish after SIGTERM, in milliseconds. What is left then is delivered to others. Default: 30000.
    #[schemars(range(min = 0, max = 3_600_000))]
    pub drain_ms: u64,
    /// How long a provider's calls pause after it refused the account, in milliseconds, 1 to 3600000; then one looks
    /// whether that was mended. `run` ends at the first refusal instead, and pauses for a second. Default: 60000.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub refused_ms: u64,
    /// A job is parked once so many workers died while they had it in hand, 1 to 20. Default: 3.
    #[schemars(range(min = 1, max = 20))]
    pub poison_after: u32,
    /// How failed calls are tried again.
    pub retry: retry::Policy,
    /// How pictures are fetched.
    pub fetch: image::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: String::new(),
            concurrency: 64,
            drain_ms: 30_000,
            refused_ms: 60_000,
            poison_after: 3,
            retry: retry::Policy::default(),
            fetch: image::Config::default(),
        }
    }
}

impl Config {
    /// The worker's name, made up where none is given.
    pub(crate) fn resolved_name(&self) -> String {
        if !self.name.is_empty() {
            return self.name.clone();
        }
        let host = std::env::var("HOSTNAME").ok().filter(|host| !host.is_empty());
        format!("{}-{}", host.as_deref().unwrap_or("worker"), std::process::id())
    }
}
