//! The `[redis]` settings.

use std::{fmt, time::Duration};

use redis::{ClientTlsConfig, TlsCertificates};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Unusable,
    address::Address,
    servers::{Manners, Servers},
};

/// How to reach Redis, and how patient to be with it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The server: `redis://host:port/db`; the master behind sentinels: `redis+sentinel://host:26379,host:26379/master/db`; or
    /// a cluster: `redis+cluster://host:port,host:port`. With `rediss` instead of `redis` for TLS. Default:
    /// `redis://127.0.0.1:6379/0`. A URL with a password belongs in the environment or in `url_file`.
    pub url: String,
    /// A file that holds the URL, for one with a password. It wins over `url`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_file: Option<String>,
    /// A file with the certificates (PEM) of whom to trust with TLS, instead of the public authorities. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// A file with the certificate (PEM) to show to servers that ask for one. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert_file: Option<String>,
    /// A file with the private key (PEM) of that certificate. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key_file: Option<String>,
    /// A file with the sentinels' own password, or `user:password`; the login in the URL is for the servers. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentinel_password_file: Option<String>,
    /// Connections for commands, each shared by any number of calls at once. Default: 2.
    #[schemars(range(min = 1, max = 64))]
    pub pool_size: usize,
    /// Time for the TCP, TLS and Redis handshakes together, in milliseconds. Default: 1000.
    #[schemars(range(min = 10, max = 60_000))]
    pub connect_timeout_ms: u64,
    /// Time for one answer, in milliseconds: a connection that takes longer is replaced. Default: 1000.
    #[schemars(range(min = 10, max = 60_000))]
    pub response_timeout_ms: u64,
    /// A connection is replaced when it is this old, in seconds, so that a moved name is followed. Default: 300.
    #[schemars(range(min = 1, max = 86_400))]
    pub max_age_s: u64,
    /// What every key and channel begins with. Fleets that share a server and not their limits need one each.
    /// Default: `pixfleet`.
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[A-Za-z0-9_.:-]{1,64}$"))]
    pub namespace: String,
    /// How long the state of a job is remembered after its last use, in seconds: longer than a copy of its message may stay
    /// in a queue. Default: 604800, which is 7 days.
    #[schemars(range(min = 60, max = 31_536_000))]
    pub ledger_ttl_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379/0".to_owned(),
            url_file: None,
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
            sentinel_password_file: None,
            pool_size: 2,
            connect_timeout_ms: 1_000,
            response_timeout_ms: 1_000,
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
    /// Whether `url` can be a Redis URL. Nothing is read, and no connection is made.
    ///
    /// # Errors
    /// What is wrong with it and what to give; never the URL itself.
    pub fn check_url(&self) -> Result<(), String> {
        Address::parse(&self.url).map(|_| ())
    }

    /// The server's address as it may be shown: no user and no password.
    pub fn endpoint(&self) -> String {
        match self.address() {
            Ok(address) => address.to_string(),
            Err(Unusable(why)) => why,
        }
    }

    /// How to connect. No connection is made.
    pub(super) fn servers(&self) -> Result<Servers, Unusable> {
        let address = self.address()?;
        let certificates = self.certificates()?;
        if certificates.is_some() && !address.is_tls() {
            return Err(Unusable(
                "there are certificates (`ca_file`, `client_cert_file`), and the URL asks for no TLS: give rediss://…, \
                 rediss+sentinel://… or rediss+cluster://…"
                    .to_owned(),
            ));
        }
        let manners = Manners {
            connect_timeout: Duration::from_millis(self.connect_timeout_ms),
            response_timeout: Duration::from_millis(self.response_timeout_ms),
            certificates,
            sentinel_login: self.sentinel_login()?,
        };
        // What the library says is of PEM files: it was handed an address that was read already.
        Servers::new(address, manners)
            .map_err(|error| Unusable(format!("the TLS settings can't be used: {error}")))
    }

    fn address(&self) -> Result<Address, Unusable> {
        let url = match &self.url_file {
            None => self.url.clone(),
            Some(path) => text("url_file", path)?,
        };
        let place = self.url_file.as_deref().unwrap_or("url");
        Address::parse(&url).map_err(|why| Unusable(format!("`{place}`: {why}")))
    }

    fn certificates(&self) -> Result<Option<TlsCertificates>, Unusable> {
        let pem = |field: &str, path: &Option<String>, what: &str| match path {
            None => Ok(None),
            Some(path) => {
                let text = text(field, path)?;
                if text.contains(what) {
                    Ok(Some(text.into_bytes()))
                } else {
                    Err(Unusable(format!("`{field}`: `{path}` holds no `{what}`: give a PEM file")))
                }
            }
        };
        let root_cert = pem("ca_file", &self.ca_file, "BEGIN CERTIFICATE")?;
        let certificate = pem("client_cert_file", &self.client_cert_file, "BEGIN CERTIFICATE")?;
        let client_tls = match (certificate, pem("client_key_file", &self.client_key_file, "PRIVATE KEY")?) {
            (Some(client_cert), Some(client_key)) => Some(ClientTlsConfig { client_cert, client_key }),
            (None, None) => None,
            _ => {
                let why = "`client_cert_file` and `client_key_file` belong together: give both, or neither";
                return Err(Unusable(why.to_owned()));
            }
        };
        let any = client_tls.is_some() || root_cert.is_some();
        Ok(any.then_some(TlsCertificates { client_tls, root_cert }))
    }

    fn sentinel_login(&self) -> Result<(Option<String>, Option<String>), Unusable> {
        let Some(path) = &self.sentinel_password_file else {
            return Ok((None, None));
        };
        let login = text("sentinel_password_file", path)?;
        Ok(match login.split_once(':') {
            Some((user, password)) => (Some(user.to_owned()), Some(password.to_owned())),
            None => (None, Some(login)),
        })
    }

    pub(super) fn max_age(&self) -> Duration {
        Duration::from_secs(self.max_age_s)
    }

    pub(super) fn ledger_ttl(&self) -> Duration {
        Duration::from_secs(self.ledger_ttl_s)
    }
}

fn text(field: &str, path: &str) -> Result<String, Unusable> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Unusable(format!("`{field}`: `{path}` can't be read: {error}")))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(config: &Config) -> String {
        config.servers().err().unwrap().to_string()
    }

    #[test]
    fn a_password_is_shown_neither_by_the_settings_nor_by_a_refusal() {
        let config = Config { url: "redis://:hunter2@exa mple:70000/x".into(), ..Config::default() };
        assert!(!format!("{config:?}").contains("hunter2"));
        let refusal = refusal(&config);
        assert!(!refusal.contains("hunter2") && refusal.contains("redis://HOST:PORT/DB"), "{refusal}");
        assert!(refusal.starts_with("redis: `url`: not a Redis URL"), "{refusal}");
    }

    #[test]
    fn the_url_is_read_from_its_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "redis://10.1.2.3:7000/2\n").unwrap();
        let config = Config { url_file: Some(file.path().display().to_string()), ..Config::default() };
        assert_eq!(config.endpoint(), "10.1.2.3:7000");
    }

    #[test]
    fn certificates_that_can_not_be_used_are_refused_by_the_name_of_their_field() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
            .unwrap();
        let pem = || Some(file.path().display().to_string());
        let tls = || Config { url: "rediss://r".into(), ..Config::default() };
        for (config, said) in [
            (Config { ca_file: pem(), ..Config::default() }, "rediss://"),
            (Config { ca_file: Some("/nowhere".into()), ..tls() }, "`ca_file`: `/nowhere` can't be read"),
            (Config { client_cert_file: pem(), ..tls() }, "belong together"),
            (Config { client_key_file: pem(), ..tls() }, "`client_key_file`"),
        ] {
            let refusal = refusal(&config);
            assert!(refusal.contains(said), "{said}: {refusal}");
        }
    }
}
