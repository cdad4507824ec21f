//! Which addresses a picture may be fetched from.
//!
//! A job's URL is someone else's text, and the worker stands inside a network that trusts it. So every address is
//! judged: of a literal host (which no resolver sees), of every name's answer (the same answer is then used to
//! connect, so a name can't change its mind), and again after each redirect.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::{BadConfig, Config};

/// An address, or a URL, that pictures are not fetched from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refused(String);

/// The rules.
#[derive(Debug)]
pub(super) struct Guard {
    allow: Vec<IpNet>,
    allow_private: bool,
    ports: Vec<u16>,
}

/// Networks that no picture is fetched from, with the reason. Source: the IANA special-purpose registries.
const REFUSED_V4: [(&str, &str); 15] = [
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", PRIVATE),
    ("100.64.0.0/10", "shared with the carrier"),
    ("127.0.0.0/8", LOOPBACK),
    ("169.254.0.0/16", "link-local"),
    ("172.16.0.0/12", PRIVATE),
    ("192.0.0.0/24", "reserved"),
    ("192.0.2.0/24", "documentation"),
    ("192.88.99.0/24", "reserved"),
    ("192.168.0.0/16", PRIVATE),
    ("198.18.0.0/15", "benchmarks"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
];

const PRIVATE: &str = "private";
const LOOPBACK: &str = "loopback";

impl Guard {
    pub(super) fn new(config: &Config) -> Result<Self, BadConfig> {
        let net = |text: &String| {
            let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            net.map_err(|_| BadConfig {
                field: "allow",
                why: format!("`{text}` is no network: write it like 10.1.0.0/16"),
            })
        };
        Ok(Self {
            allow: config.allow.iter().map(net).collect::<Result<_, _>>()?,
            allow_private: config.allow_private,
            ports: config.ports.clone(),
        })
    }

    /// Judges all of a URL that can be judged before its name is resolved.
    pub(super) fn check_url(&self, url: &Url) -> Result<(), Refused> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refused(format!(
                "scheme `{}` is refused: pictures are fetched by http and https",
                url.scheme()
            )));
        }
        let port = url.port_or_known_default().unwrap_or(0);
        if !self.ports.is_empty() && !self.ports.contains(&port) {
            return Err(Refused(format!("port {port} is refused (worker.fetch.ports)")));
        }
        // The URL's parser has already read decimal, octal, hexadecimal and shortened forms of an IPv4 address.
        match url.host() {
            Some(Host::Ipv4(ip)) => self.check(ip.into()),
            Some(Host::Ipv6(ip)) => self.check(ip.into()),
            Some(Host::Domain(_)) => Ok(()),
            None => Err(Refused("the URL has no host".into())),
        }
    }

    /// Judges an address.
    pub(super) fn check(&self, ip: IpAddr) -> Result<(), Refused> {
        let allowed = |ip: IpAddr| self.allow.iter().any(|net| net.contains(&ip));
        let judged = unwrapped(ip);
        if allowed(ip) || allowed(judged) {
            return Ok(());
        }
        let why = match judged {
            IpAddr::V4(ip) => refused_v4(ip),
            IpAddr::V6(ip) => refused_v6(ip),
        };
        match why {
            None => Ok(()),
            Some(PRIVATE | LOOPBACK) if self.allow_private => Ok(()),
            Some(why) => Err(Refused(format!("address {ip} is refused: {why} (worker.fetch.allow)"))),
        }
    }
}

fn refused_v4(ip: Ipv4Addr) -> Option<&'static str> {
    let in_net = |net: &str| net.parse::<ipnet::Ipv4Net>().is_ok_and(|net| net.contains(&ip));
    REFUSED_V4.iter().find(|(net, _)| in_net(net)).map(|(_, why)| *why)
}

fn refused_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let segments = ip.segments();
    match segments {
        _ if ip.is_loopback() => Some(LOOPBACK),
        _ if ip.is_unicast_link_local() => Some("link-local"),
        _ if ip.is_unique_local() => Some(PRIVATE),
        _ if ip.is_multicast() => Some("multicast"),
        // Translations: an IPv4 address inside, which a gateway on the way would use.
        [0x64, 0xff9b, ..] => Some("translated to IPv4"),
        [0x2001, 0, ..] => Some("a tunnel to IPv4"),
        [0x2002, ..] => Some("a tunnel to IPv4"),
        [0x2001, 0xdb8, ..] => Some("documentation"),
        // Global unicast is 2000::/3; whatever else there is, no picture is there.
        [first, ..] if first & 0xe000 != 0x2000 => Some("reserved"),
        _ => None,
    }
}

/// An IPv4 address that is written as an IPv6 one is that IPv4 address.
fn unwrapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::from),
        IpAddr::V4(_) => ip,
    }
}

/// Resolves names, and lets through only addresses that the guard allows.
#[derive(Clone, Debug)]
pub(super) struct GuardedResolver(pub(super) Arc<Guard>);

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = Arc::clone(&self.0);
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let (mut allowed, mut refused) = (Vec::new(), None);
            for address in found {
                match guard.check(address.ip()) {
                    Ok(()) => allowed.push(address),
                    Err(why) => refused = Some(why),
                }
            }
            match refused {
                Some(why) if allowed.is_empty() => Err(why.into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(config: Config) -> Guard {
        Guard::new(&config).unwrap()
    }

    fn judged(guard: &Guard, url: &str) -> Result<(), Refused> {
        guard.check_url(&Url::parse(url).unwrap())
    }

    #[test]
    fn no_way_of_writing_an_inner_address_passes() {
        let guard = guard(Config::default());
        for host in [
            "127.0.0.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "127.1",
            "0",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "0xa9fea9fe",
            "100.64.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.0.170",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:a9fe:a9fe]",
            "[fc00::1]",
            "[fd12:3456::1]",
            "[fe80::1]",
            "[ff02::1]",
            "[64:ff9b::7f00:1]",
            "[64:ff9b:1::1]",
            "[2002:7f00:1::]",
            "[2001:0:1::1]",
            "[::127.0.0.1]",
            "[100::1]",
            "[fec0::1]",
            "１２７.0.0.1",
        ] {
            assert!(judged(&guard, &format!("http://{host}/a.jpg")).is_err(), "{host}");
        }
    }

    #[test]
    fn addresses_of_the_web_pass_and_names_are_judged_when_they_are_resolved() {
        let guard = guard(Config::default());
        for host in [
            "93.184.216.34",
            "172.32.0.1",
            "192.167.0.1",
            "[2606:2800:220:1::1]",
            "[::ffff:8.8.8.8]",
            "localhost",
        ] {
            assert_eq!(judged(&guard, &format!("https://{host}/a.jpg")), Ok(()), "{host}");
        }
    }

    #[test]
    fn other_schemes_and_ports_are_refused() {
        let default = guard(Config::default());
        for url in [
            "file:///etc/passwd",
            "ftp://93.184.216.34/a",
            "gopher://93.184.216.34:80/",
            "http://93.184.216.34:22/",
        ] {
            assert!(judged(&default, url).is_err(), "{url}");
        }
        let any = guard(Config { ports: vec![], ..Config::default() });
        assert_eq!(judged(&any, "http://93.184.216.34:8443/"), Ok(()));
    }

    #[test]
    fn private_networks_may_be_allowed_and_link_local_only_by_name() {
        let private = guard(Config { allow_private: true, ..Config::default() });
        for host in ["127.0.0.1", "10.0.0.9", "[::1]", "[fd00::1]"] {
            assert_eq!(judged(&private, &format!("http://{host}/")), Ok(()), "{host}");
        }
        assert!(judged(&private, "http://169.254.169.254/latest/meta-data").is_err());
        let some =
            guard(Config { allow: vec!["10.1.0.0/16".into(), "169.254.7.7".into()], ..Config::default() });
        assert_eq!(judged(&some, "http://10.1.2.3/"), Ok(()));
        assert_eq!(judged(&some, "http://[::ffff:10.1.2.3]/"), Ok(()));
        assert_eq!(judged(&some, "http://169.254.7.7/"), Ok(()));
        assert!(judged(&some, "http://10.2.0.1/").is_err());
    }

    #[test]
    fn a_network_that_is_none_is_a_bad_setting() {
        let bad = Guard::new(&Config { allow: vec!["10.0.0.0/99".into()], ..Config::default() }).unwrap_err();
        assert!(bad.to_string().starts_with("worker.fetch.allow: `10.0.0.0/99`"));
    }

    #[tokio::test]
    async fn a_name_that_leads_inside_has_no_address() {
        let resolver = |config| GuardedResolver(Arc::new(guard(config)));
        let refused = resolver(Config::default()).resolve("localhost".parse().unwrap()).await.err().unwrap();
        assert!(refused.downcast_ref::<Refused>().is_some());
        let private = resolver(Config { allow_private: true, ..Config::default() });
        assert!(private.resolve("localhost".parse().unwrap()).await.unwrap().next().is_some());
    }
}
