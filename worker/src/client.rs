//! The HTTP client of a provider's calls: one request a call, bounded in time and size, on connections that last.
//!
//! A slot is one request, so nothing here sends a second one: no redirect is followed, no failed request repeated.
//! The client is retained, and with it its connections; it is rebuilt by age, because a connection in steady use
//! never sees a change in DNS. Calls in flight end on the client that they began on.

mod transport;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use reqwest::header::HeaderMap;

pub use transport::Transport;

use crate::{image::BadConfig, provider::PreparedRequest};

/// What one request came to.
#[derive(Clone, Debug)]
pub struct CallOutcome {
    /// When the request left.
    pub sent_at: Timestamp,
    /// From its leaving to the answer's last byte, or to the failure.
    pub duration: Duration,
    /// The answer, or why there is none.
    pub answer: Result<Reply, NoReply>,
}

impl CallOutcome {
    /// The status, where one came.
    pub fn status(&self) -> Option<u16> {
        self.answer.as_ref().ok().map(|reply| reply.status)
    }
}

/// An answer whose status came.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The response's headers.
    pub headers: HeaderMap,
    /// The body.
    pub content: Content,
}

/// The body of an answer.
#[derive(Clone, Debug)]
pub enum Content {
    /// All of it.
    Whole(Bytes),
    /// It was larger than this many bytes, and reading stopped there.
    TooLarge(usize),
    /// It ended early, for this reason.
    Cut(String),
}

/// A request without an answer.
#[derive(Clone, Debug)]
pub struct NoReply {
    /// Whether any byte of it may have left: if not, nothing can have happened.
    pub left: bool,
    /// Why, without the URL.
    pub message: String,
}

/// No client can be made with these settings or on this machine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoClient(String);

impl From<BadConfig> for NoClient {
    fn from(bad: BadConfig) -> Self {
        Self(bad.to_string())
    }
}

/// The retained client of one provider. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Client(Arc<Retained>);

#[derive(Debug)]
struct Retained {
    transport: Transport,
    current: ArcSwap<Aged>,
    /// Set while a successor is being made, so that only one is.
    renewing: AtomicBool,
}

#[derive(Debug)]
struct Aged {
    client: reqwest::Client,
    born: Instant,
}

impl Client {
    /// A client for these settings.
    ///
    /// # Errors
    /// [`NoClient`], for example where the machine has no certificate authorities.
    pub fn new(transport: &Transport) -> Result<Self, NoClient> {
        let current = ArcSwap::from_pointee(Aged { client: build(transport)?, born: Instant::now() });
        Ok(Self(Arc::new(Retained {
            transport: transport.clone(),
            current,
            renewing: AtomicBool::new(false),
        })))
    }

    /// Sends the request, once, and reads its answer. Bounded by the settings' times and sizes.
    pub async fn send(&self, request: &PreparedRequest) -> CallOutcome {
        self.renew_by_age();
        let client = self.0.current.load().client.clone();
        let request = client
            .request(request.method.clone(), request.url.clone())
            .headers(request.headers.clone())
            .body(request.body.clone());
        let (sent_at, begun) = (Timestamp::now(), Instant::now());
        let answer = match request.send().await {
            Ok(response) => Ok(self.read(response).await),
            Err(error) => Err(no_reply(error)),
        };
        CallOutcome { sent_at, duration: begun.elapsed(), answer }
    }

    async fn read(&self, mut response: reqwest::Response) -> Reply {
        let status = response.status().as_u16();
        let headers = std::mem::take(response.headers_mut());
        let content = read_body(response, self.0.transport.max_response_bytes).await;
        Reply { status, headers, content }
    }

    /// Starts to make a successor once the client is old enough. Never in the way of a call: making one reads the
    /// machine's certificate authorities, which takes longer than a slot.
    fn renew_by_age(&self) {
        let retained = &self.0;
        let old = retained.current.load().born.elapsed() >= Duration::from_secs(retained.transport.max_age_s);
        if !old || retained.renewing.swap(true, Ordering::AcqRel) {
            return;
        }
        let retained = Arc::clone(retained);
        tokio::task::spawn_blocking(move || {
            match build(&retained.transport) {
                Ok(client) => retained.current.store(Arc::new(Aged { client, born: Instant::now() })),
                Err(error) => tracing::warn!(%error, "the HTTP client grows old: its connections are kept"),
            }
            retained.renewing.store(false, Ordering::Release);
        });
    }
}

/// The body, up to `limit` bytes.
pub(crate) async fn read_body(mut response: reqwest::Response, limit: usize) -> Content {
    if response.content_length().is_some_and(|length| length > limit as u64) {
        return Content::TooLarge(limit);
    }
    let mut body = BytesMut::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > limit => return Content::TooLarge(limit),
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Content::Whole(body.freeze()),
            Err(error) => return Content::Cut(causes(&error.without_url())),
        }
    }
}

fn no_reply(error: reqwest::Error) -> NoReply {
    // A failure to connect includes the name and TLS; a builder's error is one before anything was tried.
    let left = !(error.is_connect() || error.is_builder());
    NoReply { left, message: causes(&error.without_url()) }
}

/// An error and its causes in one line; the libraries keep the reason in the last of them.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

fn build(transport: &Transport) -> Result<reqwest::Client, NoClient> {
    let refused = |error: reqwest::Error| {
        NoClient(format!("the HTTP client can't be made: {}", causes(&error.without_url())))
    };
    let mut builder = base_builder()
        .connect_timeout(Duration::from_millis(transport.connect_ms))
        .read_timeout(Duration::from_millis(transport.read_ms))
        .timeout(Duration::from_millis(transport.total_ms))
        .pool_idle_timeout(Duration::from_secs(transport.idle_s))
        .http2_keep_alive_interval(Duration::from_secs(15))
        .http2_keep_alive_timeout(Duration::from_secs(10))
        .http2_keep_alive_while_idle(true);
    if transport.http1_only {
        builder = builder.http1_only();
    }
    if let Some(proxy) = &transport.proxy {
        builder = builder.proxy(reqwest::Proxy::all(proxy).map_err(refused)?);
    }
    builder.build().map_err(refused)
}

/// What every client here has in common: one request a call, and the process's one TLS provider.
pub(crate) fn base_builder() -> reqwest::ClientBuilder {
    install_tls();
    reqwest::Client::builder()
        .user_agent(concat!("pixfleet/", env!("CARGO_PKG_VERSION")))
        .retry(reqwest::retry::never())
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .tcp_nodelay(true)
}

/// Installs the process's TLS provider (ring), unless one is there. Saying it again changes nothing.
pub fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        sync::Semaphore,
    };

    use super::*;

    /// A server that answers each request with what `answer` makes of its head, and counts its connections.
    pub(crate) struct Server {
        pub(crate) url: String,
        /// A request for `/gated` is answered once a permit is here.
        gate: Arc<Semaphore>,
        pub(crate) connections: Arc<AtomicUsize>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    /// Bytes to write, and whether the connection stays open after them.
    pub(crate) struct Said(pub(crate) Vec<u8>, pub(crate) bool);

    pub(crate) fn ok(body: &[u8]) -> Said {
        with("200 OK", "", body)
    }

    pub(crate) fn with(status: &str, headers: &str, body: &[u8]) -> Said {
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
        Said([head.as_bytes(), body].concat(), true)
    }

    pub(crate) async fn serve(answer: impl Fn(&str) -> Said + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(Semaphore::new(0));
        let (count, passage, answer) = (Arc::clone(&connections), Arc::clone(&gate), Arc::new(answer));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(talk(stream, Arc::clone(&answer), Arc::clone(&passage)));
            }
        });
        Server { url, gate, connections, task }
    }

    async fn talk(mut stream: TcpStream, answer: Arc<impl Fn(&str) -> Said>, gate: Arc<Semaphore>) {
        let mut read = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            read.extend_from_slice(&buffer[..n]);
            let Some(end) = read.windows(4).position(|end| end == b"\r\n\r\n") else {
                continue;
            };
            let head = String::from_utf8_lossy(&read[..end]).into_owned();
            if head.contains("/gated") {
                gate.acquire().await.unwrap().forget();
            }
            let Said(bytes, keep) = answer(&head);
            read.clear();
            if stream.write_all(&bytes).await.is_err() || !keep {
                return;
            }
        }
    }

    fn get(url: &str) -> PreparedRequest {
        PreparedRequest {
            method: reqwest::Method::GET,
            url: format!("{url}/?key=hunter22").parse().unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    fn client(transport: Transport) -> Client {
        Client::new(&transport).unwrap()
    }

    fn whole(outcome: &CallOutcome) -> &[u8] {
        match &outcome.answer.as_ref().unwrap().content {
            Content::Whole(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn calls_in_a_row_share_one_connection() {
        let server = serve(|_| ok(b"{}")).await;
        let client = client(Transport::default());
        for _ in 0..20 {
            assert_eq!(whole(&client.send(&get(&server.url)).await), b"{}");
        }
        assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_client_is_renewed_by_age_and_a_call_in_flight_ends_on_the_old_one() {
        let server = serve(|_| ok(b"1")).await;
        let client = client(Transport { max_age_s: 0, ..Transport::default() });
        let first = client.0.current.load_full();
        let mut gated = get(&server.url);
        gated.url.set_path("/gated");
        let in_flight = tokio::spawn({
            let client = client.clone();
            async move { client.send(&gated).await }
        });
        while server.connections.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        while Arc::ptr_eq(&first, &client.0.current.load()) {
            assert_eq!(whole(&client.send(&get(&server.url)).await), b"1");
        }
        assert_eq!(whole(&client.send(&get(&server.url)).await), b"1");
        assert!(!in_flight.is_finished());
        server.gate.add_permits(1);
        assert_eq!(whole(&in_flight.await.unwrap()), b"1");
    }

    #[tokio::test]
    async fn a_redirect_is_an_answer_and_not_a_second_request() {
        let server = serve(|_| with("302 Found", "location: /elsewhere\r\n", b"")).await;
        let outcome = client(Transport::default()).send(&get(&server.url)).await;
        assert_eq!(outcome.status(), Some(302));
    }

    #[tokio::test]
    async fn a_connection_that_is_refused_means_that_nothing_left() {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let failed =
            client(Transport::default()).send(&get(&format!("http://{port}"))).await.answer.unwrap_err();
        assert!(!failed.left && !failed.message.contains("hunter22"), "{failed:?}");
        let nowhere =
            client(Transport::default()).send(&get("http://pixfleet.invalid")).await.answer.unwrap_err();
        assert!(!nowhere.left, "{nowhere:?}");
    }

    #[tokio::test]
    async fn a_tls_handshake_that_fails_or_hangs_means_that_nothing_left() {
        let plain = serve(|_| ok(b"{}")).await;
        let url = plain.url.replace("http:", "https:");
        let transport = Transport { connect_ms: 200, ..Transport::default() };
        let hung = client(transport).send(&get(&url)).await.answer.unwrap_err();
        assert!(!hung.left, "{hung:?}");
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", closed.local_addr().unwrap());
        let task = tokio::spawn(async move { while closed.accept().await.is_ok() {} });
        let failed = client(Transport::default()).send(&get(&url)).await.answer.unwrap_err();
        assert!(!failed.left, "{failed:?}");
        task.abort();
    }

    #[tokio::test]
    async fn a_cut_or_a_silence_after_the_request_left_says_so() {
        let server = serve(|_| Said(Vec::new(), false)).await;
        let cut = client(Transport::default()).send(&get(&server.url)).await.answer.unwrap_err();
        assert!(cut.left && !cut.message.contains("hunter22"), "{cut:?}");
        let server = serve(|_| Said(Vec::new(), true)).await;
        let transport = Transport { connect_ms: 100, total_ms: 200, ..Transport::default() };
        let silence = client(transport).send(&get(&server.url)).await.answer.unwrap_err();
        assert!(silence.left, "{silence:?}");
    }

    #[tokio::test]
    async fn an_answer_is_read_up_to_its_bound_and_no_further() {
        let transport = Transport { max_response_bytes: 1024, ..Transport::default() };
        let said = serve(|_| ok(&[b'x'; 1025])).await;
        let answer = client(transport.clone()).send(&get(&said.url)).await.answer.unwrap();
        assert!(matches!(answer.content, Content::TooLarge(1024)), "{answer:?}");
        let unsaid = serve(|_| {
            let chunk = format!("400\r\n{}\r\n", "x".repeat(1024)).repeat(4);
            Said(format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunk}").into(), true)
        });
        let answer = client(transport.clone()).send(&get(&unsaid.await.url)).await.answer.unwrap();
        assert!(matches!(answer.content, Content::TooLarge(1024)), "{answer:?}");
        let exact = serve(|_| ok(&[b'x'; 1024])).await;
        assert_eq!(whole(&client(transport).send(&get(&exact.url)).await).len(), 1024);
    }

    #[tokio::test]
    async fn an_answer_that_ends_early_is_cut_and_not_whole() {
        let server =
            serve(|_| Said(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}".to_vec(), false)).await;
        let answer = client(Transport::default()).send(&get(&server.url)).await.answer.unwrap();
        assert!(matches!(answer.content, Content::Cut(_)), "{answer:?}");
    }
}
