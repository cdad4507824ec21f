//! The `[redis]` settings.

use std::{fmt, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Unusable;

/// How to reach Redis, and how patient to be with it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The server: `redis://host:port/db`, or `rediss://…` for TLS. Default: `redis://127.0.0.1:6379/0`. A URL with a
    /// password belongs in the environment or in `url_file`.
    pub url: String,
    /// A file that holds the URL, for one with a password. It wins over `url`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_file: Option<String>,
    /// Connections for commands, each shared by any number of calls at once. Default: 2.
    #[schemars(range(min = 1, max = 64))]
    pub pool_size: usize,
    /// Time for the TCP, TLS and Redis handshakes together, in milliseconds. Default: 1000.
    #[schemars(range(min = 10, max = 60_000))]
    pub connect_timeout_ms: u64,
    /// Time for one answer, in milliseconds: a connection that takes longer is replaced. Default: 500.
    #[schemars(range(min = 10, max = 60_000))]
    pub response_timeout_ms: u64,
    /// A connection is replaced when it is this old, in seconds, so that a moved name is followed. Default: 300.
    #[schemars(range(min = 1, max = 86_400))]
    pub max_age_s: u64,
    /// What every key and channel begins with. Fleets that share a server and not their limits need one each.
    /// Default: `pixfleet`.
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[A-Za-z0-9_.:-]{1,64}$"))]
    pub namespace: String,
    /// How long a settled job is remembered, in seconds: longer than a message may stay in the queue after it was
    /// settled. Default: 604800, which is 7 days.
    #[schemars(range(min = 60, max = 31_536_000))]
    pub ledger_ttl_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379/0".to_owned(),
            url_file: None,
            pool_size: 2,
            connect_timeout_ms: 1_000,
            response_timeout_ms: 500,
            max_age_s: 300,
            namespace: "pixfleet".to_owned(),
            ledger_ttl_s: 604_800,
        }
    }
}

/// The URL may hold a password.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("redis::Config")
            .field("endpoint", &self.endpoint())
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// The server's address as it may be shown: no user and no password.
    pub fn endpoint(&self) -> String {
        match self.client() {
            Ok(client) => client.get_connection_info().addr().to_string(),
            Err(Unusable(why)) => why,
        }
    }

    /// The client for the URL, from `url_file` where one is given. No connection is made.
    pub(super) fn client(&self) -> Result<redis::Client, Unusable> {
        let url = match &self.url_file {
            None => self.url.clone(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| Unusable(format!("url_file `{path}` can't be read: {error}")))?
                .trim()
                .to_owned(),
        };
        // The library's own message is not shown: it may quote the URL, and with it a password.
        let bad = |_| {
            let place = self.url_file.as_deref().unwrap_or("url");
            Unusable(format!(
                "`{place}` does not hold a Redis URL: give redis://host:port/db or rediss://host:port/db"
            ))
        };
        let info = redis::IntoConnectionInfo::into_connection_info(url.as_str()).map_err(bad)?;
        let info = info.set_tcp_settings(self.tcp_settings());
        redis::Client::open(info).map_err(bad)
    }

    fn tcp_settings(&self) -> redis::io::tcp::TcpSettings {
        let keepalive = redis::io::tcp::socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(5))
            .with_interval(Duration::from_secs(5));
        let settings = redis::io::tcp::TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
        #[cfg(target_os = "linux")]
        let settings = settings.set_user_timeout(Duration::from_secs(5));
        settings
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(super) fn response_timeout(&self) -> Duration {
        Duration::from_millis(self.response_timeout_ms)
    }

    pub(super) fn max_age(&self) -> Duration {
        Duration::from_secs(self.max_age_s)
    }

    pub(super) fn ledger_ttl(&self) -> Duration {
        Duration::from_secs(self.ledger_ttl_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_shown_neither_by_the_settings_nor_by_a_refusal() {
        let config = Config { url: "redis://:hunter2@exa mple:70000/x".into(), ..Config::default() };
        assert!(!format!("{config:?}").contains("hunter2"));
        let refusal = config.client().unwrap_err().to_string();
        assert!(!refusal.contains("hunter2") && refusal.contains("redis://host:port/db"), "{refusal}");
    }

    #[test]
    fn the_url_is_read_from_its_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "redis://10.1.2.3:7000/2\n").unwrap();
        let config = Config { url_file: Some(file.path().display().to_string()), ..Config::default() };
        let client = config.client().unwrap();
        assert_eq!(client.get_connection_info().addr().to_string(), "10.1.2.3:7000");
    }
}
