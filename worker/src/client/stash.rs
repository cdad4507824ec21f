//! Connections that are opened ahead, and the two places where the HTTP client lets them out and in.
//!
//! reqwest opens a connection only for a request, and a request may cost money. So there are two clients of the same
//! settings. The *opener*'s connector hands each finished connection (TCP and TLS) to the stash and tells its client
//! that it could not connect: the request behind it has no connection to be sent on, ever. The *caller*'s connector
//! takes what lies in the stash, and connects by itself where nothing does.

use std::{
    any::Any,
    error::Error,
    future::{self, Future},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper::rt::{Read, ReadBuf};
use hyper_util::client::legacy::connect::Connection;
use tokio::sync::Notify;
use tower::{Layer, Service};
use url::Origin;

use super::ways::Ways;

/// How old a connection may be when a call takes it. Servers close connections that say nothing, and a call that meets
/// one which is just being closed has left, and nobody knows whether it arrived.
pub(super) const FRESH: Duration = Duration::from_secs(4);
/// By so much sooner with HTTP/2: the server may speak first, so that looking whether it has closed would eat its words.
const UNSEEN: u32 = 4;

tokio::task_local! {
    /// On whose behalf the connector of a client is called: it is not told where to.
    pub(super) static ERRAND: Arc<Errand>;
}

/// What a call, or an opening, wants of the connector, and what it got.
#[derive(Debug)]
pub(super) struct Errand {
    pub(super) origin: Origin,
    /// Since when the connection that the pool was thought to hold has been idle.
    pub(super) idle_since: Option<Instant>,
    got: AtomicU8,
}

/// The connection that a call left on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It was there from an earlier call.
    Before,
    /// It was opened for this call, ahead of it.
    Ahead,
    /// It had to be opened when the call was due, and the call was late by that.
    Late,
}

impl Opened {
    /// As metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Ahead => "ahead",
            Self::Late => "late",
        }
    }
}

impl Errand {
    pub(super) fn new(origin: Origin, idle_since: Option<Instant>) -> Arc<Self> {
        Arc::new(Self { origin, idle_since, got: AtomicU8::new(0) })
    }

    pub(super) fn opened(&self) -> Opened {
        match self.got.load(Ordering::Relaxed) {
            0 => Opened::Before,
            1 => Opened::Ahead,
            _ => Opened::Late,
        }
    }
}

/// Connections that wait for a call, and what is known of all others. The connections' type has no name.
#[derive(Debug)]
pub(super) struct Stash {
    pub(super) fresh: Duration,
    kept: Mutex<Vec<Kept>>,
    ways: Mutex<Ways>,
    /// Told after each opening.
    pub(super) opened: Notify,
}

#[derive(Debug)]
struct Kept {
    connection: Box<dyn Any + Send>,
    origin: Origin,
    until: Instant,
}

impl Stash {
    /// An empty one, whose connections are good for `fresh`.
    pub(super) fn new(ways: Ways, fresh: Duration) -> Arc<Self> {
        Arc::new(Self { fresh, kept: Mutex::default(), ways: Mutex::new(ways), opened: Notify::new() })
    }

    pub(super) fn ways(&self) -> MutexGuard<'_, Ways> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many a call may take.
    pub(super) fn held(&self, now: Instant) -> usize {
        self.kept().iter().filter(|kept| kept.until > now).count()
    }

    /// An opening is over.
    pub(super) fn opened(&self, done: bool) {
        self.ways().opened(Instant::now(), done);
        self.opened.notify_waiters();
    }

    /// Closes those that nobody took in time.
    pub(super) fn close_stale(&self) {
        let now = Instant::now();
        let stale: Vec<Kept> = self.kept().extract_if(.., |kept| kept.until <= now).collect();
        if !stale.is_empty() {
            self.ways().unused(now);
        }
    }

    fn keep<C: Connection + Send + 'static>(&self, connection: C, origin: Origin) {
        let unseen = connection.connected().is_negotiated_h2();
        if unseen {
            self.ways().shared(true);
        }
        let until = Instant::now() + if unseen { self.fresh / UNSEEN } else { self.fresh };
        self.kept().push(Kept { connection: Box::new(connection), origin, until });
    }

    /// The youngest to `origin` that is fresh, and that the server has not closed.
    async fn take<C: Connection + Read + Unpin + 'static>(&self, origin: &Origin) -> Option<C> {
        loop {
            let kept = {
                let mut kept = self.kept();
                let now = Instant::now();
                let youngest = kept.iter().rposition(|kept| kept.until > now && kept.origin == *origin)?;
                kept.remove(youngest)
            };
            let Ok(mut connection) = kept.connection.downcast::<C>() else { continue };
            if connection.connected().is_negotiated_h2() || is_silent(&mut *connection).await {
                return Some(*connection);
            }
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Kept>> {
        // Nothing panics while it is held.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the server has neither closed the connection nor said anything on it, which in HTTP/1.1 is as bad.
async fn is_silent<C: Read + Unpin>(connection: &mut C) -> bool {
    let mut byte = [0];
    future::poll_fn(|cx| {
        let mut buffer = ReadBuf::new(&mut byte);
        Poll::Ready(Pin::new(&mut *connection).poll_read(cx, buffer.unfilled()).is_pending())
    })
    .await
}

/// A layer of the opener's connector: every connection goes to the stash, and none to a request.
#[derive(Clone)]
pub(super) struct Keep(pub(super) Arc<Stash>);

/// A layer of the caller's connector: what lies in the stash is taken first.
#[derive(Clone)]
pub(super) struct Take(pub(super) Arc<Stash>);

/// The opener's connector.
#[derive(Clone)]
pub(super) struct Keeping<S> {
    inner: S,
    stash: Arc<Stash>,
}

/// The caller's connector.
#[derive(Clone)]
pub(super) struct Taking<S> {
    inner: S,
    stash: Arc<Stash>,
}

/// Not a failure: how the opener's client is kept from sending anything.
#[derive(Debug, thiserror::Error)]
#[error("the connection is kept for a call")]
struct KeptForACall;

type BoxError = Box<dyn Error + Send + Sync>;
type BoxFuture<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

impl<S> Layer<S> for Keep {
    type Service = Keeping<S>;

    fn layer(&self, inner: S) -> Keeping<S> {
        Keeping { inner, stash: Arc::clone(&self.0) }
    }
}

impl<S> Layer<S> for Take {
    type Service = Taking<S>;

    fn layer(&self, inner: S) -> Taking<S> {
        Taking { inner, stash: Arc::clone(&self.0) }
    }
}

impl<S, R> Service<R> for Keeping<S>
where
    S: Service<R, Error = BoxError>,
    S::Future: Send + 'static,
    S::Response: Connection + Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<S::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let connecting = self.inner.call(request);
        let stash = Arc::clone(&self.stash);
        let errand = ERRAND.try_with(Arc::clone).ok();
        Box::pin(async move {
            let connection = connecting.await?;
            if let Some(errand) = errand {
                stash.keep(connection, errand.origin.clone());
                errand.got.store(1, Ordering::Relaxed);
            }
            Err(KeptForACall.into())
        })
    }
}

impl<S, R> Service<R> for Taking<S>
where
    R: Send + 'static,
    S: Service<R, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Response: Connection + Read + Unpin + Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<S::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        // The one that was polled to readiness is the one that is called.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let stash = Arc::clone(&self.stash);
        // Called from a task of the client's own it is nobody's errand: where to is not known, nothing is taken.
        let errand = ERRAND.try_with(Arc::clone).ok();
        Box::pin(async move {
            let Some(errand) = errand else { return inner.call(request).await };
            let taken = stash.take(&errand.origin).await;
            errand.got.store(if taken.is_some() { 1 } else { 2 }, Ordering::Relaxed);
            stash.ways().missed(Instant::now(), errand.idle_since, taken.is_some());
            match taken {
                Some(connection) => Ok(connection),
                None => inner.call(request).await,
            }
        })
    }
}
