//! Where Redis is, as a URL says it: one server, the master that sentinels name, or a cluster.

use std::fmt;

use redis::{ConnectionInfo, IntoConnectionInfo};

/// What a URL may look like, for whoever gave another one.
pub(super) const FORMS: &str = "redis://HOST:PORT/DB, redis+sentinel://HOST:26379,HOST:26379/MASTER/DB or \
                                redis+cluster://HOST:PORT,HOST:PORT; with `rediss` instead of `redis` for TLS";
const SENTINEL_PORT: u16 = 26_379;

/// Where Redis is.
#[derive(Clone, Debug)]
pub(super) enum Address {
    /// One server.
    Server(Box<ConnectionInfo>),
    /// The server that is the master of this name now, as any of the sentinels says. `server` is how to log in there,
    /// and holds no address.
    Sentinels { sentinels: Vec<ConnectionInfo>, master: String, server: Box<ConnectionInfo> },
    /// A cluster, of which these nodes are known.
    Cluster(Vec<ConnectionInfo>),
}

impl Address {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it and what to give instead, without quoting it: it may hold a password.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").ok_or_else(unknown)?;
        let parts = Parts::of(rest);
        match scheme {
            "redis" | "rediss" => Ok(Self::Server(Box::new(one(url)?))),
            "redis+sentinel" => parts.sentinels("redis"),
            "rediss+sentinel" => parts.sentinels("rediss"),
            "redis+cluster" => parts.cluster("redis"),
            "rediss+cluster" => parts.cluster("rediss"),
            _ => Err(unknown()),
        }
    }

    /// Whether the URL asks for TLS.
    pub(super) fn is_tls(&self) -> bool {
        let info = match self {
            Self::Server(info) | Self::Sentinels { server: info, .. } => info,
            Self::Cluster(nodes) => &nodes[0],
        };
        matches!(info.addr(), redis::ConnectionAddr::TcpTls { .. })
    }
}

/// Without user and password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |infos: &[ConnectionInfo]| {
            infos.iter().map(|info| info.addr().to_string()).collect::<Vec<_>>().join(", ")
        };
        match self {
            Self::Server(info) => info.addr().fmt(f),
            Self::Sentinels { sentinels, master, .. } => {
                write!(f, "the master `{master}` of the sentinels {}", list(sentinels))
            }
            Self::Cluster(nodes) => write!(f, "the cluster of {}", list(nodes)),
        }
    }
}

/// `user:password@`, the hosts, and what follows them.
struct Parts<'a> {
    login: &'a str,
    hosts: Vec<&'a str>,
    path: Vec<&'a str>,
    has_query: bool,
}

impl<'a> Parts<'a> {
    fn of(rest: &'a str) -> Self {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let hosts_begin = authority.rfind('@').map_or(0, |at| at + 1);
        Self {
            login: &authority[..hosts_begin],
            hosts: authority[hosts_begin..].split(',').filter(|host| !host.is_empty()).collect(),
            path: path.split('/').filter(|part| !part.is_empty()).collect(),
            has_query: path.contains(['?', '#']),
        }
    }

    fn sentinels(&self, scheme: &str) -> Result<Address, String> {
        self.check()?;
        let (master, db) = match self.path[..] {
            [master] => (master, "0"),
            [master, db] => (master, db),
            _ => return Err(format!("names no master behind the sentinels: give {FORMS}")),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !master.chars().all(plain) {
            return Err("the master's name is not one: letters, digits, `.`, `_` and `-` are".to_owned());
        }
        let sentinels = self.hosts.iter().map(|host| {
            let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
            let port = if has_port { String::new() } else { format!(":{SENTINEL_PORT}") };
            one(&format!("{scheme}://{host}{port}"))
        });
        Ok(Address::Sentinels {
            sentinels: sentinels.collect::<Result<_, _>>()?,
            master: master.to_owned(),
            server: Box::new(one(&format!("{scheme}://{}unknown/{db}", self.login))?),
        })
    }

    fn cluster(&self, scheme: &str) -> Result<Address, String> {
        self.check()?;
        // Redis has only database 0 in a cluster.
        if !matches!(self.path[..], [] | ["0"]) {
            return Err("names a database, and a cluster has only 0: leave it out".to_owned());
        }
        let nodes = self.hosts.iter().map(|host| one(&format!("{scheme}://{}{host}/0", self.login)));
        Ok(Address::Cluster(nodes.collect::<Result<_, _>>()?))
    }

    fn check(&self) -> Result<(), String> {
        if self.hosts.is_empty() {
            return Err(format!("names no host: give {FORMS}"));
        }
        if self.has_query {
            return Err("has a `?` or `#`, which mean nothing here: leave it out, or write it as %3F or %23"
                .to_owned());
        }
        Ok(())
    }
}

/// The library's own message is not shown: it may quote the URL, and with it a password.
fn one(url: &str) -> Result<ConnectionInfo, String> {
    url.into_connection_info().map_err(|_| unknown())
}

fn unknown() -> String {
    format!("not a Redis URL: give {FORMS}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_url_is_read_and_shown_without_its_password() {
        for (url, shown) in [
            ("redis://u:hunter2@r:7000/2", "r:7000"),
            (
                "redis+sentinel://u:hunter2@s1,s2:7000/mymaster/1",
                "the master `mymaster` of the sentinels s1:26379, s2:7000",
            ),
            ("rediss+sentinel://[::1],[::2]:5/m", "the master `m` of the sentinels ::1:26379, ::2:5"),
            ("redis+cluster://:hunter2@c1:7000,c2:7001", "the cluster of c1:7000, c2:7001"),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(address.is_tls(), url.starts_with("rediss"));
        }
    }

    #[test]
    fn the_login_is_for_the_servers_and_not_for_the_sentinels() {
        let url = "redis+sentinel://us%40er:p%2Fw@s1,s2/mymaster/3";
        let Address::Sentinels { sentinels, server, .. } = Address::parse(url).unwrap() else {
            panic!("sentinels")
        };
        let login = server.redis_settings();
        assert_eq!((login.username(), login.password(), login.db()), (Some("us@er"), Some("p/w"), 3));
        assert!(sentinels.iter().all(|info| info.redis_settings().password().is_none()));
    }

    #[test]
    fn a_url_that_is_none_is_refused_with_what_to_give() {
        for (url, said) in [
            ("r:6379", "redis://HOST:PORT/DB"),
            ("http://:hunter2@r", "redis+cluster://"),
            ("redis://:hunter2@exa mple:70000/x", "redis://HOST:PORT/DB"),
            ("redis+sentinel://:hunter2@s1", "no master"),
            ("redis+sentinel://:hunter2@s1/my%20master", "master's name"),
            ("redis+sentinel://:hunter2@s1/m/two", "redis+sentinel://HOST:26379"),
            ("redis+sentinel:///m", "no host"),
            ("redis+sentinel://:hunter2@s1/m?x=1", "`?`"),
            ("redis+cluster://:hunter2@c1/1", "database"),
            ("redis+cluster://:hunter2@c1:x", "redis+cluster://"),
        ] {
            let refusal = Address::parse(url).unwrap_err();
            assert!(refusal.contains(said) && !refusal.contains("hunter2"), "{url}: {refusal}");
        }
    }
}
