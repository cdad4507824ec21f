//! When a request is really handed to its connection.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

/// The moment at which a request's head is written, seen through its body.
#[derive(Clone, Debug)]
pub(super) struct Departure {
    since: Instant,
    /// Nanoseconds after `since`, and 0 while it has not happened.
    after: Arc<AtomicU64>,
}

impl Departure {
    /// Not departed yet.
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), after: Arc::default() }
    }

    /// When the request was handed to a connection; `None` if it never was.
    pub(super) fn at(&self) -> Option<Instant> {
        let after = self.after.load(Ordering::Relaxed);
        (after > 0).then(|| self.since + Duration::from_nanos(after))
    }

    /// `bytes` as a body that notes its departure.
    pub(super) fn body(&self, bytes: Bytes) -> reqwest::Body {
        let empty = bytes.is_empty();
        reqwest::Body::wrap(Noted { departure: self.clone(), empty, bytes: (!empty).then_some(bytes) })
    }

    fn note(&self) {
        let after = self.since.elapsed().as_nanos().max(1);
        self.after.store(u64::try_from(after).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

struct Noted {
    departure: Departure,
    empty: bool,
    bytes: Option<Bytes>,
}

impl Body for Noted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = self.bytes.take();
        if bytes.is_some() {
            self.departure.note();
        }
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    /// Asked by the connection's own task when it takes the request up: the only thing that is asked of no body at all.
    fn is_end_stream(&self) -> bool {
        if self.empty {
            self.departure.note();
        }
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
