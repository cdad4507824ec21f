//! What leaves: whole answers, and the broken ones that the faults order.

use std::convert::Infallible;

use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::Value;

/// The connection is to be closed here and now; hyper does so when a body or a service fails.
#[derive(Debug, thiserror::Error)]
#[error("the sandbox closes this connection, as it was told to")]
pub(crate) struct Close;

pub(crate) type Body = UnsyncBoxBody<Bytes, Close>;
pub(crate) type Reply = Response<Body>;

/// The piece that a huge body repeats.
static PADDING: [u8; 64 << 10] = [b' '; 64 << 10];

pub(crate) fn json(status: StatusCode, value: &Value) -> Reply {
    bytes(status, "application/json", value.to_string().into())
}

pub(crate) fn bytes(status: StatusCode, media: &'static str, bytes: Bytes) -> Reply {
    let mut reply =
        Response::new(Full::new(bytes).map_err(|never: Infallible| match never {}).boxed_unsync());
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    reply
}

/// The answer with its second half missing, under its whole length; then the connection is closed.
pub(crate) fn cut(value: &Value) -> Reply {
    let whole: Bytes = value.to_string().into();
    let half = whole.slice(..whole.len() / 2);
    let pieces = stream::unfold(Some(half), |left| async move {
        match left {
            Some(half) if !half.is_empty() => Some((Ok(Frame::data(half)), Some(Bytes::new()))),
            Some(_) => {
                // Pending once, so that what has been said is flushed before the line goes dead.
                tokio::task::yield_now().await;
                Some((Err(Close), None))
            }
            None => None,
        }
    });
    let mut reply = streamed(StreamBody::new(pieces).boxed_unsync());
    reply.headers_mut().insert(CONTENT_LENGTH, whole.len().into());
    reply
}

/// The answer with its last byte missing: complete as HTTP, broken as JSON.
pub(crate) fn malformed(value: &Value) -> Reply {
    let mut text = value.to_string();
    text.pop();
    bytes(StatusCode::OK, "application/json", text.into())
}

/// A chunked body of `size` bytes that begins like JSON and never gets to the point.
pub(crate) fn huge(size: u64) -> Reply {
    let pieces = stream::unfold(size, |left| async move {
        let piece = usize::try_from(left).unwrap_or(usize::MAX).min(PADDING.len());
        let data = Frame::data(Bytes::from_static(&PADDING[..piece]));
        (left > 0).then(|| (Ok(data), left - piece as u64))
    });
    streamed(StreamBody::new(pieces).boxed_unsync())
}

fn streamed(body: Body) -> Reply {
    let mut reply = Response::new(body);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}
