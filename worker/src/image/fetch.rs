//! Fetches the bytes of a picture's URL, with a client of its own.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use reqwest::header::{ACCEPT, LOCATION};
use url::Url;

use super::{
    BadConfig, Config, ImageError,
    guard::{Guard, GuardedResolver, Refused},
    too_large,
};
use crate::client::{self, Content};

/// Fetches pictures, each within its bounds.
#[derive(Debug)]
pub(super) struct Fetcher {
    client: reqwest::Client,
    guard: Arc<Guard>,
    max_redirects: u8,
    max_bytes: usize,
    total: Duration,
}

impl Fetcher {
    pub(super) fn new(config: &Config) -> Result<Self, BadConfig> {
        let guard = Arc::new(Guard::new(config)?);
        // No proxy: it would resolve names for us, behind the guard's back.
        let client = client::base_builder()
            .connect_timeout(Duration::from_millis(config.connect_ms))
            .pool_idle_timeout(Duration::from_secs(30))
            .dns_resolver(GuardedResolver(Arc::clone(&guard)))
            .build()
            .map_err(|error| BadConfig { field: "connect_ms", why: client::causes(&error) })?;
        Ok(Self {
            client,
            guard,
            max_redirects: config.max_redirects,
            max_bytes: config.max_bytes,
            total: Duration::from_millis(config.total_ms),
        })
    }

    /// The bytes at `url`.
    ///
    /// # Errors
    /// Rejected: a refused address, a 4xx, too many redirects or bytes. Transient: a timeout, a 5xx, a cut.
    pub(super) async fn fetch(&self, url: Url) -> Result<Bytes, ImageError> {
        let host = url.host_str().unwrap_or_default().to_owned();
        let fetched = tokio::time::timeout(self.total, self.follow(url)).await;
        let fetched = fetched
            .unwrap_or_else(|_| Err(ImageError::Transient(format!("no picture within {:?}", self.total))));
        fetched.map_err(|error| match error {
            ImageError::Rejected(why) => ImageError::Rejected(format!("picture at {host}: {why}")),
            ImageError::Transient(why) => ImageError::Transient(format!("picture at {host}: {why}")),
        })
    }

    async fn follow(&self, mut url: Url) -> Result<Bytes, ImageError> {
        for _ in 0..=self.max_redirects {
            self.guard.check_url(&url).map_err(|refused| ImageError::Rejected(refused.to_string()))?;
            let request = self.client.get(url.clone()).header(ACCEPT, "image/*,*/*;q=0.5");
            let response = request.send().await.map_err(failed)?;
            let status = response.status();
            if status.is_success() {
                return self.body(response).await;
            }
            if !status.is_redirection() {
                return Err(refused_status(status.as_u16()));
            }
            let next = response.headers().get(LOCATION).and_then(|to| url.join(to.to_str().ok()?).ok());
            url = next.ok_or_else(|| ImageError::Rejected(format!("status {status} leads nowhere")))?;
        }
        Err(ImageError::Rejected(format!(
            "more than {} redirects (worker.fetch.max_redirects)",
            self.max_redirects
        )))
    }

    async fn body(&self, response: reqwest::Response) -> Result<Bytes, ImageError> {
        match client::read_body(response, self.max_bytes).await {
            Content::Whole(bytes) if bytes.is_empty() => {
                Err(ImageError::Rejected("the answer is empty".into()))
            }
            Content::Whole(bytes) => Ok(bytes),
            Content::TooLarge(limit) => Err(too_large(limit)),
            Content::Cut(why) => Err(ImageError::Transient(format!("the answer was cut off: {why}"))),
        }
    }
}

/// A picture's server says no: for good, unless it is a matter of time.
fn refused_status(status: u16) -> ImageError {
    let why = format!("status {status}");
    match status {
        408 | 425 | 429 => ImageError::Transient(why),
        400..=499 => ImageError::Rejected(why),
        _ => ImageError::Transient(why),
    }
}

/// A refusal by the guard comes back from deep inside the connector.
fn failed(error: reqwest::Error) -> ImageError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        if let Some(refused) = inner.downcast_ref::<Refused>() {
            return ImageError::Rejected(refused.to_string());
        }
        cause = inner.source();
    }
    ImageError::Transient(client::causes(&error.without_url()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::{Said, Server, ok, serve, with};

    fn fetcher(change: impl FnOnce(&mut Config)) -> Fetcher {
        let mut config = Config { allow_private: true, ports: vec![], ..Config::default() };
        change(&mut config);
        Fetcher::new(&config).unwrap()
    }

    async fn fetch(fetcher: &Fetcher, server: &Server, path: &str) -> Result<Bytes, ImageError> {
        fetcher.fetch(format!("{}{path}", server.url).parse().unwrap()).await
    }

    #[tokio::test]
    async fn a_picture_is_fetched_through_its_redirects() {
        let server = serve(|head| match head {
            head if head.starts_with("GET /a ") => with("302 Found", "location: b\r\n", b""),
            head if head.starts_with("GET /b ") => with("301 Moved", "location: /c?x=1\r\n", b""),
            _ => ok(b"picture"),
        })
        .await;
        assert_eq!(fetch(&fetcher(|_| ()), &server, "/a").await.unwrap(), "picture");
        let why = fetch(&fetcher(|config| config.max_redirects = 1), &server, "/a").await.unwrap_err();
        assert!(!why.is_transient() && why.to_string().contains("more than 1 redirects"), "{why}");
    }

    #[tokio::test]
    async fn each_hop_of_a_redirect_is_judged() {
        for to in [
            "http://169.254.169.254/latest/meta-data",
            "http://[fe80::1]/",
            "file:///etc/passwd",
            "http://2852039166/",
        ] {
            let server = serve(move |_| with("302 Found", &format!("location: {to}\r\n"), b"")).await;
            let why = fetch(&fetcher(|_| ()), &server, "/").await.unwrap_err();
            assert!(!why.is_transient() && why.to_string().contains("refused"), "{to}: {why}");
        }
    }

    #[tokio::test]
    async fn an_inner_server_is_never_asked_unless_it_is_allowed() {
        let server = serve(|_| ok(b"secret")).await;
        let guarded = fetcher(|config| config.allow_private = false);
        let by_name = server.url.replace("127.0.0.1", "localhost");
        for url in [server.url.clone(), by_name] {
            let why = guarded.fetch(url.parse().unwrap()).await.unwrap_err();
            assert!(!why.is_transient() && why.to_string().contains("loopback"), "{url}: {why}");
        }
        assert_eq!(server.connections.load(std::sync::atomic::Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn the_images_fault_is_rejected_and_the_servers_is_transient() {
        let server = serve(|head| {
            let status = head.split(['/', ' ']).nth(2).unwrap();
            with(&format!("{status} X"), "", b"")
        })
        .await;
        for (status, transient) in [
            (404, false),
            (403, false),
            (410, false),
            (408, true),
            (429, true),
            (500, true),
            (503, true),
            (304, false),
        ] {
            let why = fetch(&fetcher(|_| ()), &server, &format!("/{status}")).await.unwrap_err();
            assert_eq!(why.is_transient(), transient, "{status}: {why}");
        }
        let empty = fetch(&fetcher(|_| ()), &server, "/200").await.unwrap_err();
        assert!(!empty.is_transient(), "{empty}");
    }

    #[tokio::test]
    async fn a_fetch_is_bounded_in_bytes_and_in_time() {
        let server =
            serve(|head| if head.contains("/big") { ok(&[0; 2000]) } else { Said(vec![], true) }).await;
        let fetcher = fetcher(|config| (config.max_bytes, config.total_ms) = (1000, 200));
        let big = fetch(&fetcher, &server, "/big").await.unwrap_err();
        assert!(!big.is_transient() && big.to_string().contains("1000 bytes"), "{big}");
        assert!(fetch(&fetcher, &server, "/silent").await.unwrap_err().is_transient());
    }

    #[tokio::test]
    async fn an_error_names_the_host_and_not_the_query() {
        let server = serve(|_| with("404 Not Found", "", b"")).await;
        let why =
            fetch(&fetcher(|_| ()), &server, "/a.jpg?X-Signature=s3cret").await.unwrap_err().to_string();
        assert!(why.contains("127.0.0.1") && !why.contains("s3cret"), "{why}");
    }
}
