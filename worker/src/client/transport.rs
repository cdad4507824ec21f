//! The settings of a provider's calls.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Times, sizes and connections of a provider's calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Transport {
    /// Longest time to connect, TLS and name included, in milliseconds. Default: 3000.
    pub connect_ms: u64,
    /// Longest silence while an answer is awaited or read, in milliseconds. Default: 30000.
    pub read_ms: u64,
    /// Longest time of a whole call, in milliseconds; above `connect_ms`. Default: 60000.
    pub total_ms: u64,
    /// Largest answer that is read, in bytes; a larger one is not kept. Default: 2097152 (2 MiB).
    pub max_response_bytes: usize,
    /// A proxy for the calls: an `http`, `https` URL. The environment's proxies are not used. Default: none.
    pub proxy: Option<String>,
    /// Whether only HTTP/1.1 is spoken. HTTP/2 puts all calls on one connection, whose packet losses delay all of
    /// them, and whose number of streams the API limits unseen. Default: no.
    pub http1_only: bool,
    /// How long an unused connection is kept, in seconds. Below what the API keeps it for, else a call may meet a
    /// connection that is just being closed, and nobody knows whether it arrived. Default: 30.
    pub idle_s: u64,
    /// After how long the client and its connections are replaced, in seconds, so that changes in DNS are seen.
    /// Default: 300.
    pub max_age_s: u64,
}

impl Default for Transport {
    fn default() -> Self {
        Self {
            connect_ms: 3000,
            read_ms: 30_000,
            total_ms: 60_000,
            max_response_bytes: 2 * 1024 * 1024,
            proxy: None,
            http1_only: false,
            idle_s: 30,
            max_age_s: 300,
        }
    }
}

impl Transport {
    /// What is wrong with the numbers: the field, and what to give instead.
    pub(crate) fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let mut demand = |holds: bool, field, why: &str| {
            if !holds {
                faults.push((field, why.to_owned()));
            }
        };
        demand((1..=600_000).contains(&self.connect_ms), "http.connect_ms", "give 1 to 600000");
        demand((1..=3_600_000).contains(&self.read_ms), "http.read_ms", "give 1 to 3600000");
        // Below the time to connect, a call that never left could not be told from one that did.
        demand(
            self.total_ms > self.connect_ms && self.total_ms <= 3_600_000,
            "http.total_ms",
            "give more than http.connect_ms, and at most 3600000",
        );
        let sizes = 1024..=256 * 1024 * 1024;
        demand(sizes.contains(&self.max_response_bytes), "http.max_response_bytes", "give 1024 to 268435456");
        demand((1..=3600).contains(&self.idle_s), "http.idle_s", "give 1 to 3600");
        demand(self.max_age_s >= 1, "http.max_age_s", "give 1 or more");
        let proxy = self.proxy.as_deref().is_none_or(is_proxy);
        demand(proxy, "http.proxy", "give an http or https URL without a name and a password");
        faults
    }
}

/// Whether `text` can be a proxy. Credentials are secrets, and no secret is in a file of settings.
fn is_proxy(text: &str) -> bool {
    let plain = |url: url::Url| url.username().is_empty() && url.password().is_none();
    text.parse().is_ok_and(plain) && reqwest::Proxy::all(text).is_ok()
}
