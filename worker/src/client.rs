//! The HTTP client of a provider's calls: one request a call, bounded in time and size, on connections that last.
//!
//! A slot is one request, so nothing here sends a second one: no redirect is followed, no failed request repeated.
//! The client is retained, and with it its connections; it is rebuilt by age, because a connection in steady use
//! never sees a change in DNS. Calls in flight end on the client that they began on.
//!
//! A call that is going to leave at a moment takes a [`Way`] before it: where it would need a new connection, that is
//! opened ahead, so that the call does not arrive late by the round trips of TCP and TLS.

mod departure;
mod stash;
#[cfg(test)]
pub(crate) mod tests;
mod transport;
#[cfg(test)]
mod warming;
mod way;
mod ways;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use reqwest::header::HeaderMap;

use stash::{FRESH, Keep, Stash, Take};
use ways::Ways;

pub use stash::Opened;
pub use transport::Transport;
pub use way::{Sent, Way};

use crate::{arrival::Arrival, image::BadConfig, provider::PreparedRequest};

/// Taken for the time that it takes to open a connection until one was opened.
const FIRST_OPENING_US: u64 = 250_000;

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

    /// Whether an answer was seen to its end, or to the most that is read of one.
    pub fn is_answered(&self) -> bool {
        self.answer.as_ref().is_ok_and(|reply| !matches!(reply.content, Content::Cut(_)))
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
    making: Making,
    arrival: Arrival,
    current: ArcSwap<Aged>,
    /// How long it took lately to open a connection, in microseconds.
    opening_us: AtomicU64,
    /// Set while a successor is being made, so that only one is.
    renewing: AtomicBool,
}

/// A client of a certain age, and what opens connections ahead for it.
#[derive(Debug)]
struct Aged {
    /// Sends the calls.
    caller: reqwest::Client,
    /// Opens connections for it, and can't send.
    opener: reqwest::Client,
    stash: Arc<Stash>,
    born: Instant,
}

/// What clients are made from.
#[derive(Clone, Copy, Debug)]
struct Making {
    base: fn() -> reqwest::ClientBuilder,
    /// How old a connection that was opened ahead may grow.
    fresh: Duration,
}

impl Default for Making {
    fn default() -> Self {
        Self { base: base_builder, fresh: FRESH }
    }
}

impl Aged {
    fn new(transport: &Transport, making: Making) -> Result<Self, NoClient> {
        let stash = Stash::new(Ways::new(Duration::from_secs(transport.idle_s)), making.fresh);
        let caller = build(transport, (making.base)().connector_layer(Take(Arc::clone(&stash))))?;
        let opener = build(transport, (making.base)().connector_layer(Keep(Arc::clone(&stash))))?;
        Ok(Self { caller, opener, stash, born: Instant::now() })
    }
}

impl Client {
    /// A client for these settings.
    ///
    /// # Errors
    /// [`NoClient`], for example where the machine has no certificate authorities.
    pub fn new(transport: &Transport) -> Result<Self, NoClient> {
        Self::made(transport, Making::default())
    }

    fn made(transport: &Transport, making: Making) -> Result<Self, NoClient> {
        let current = ArcSwap::from_pointee(Aged::new(transport, making)?);
        Ok(Self(Arc::new(Retained {
            transport: transport.clone(),
            making,
            arrival: Arrival::new(),
            current,
            opening_us: AtomicU64::new(FIRST_OPENING_US),
            renewing: AtomicBool::new(false),
        })))
    }

    /// What is known of the way to the API.
    pub fn arrival(&self) -> &Arrival {
        &self.0.arrival
    }

    /// Sends the request, once, and reads its answer. Bounded by the settings' times and sizes.
    pub async fn send(&self, request: &PreparedRequest) -> CallOutcome {
        self.way().send(request, None).await.outcome
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
            match Aged::new(&retained.transport, retained.making) {
                Ok(aged) => retained.current.store(Arc::new(aged)),
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

fn build(transport: &Transport, base: reqwest::ClientBuilder) -> Result<reqwest::Client, NoClient> {
    let refused = |error: reqwest::Error| {
        NoClient(format!("the HTTP client can't be made: {}", causes(&error.without_url())))
    };
    let mut builder = base
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
