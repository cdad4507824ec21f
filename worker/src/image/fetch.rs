//! Fetches the bytes of a picture's URL, with a client of its own.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use reqwest::{
    Method, StatusCode,
    header::{ACCEPT, ETAG, HeaderMap, LAST_MODIFIED, LOCATION},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use url::Url;

use super::{
    BadConfig, Config, ImageError,
    guard::{Guard, GuardedResolver, Refused},
    too_large,
};
use crate::client::{self, Content};

/// A validator is worth this much time: without one the picture is asked about.
const VALIDATED_WITHIN: Duration = Duration::from_secs(5);
/// A longer validator is taken for none.
const MAX_VALIDATOR_BYTES: usize = 512;

/// Fetches pictures, each within its bounds.
#[derive(Debug)]
pub(super) struct Fetcher {
    client: reqwest::Client,
    guard: Arc<Guard>,
    max_redirects: u8,
    max_bytes: usize,
    total: Duration,
    /// Room for the bytes of all pictures that are on their way, in units.
    room: Arc<Semaphore>,
}

/// A picture's bytes, and the room that they were given: to be kept until they are made ready.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) bytes: Bytes,
    pub(super) room: OwnedSemaphorePermit,
}

/// Bytes of a unit of room.
const UNIT: usize = 256 * 1024;
/// Bytes of all pictures on their way: a hundred endless ones must not be a hundred times the largest.
const ROOM: usize = 128 * 1024 * 1024;

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
            room: Arc::new(Semaphore::new(units(config.max_bytes.max(ROOM)))),
        })
    }

    /// The bytes at `url`.
    ///
    /// # Errors
    /// Rejected: a refused address, a 4xx, too many redirects or bytes. Transient: a timeout, a 5xx, a cut.
    pub(super) async fn fetch(&self, url: Url) -> Result<Fetched, ImageError> {
        let host = url.host_str().unwrap_or_default().to_owned();
        self.follow(url).await.map_err(|error| match error {
            ImageError::Rejected(why) => ImageError::Rejected(format!("picture at {host}: {why}")),
            ImageError::Transient(why) => ImageError::Transient(format!("picture at {host}: {why}")),
        })
    }

    /// The validator of what is at `url`: its `ETag`, else its `Last-Modified`. Nothing of the picture itself is read.
    pub(super) async fn validator(&self, url: Url) -> Option<String> {
        let asked = async {
            let head = self.headers(Method::HEAD, url.clone()).await;
            match head {
                Ok((status, headers)) if status.is_success() => word(&headers),
                // A signed URL may be good for one method only.
                Ok((
                    StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED,
                    _,
                )) => {
                    let (status, headers) = self.headers(Method::GET, url).await.ok()?;
                    status.is_success().then(|| word(&headers))?
                }
                _ => None,
            }
        };
        timeout(self.total.min(VALIDATED_WITHIN), asked).await.ok()?
    }

    async fn headers(&self, method: Method, url: Url) -> Result<(StatusCode, HeaderMap), ImageError> {
        let response = self.answer(method, url).await?;
        Ok((response.status(), response.headers().clone()))
    }

    async fn follow(&self, url: Url) -> Result<Fetched, ImageError> {
        let since = Instant::now();
        let late = |_| ImageError::Transient(format!("no picture within {:?}", self.total));
        let response = timeout(self.total, self.answer(Method::GET, url)).await.map_err(late)??;
        if !response.status().is_success() {
            return Err(refused_status(response.status().as_u16()));
        }
        // The time that others take to make room is none of this picture's.
        let answered = since.elapsed();
        let most = response.content_length().and_then(|length| usize::try_from(length).ok());
        let most = most.unwrap_or(self.max_bytes).min(self.max_bytes);
        let wanted = u32::try_from(units(most)).unwrap_or(u32::MAX);
        let gone = |_| ImageError::Transient("the worker is shutting down".into());
        let room = Arc::clone(&self.room).acquire_many_owned(wanted).await.map_err(gone)?;
        let left = self.total.saturating_sub(answered);
        let bytes = timeout(left, self.body(response)).await.map_err(late)??;
        Ok(Fetched { bytes, room })
    }

    /// The answer behind all redirects, each judged like the first URL.
    async fn answer(&self, method: Method, mut url: Url) -> Result<reqwest::Response, ImageError> {
        for _ in 0..=self.max_redirects {
            self.guard.check_url(&url).map_err(|refused| ImageError::Rejected(refused.to_string()))?;
            let request =
                self.client.request(method.clone(), url.clone()).header(ACCEPT, "image/*,*/*;q=0.5");
            let response = request.send().await.map_err(failed)?;
            let status = response.status();
            if !status.is_redirection() {
                return Ok(response);
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

/// The room that so many bytes take.
fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize))
}

fn word(headers: &HeaderMap) -> Option<String> {
    let word = headers.get(ETAG).or_else(|| headers.get(LAST_MODIFIED))?.to_str().ok()?.trim();
    (!word.is_empty() && word.len() <= MAX_VALIDATOR_BYTES).then(|| word.to_owned())
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
        let url = format!("{}{path}", server.url).parse().unwrap();
        fetcher.fetch(url).await.map(|fetched| fetched.bytes)
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
    async fn a_picture_is_known_again_by_what_its_server_tells_of_it() {
        let server = serve(|head| match head {
            head if head.contains("/etag ") => with("200 OK", "etag: \"7\"\r\nlast-modified: x\r\n", b""),
            head if head.contains("/moved ") => with("302 Found", "location: /etag\r\n", b""),
            head if head.contains("/date ") => with("200 OK", "last-modified: then\r\n", b""),
            head if head.starts_with("HEAD /signed ") => with("403 Forbidden", "etag: \"no\"\r\n", b""),
            head if head.starts_with("GET /signed ") => with("200 OK", "etag: \"s\"\r\n", b"picture"),
            head if head.contains("/long ") => with("200 OK", &format!("etag: {}\r\n", "x".repeat(600)), b""),
            head if head.contains("/gone ") => with("404 Not Found", "etag: \"gone\"\r\n", b""),
            _ => with("200 OK", "", b""),
        })
        .await;
        let fetcher = fetcher(|_| ());
        let guarded = Fetcher::new(&Config::default()).unwrap();
        for (path, word) in [
            ("/etag", Some("\"7\"")),
            ("/moved", Some("\"7\"")),
            ("/date", Some("then")),
            ("/signed", Some("\"s\"")),
            ("/long", None),
            ("/gone", None),
            ("/silent", None),
        ] {
            let url: Url = format!("{}{path}", server.url).parse().unwrap();
            assert_eq!(fetcher.validator(url.clone()).await.as_deref(), word, "{path}");
            assert_eq!(guarded.validator(url).await, None, "the guard holds here, too");
        }
    }

    #[tokio::test]
    async fn pictures_whose_size_nobody_tells_wait_for_room_and_all_arrive() {
        let server = serve(|_| Said(b"HTTP/1.1 200 OK\r\n\r\npicture".to_vec(), false)).await;
        // Each may be half of all that there is room for.
        let fetcher = fetcher(|config| config.max_bytes = ROOM / 2);
        let all = (0..9).map(|_| fetch(&fetcher, &server, "/"));
        for bytes in futures_util::future::join_all(all).await {
            assert_eq!(bytes.unwrap(), "picture");
        }
    }

    #[tokio::test]
    async fn an_error_names_the_host_and_not_the_query() {
        let server = serve(|_| with("404 Not Found", "", b"")).await;
        let why =
            fetch(&fetcher(|_| ()), &server, "/a.jpg?X-Signature=s3cret").await.unwrap_err().to_string();
        assert!(why.contains("127.0.0.1") && !why.contains("s3cret"), "{why}");
    }
}
