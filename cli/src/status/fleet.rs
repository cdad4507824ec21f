//! What waits in the lanes of a fleet, and where its limits stand.

use jiff::Timestamp;
use pixfleet_shared::{
    fleet::rabbit::{LaneDepth, RabbitQueue},
    queue::Queue,
};
use pixfleet_worker::provider::Catalog;
use serde::Serialize;

use crate::{
    config::Config,
    limits::{Limiter, Look},
    output,
    results::terminal::stdout_width,
    words::count,
};

/// The one JSON object.
#[derive(Debug, Serialize)]
struct Shown {
    /// Jobs that no worker has in hand.
    ready: u64,
    lanes: Vec<LaneDepth>,
    #[serde(flatten)]
    limits: Look,
}

/// Looks once, and prints what there is. Where the settings have one provider, the jobs are its, and their end is told.
///
/// # Errors
/// When the broker or the limiter is away.
pub(super) async fn show(config: &Config, catalog: &Catalog, json: bool) -> anyhow::Result<()> {
    let queue = RabbitQueue::connect(config.rabbitmq.clone()).await?;
    let lanes = queue.depths().await;
    queue.close().await;
    let lanes = lanes?;
    let ready = lanes.iter().map(|lane| u64::from(lane.ready)).sum();
    let only = catalog.iter().count() == 1 && ready > 0;
    let limits = match catalog.iter().next() {
        None => Look::default(),
        Some(_) => {
            let limiter = Limiter::of_fleet(config).await?;
            Look::at_all(&limiter, catalog, only.then_some(ready)).await?
        }
    };
    let shown = Shown { ready, lanes, limits };
    if json {
        output::json(&shown)?;
        return Ok(());
    }
    for line in lines(&shown) {
        output::line(line)?;
    }
    for line in shown.limits.lines(Timestamp::now(), stdout_width()) {
        output::line(line)?;
    }
    Ok(())
}

fn lines(shown: &Shown) -> Vec<String> {
    let noun = if shown.ready == 1 { "job" } else { "jobs" };
    let mut lines = vec![format!("{} {noun} ready in the lanes", count(shown.ready))];
    for LaneDepth { priority, lane, ready } in shown.lanes.iter().filter(|lane| lane.ready > 0) {
        lines.push(format!("  {priority}.{lane}: {}", count((*ready).into())));
    }
    lines
}
