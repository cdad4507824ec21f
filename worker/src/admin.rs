//! What an orchestrator asks a worker: is it alive, is it ready, how is it doing.

use std::sync::Arc;

use axum::{Router, extract::State, http::StatusCode, http::header::CONTENT_TYPE, routing::get};
use pixfleet_shared::telemetry::Metrics;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

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
) -> std::io::Result<()> {
    let pages = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz::<C>))
        .route("/metrics", get(metrics::<C>))
        .with_state(condition);
    axum::serve(listener, pages).with_graceful_shutdown(stop.cancelled_owned()).await
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
