//! The `[rabbitmq]` settings.

use std::{fmt, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How to reach RabbitMQ, and how patient to be with it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The broker: `amqp://host:port/vhost` or `amqps://…`. Default: `amqp://127.0.0.1:5672/%2f`. A URL with a
    /// password belongs in the environment or in `url_file`.
    pub url: String,
    /// A file that holds the URL, for one with a password. It wins over `url`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_file: Option<String>,
    /// Queues of each priority. A batch keeps to one, so that a big batch can't starve a small one. 1 to 16, the
    /// same for every process. Default: 4.
    #[schemars(range(min = 1, max = 16))]
    pub lanes: u8,
    /// Heartbeat in seconds: a dead peer is noticed within two. Default: 10.
    #[schemars(range(min = 5, max = 300))]
    pub heartbeat_s: u16,
    /// Time for TCP, TLS and AMQP handshakes together, in milliseconds. Default: 10000.
    #[schemars(range(min = 100, max = 120_000))]
    pub connect_timeout_ms: u64,
    /// A publish without its confirm for this long means a dead connection, in milliseconds. Default: 30000.
    #[schemars(range(min = 1_000, max = 600_000))]
    pub confirm_timeout_ms: u64,
    /// How long a finished job's results wait for a broker that is away, in milliseconds. Then the job is
    /// delivered again. Default: 600000.
    #[schemars(range(min = 1_000, max = 3_600_000))]
    pub publish_patience_ms: u64,
    /// Publishes that may wait for their confirms at once. Default: 1000.
    #[schemars(range(min = 1, max = 20_000))]
    pub max_unconfirmed: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: "amqp://127.0.0.1:5672/%2f".to_owned(),
            url_file: None,
            lanes: 4,
            heartbeat_s: 10,
            connect_timeout_ms: 10_000,
            confirm_timeout_ms: 30_000,
            publish_patience_ms: 600_000,
            max_unconfirmed: 1_000,
        }
    }
}

/// The URL may hold a password.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("rabbit::Config").field("endpoint", &self.endpoint()).finish_non_exhaustive()
    }
}

impl Config {
    /// The broker's address as it may be shown: no user, no password, no query.
    pub fn endpoint(&self) -> String {
        self.resolved_url().map_or_else(|why| why, |url| shown(&url))
    }

    /// The URL to connect to, from `url_file` where one is given.
    ///
    /// # Errors
    /// When the file can't be read: the text names it.
    pub(super) fn resolved_url(&self) -> Result<String, String> {
        match &self.url_file {
            None => Ok(self.url.clone()),
            Some(path) => std::fs::read_to_string(path)
                .map(|text| text.trim().to_owned())
                .map_err(|error| format!("rabbitmq.url_file `{path}` can't be read: {error}")),
        }
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(super) fn confirm_timeout(&self) -> Duration {
        Duration::from_millis(self.confirm_timeout_ms)
    }

    pub(super) fn publish_patience(&self) -> Duration {
        Duration::from_millis(self.publish_patience_ms)
    }
}

fn shown(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("amqp", url));
    let rest = rest.split('?').next().unwrap_or_default();
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_endpoint_has_no_password() {
        let config =
            Config { url: "amqps://me:p@ss@mq.example.com:5671/v?heartbeat=1".into(), ..Config::default() };
        assert_eq!(config.endpoint(), "amqps://mq.example.com:5671/v");
        assert!(!format!("{config:?}").contains("p@ss"));
    }

    #[test]
    fn the_url_is_read_from_its_file_and_a_missing_file_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "amqp://u:p@10.1.2.3:7000/v\n").unwrap();
        let config = Config { url_file: Some(file.path().display().to_string()), ..Config::default() };
        assert_eq!(config.endpoint(), "amqp://10.1.2.3:7000/v");
        let missing = Config { url_file: Some("/nowhere/url".into()), ..Config::default() };
        assert!(missing.resolved_url().unwrap_err().contains("/nowhere/url"));
    }
}
