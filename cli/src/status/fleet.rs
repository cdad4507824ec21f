//! What waits in the lanes of a fleet, and where its limits stand.

use jiff::Timestamp;
use pixfleet_shared::{
    fleet::rabbit::{LaneDepth, RabbitQueue},
    queue::Queue,
};
use pixfleet_worker::provider::Catalog;
use serde::Serialize;

use crate::{
    batch::{
        reach::Reach,
        shown::{Shown as Batch, line},
    },
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
    /// Batches that are not complete.
    batches: Vec<Batch>,
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
    let (limits, batches) = match catalog.iter().next() {
        None => (Look::default(), Vec::new()),
        Some(_) => {
            let limiter = Limiter::of_fleet(config).await?;
            (Look::at_all(&limiter, catalog, only.then_some(ready)).await?, under_way(config).await?)
        }
    };
    let shown = Shown { ready, lanes, batches, limits };
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

/// The batches that are not complete.
async fn under_way(config: &Config) -> anyhow::Result<Vec<Batch>> {
    let reach = Reach::of_fleet(config).await?;
    let list = reach.batches.list().await;
    reach.close().await;
    Ok(list?.into_iter().filter(|progress| !progress.is_complete()).map(Batch::of).collect())
}

fn lines(shown: &Shown) -> Vec<String> {
    let noun = if shown.ready == 1 { "job" } else { "jobs" };
    let mut lines = vec![format!("{} {noun} ready in the lanes", count(shown.ready))];
    for LaneDepth { priority, lane, ready } in shown.lanes.iter().filter(|lane| lane.ready > 0) {
        lines.push(format!("  {priority}.{lane}: {}", count((*ready).into())));
    }
    lines.extend(shown.batches.iter().map(line));
    lines
}
