//! Tells subscribers that a batch is complete. Whoever settled its last result says so; said twice, it is one event.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use pixfleet_shared::{
    batch::{BatchEvent, BatchState},
    batches::Progress,
    job::WIRE_VERSION,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::crew::Crew;

/// Pause after an announcement that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Announces until `stop`.
pub(crate) async fn announce(crew: Arc<Crew>, stop: CancellationToken) {
    let announce = async {
        loop {
            let progress = crew.engines.batches.complete().await;
            info!(batch = %progress.batch, results = progress.expected, "the batch is complete");
            while let Err(error) = crew.engines.queue.announce(event(&progress)).await {
                debug!(%error, batch = %progress.batch, "not yet announced");
                sleep(PAUSE).await;
            }
        }
    };
    stop.run_until_cancelled(announce).await;
}

fn event(progress: &Progress) -> BatchEvent {
    BatchEvent {
        v: WIRE_VERSION,
        batch: progress.batch.clone(),
        state: BatchState::Complete,
        jobs: progress.jobs,
        results: progress.expected,
        at: Timestamp::now(),
        tally: Some(progress.tally),
    }
}
