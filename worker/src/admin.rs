//! What an orchestrator asks a worker: is it alive, is it ready, how is it doing.
//!
//! Whoever connects and says nothing takes a little memory and a file descriptor, which calls need. So there are few
//! connections, each for a short time, and one that is too many takes the place of the oldest: who asks now is answered.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use axum::{Router, extract::State, http::StatusCode, http::header::CONTENT_TYPE, routing::get};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use pixfleet_shared::telemetry::Metrics;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Connections at once.
const MOST: usize = 64;
/// A connection that asks nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(10);
/// The whole life of a connection: whoever asks on may connect again.
const LIFE: Duration = Duration::from_secs(300);
/// The most bytes of a request's head.
const HEAD_BYTES: usize = 16 * 1024;
/// Pause after a connection that could not be accepted: for want of file descriptors, most often.
const PAUSE: Duration = Duration::from_millis(50);

/// The `[admin]` settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of `/livez`, `/readyz` and `/metrics`; empty switches them off. Default: `127.0.0.1:9600`.
    pub listen: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9600".to_owned() }
    }
}

/// What the admin pages tell.
pub(crate) trait Condition: Send + Sync + 'static {
    /// Whether jobs can be worked on now; the text says why not.
    fn ready(&self) -> Result<(), String>;
    /// The worker's metrics.
    fn metrics(&self) -> &Metrics;
}

/// Serves the admin pages until `stop`.
///
/// # Errors
/// When the listener fails.
pub(crate) async fn serve<C: Condition>(
    listener: TcpListener,
    condition: Arc<C>,
    stop: CancellationToken,
) -> io::Result<()> {
    let pages = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz::<C>))
        .route("/metrics", get(metrics::<C>))
        .with_state(condition);
    let mut connections = Connections::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(_) = connections.tasks.join_next() => {}
            // The oldest was told to go: it has to be gone before the next one comes.
            accepted = listener.accept(), if connections.tasks.len() <= MOST => match accepted {
                Ok((stream, _)) => connections.take(talk(stream, pages.clone())),
                Err(error) if is_over(&error) => {}
                Err(_) => sleep(PAUSE).await,
            },
        }
    }
}

/// Those that are open, the oldest first.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    handles: VecDeque<AbortHandle>,
}

impl Connections {
    /// One more; where it is too many, the oldest makes room for it.
    fn take(&mut self, talk: impl Future<Output = ()> + Send + 'static) {
        self.handles.push_back(self.tasks.spawn(talk));
        self.handles.retain(|handle| !handle.is_finished());
        if self.handles.len() > MOST
            && let Some(oldest) = self.handles.pop_front()
        {
            oldest.abort();
        }
    }
}

async fn talk(stream: TcpStream, pages: Router) {
    let talk = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(pages));
    // Whoever breaks off is no concern of ours.
    let _ = timeout(LIFE, talk).await;
}

/// The client went before it was accepted.
fn is_over(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn readyz<C: Condition>(State(condition): State<Arc<C>>) -> (StatusCode, String) {
    match condition.ready() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn metrics<C: Condition>(
    State(condition): State<Arc<C>>,
) -> ([(axum::http::HeaderName, &'static str); 1], String) {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, OPEN_METRICS)], condition.metrics().render())
}
