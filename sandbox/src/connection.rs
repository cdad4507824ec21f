//! Connections that can really be closed, and what is asked on them.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::contract::{self, Contract};
use crate::reply::{self, Close, Reply};
use crate::serve::Shared;
use crate::{call, gallery};

/// An idle connection is closed after this long, as by the gateways of the vendors.
const IDLE: Duration = Duration::from_secs(75);
/// Connections beyond these wait in the listener's backlog.
const MOST_CONNECTIONS: usize = 10_000;

/// Takes connections until `stop`, and serves each in a task of its own; `kill` ends them in mid-call.
pub(crate) async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
    kill: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut id = 0;
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = stop.cancelled() => return,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                id += 1;
                shared.accounts.connections.fetch_add(1, Relaxed);
                let serving = serve_connection(stream, id, shared.clone(), stop.clone(), kill.clone());
                tasks.spawn(async move {
                    let _place = place;
                    serving.await;
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: connections that end give some back.
                tracing::warn!(error = %error, "a connection could not be accepted; trying again in 50 ms");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    id: u64,
    shared: Arc<Shared>,
    stop: CancellationToken,
    kill: CancellationToken,
) {
    // An answer must leave when it is ready: Nagle's algorithm would add 40 ms of its own.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| route(&shared, id, request));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE);
    let mut serving = pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = serving.as_mut() => return,
        () = stop.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        _ = serving => {}
        () = kill.cancelled() => {}
    }
}

async fn route(shared: &Arc<Shared>, connection: u64, request: Request<Incoming>) -> Result<Reply, Close> {
    match Contract::of(request.uri().path()) {
        Some(contract) if contract.allows(request.method()) => {
            call::serve(shared, connection, contract, request).await
        }
        Some(_) => {
            Ok(not(StatusCode::METHOD_NOT_ALLOWED, "this method is not served here; see docs/sandbox.md"))
        }
        None => Ok(free_of_charge(shared, &request).await),
    }
}

/// What is neither judged, charged nor logged.
async fn free_of_charge(shared: &Arc<Shared>, request: &Request<Incoming>) -> Reply {
    let path = request.uri().path();
    match (request.method(), path.trim_end_matches('/')) {
        (&Method::GET, "/sandbox/health") => reply::json(StatusCode::OK, &json!({ "status": "ok" })),
        (&Method::GET, "/sandbox/bill") => {
            let bill = serde_json::to_value(shared.accounts.bill()).unwrap_or_default();
            reply::json(StatusCode::OK, &bill)
        }
        (&Method::POST, "/sandbox/reset") => {
            shared.accounts.reset();
            reply::json(StatusCode::OK, &json!({ "status": "reset" }))
        }
        (&Method::GET, "/products" | "/v1/15/products") => {
            let key = request.headers().get("tiliter-api-key").and_then(|key| key.to_str().ok());
            if shared.lets_in(key.unwrap_or_default()) {
                return reply::json(StatusCode::OK, &contract::products());
            }
            reply::json(StatusCode::UNAUTHORIZED, &json!({ "detail": "Invalid or missing API key" }))
        }
        (&Method::GET, picture) if picture.starts_with("/sandbox/images/") => {
            let file = picture.trim_start_matches("/sandbox/images/").to_owned();
            let query = request.uri().query().unwrap_or_default().to_owned();
            image(shared, file, query).await
        }
        _ => not(
            StatusCode::NOT_FOUND,
            "there is nothing here; see docs/sandbox.md for what the sandbox speaks",
        ),
    }
}

async fn image(shared: &Shared, file: String, query: String) -> Reply {
    // Drawing a big one takes a moment; the judge's clock must not feel it.
    match tokio::task::spawn_blocking(move || gallery::picture(&file, &query)).await {
        Ok(Some((media, bytes))) => {
            shared.accounts.images_served.fetch_add(1, Relaxed);
            reply::bytes(StatusCode::OK, media, bytes.into())
        }
        _ => not(StatusCode::NOT_FOUND, "pictures are named <anything>.jpg or <anything>.png"),
    }
}

fn not(status: StatusCode, why: &str) -> Reply {
    reply::json(status, &json!({ "error": why }))
}
