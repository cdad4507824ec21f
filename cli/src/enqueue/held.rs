//! What keeps a batch that somebody is about to enqueue: one that was cancelled takes nothing more, one that is paused waits.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use pixfleet_shared::{
    batch::BatchName,
    batches::{Batches, Held, Hold},
    fleet::redis::Redis,
};
use tokio::time::timeout;
use tracing::warn;

use crate::{config::Config, engine::Engine, words::at};

/// How long a Redis that is not there yet is waited for: jobs go to the queue without it.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long one answer may take.
const AN_ANSWER: Duration = Duration::from_secs(5);

/// The batches seam of an engine; of servers it may be away.
///
/// # Errors
/// When the settings of Redis can't be used.
pub(crate) async fn batches(engine: &Engine, config: &Config) -> anyhow::Result<Arc<dyn Batches>> {
    match engine {
        Engine::State(embedded) => Ok(embedded.batches()),
        Engine::Servers(_) => {
            let redis = Redis::start(&config.redis).context("the batches")?;
            // Whoever asks it finds out.
            let _ = redis.ready(PATIENCE).await;
            Ok(redis.batches())
        }
    }
}

/// What pauses the batch, if anything. Whether it is kept can't be known while Redis is away; the workers see to it.
///
/// # Errors
/// When it is cancelled: nothing more is put into it.
pub(crate) async fn heed(batches: &dyn Batches, batch: &BatchName) -> anyhow::Result<Option<Held>> {
    let held = match timeout(AN_ANSWER, batches.progress(batch)).await {
        Ok(Ok(progress)) => progress.and_then(|progress| progress.held),
        Ok(Err(error)) => return Ok(unknown(batch, &error.to_string())),
        Err(_) => return Ok(unknown(batch, "no answer")),
    };
    match held {
        Some(held) if held.hold == Hold::Cancelled => bail!(
            "batch `{batch}` was cancelled by {} at {}, and stays so: nothing is enqueued. Give another --batch",
            held.by,
            at(held.at, Timestamp::now())
        ),
        held => Ok(held),
    }
}

/// Says that the jobs of a paused batch wait.
pub(crate) fn waits(batch: &BatchName, held: &Held) -> String {
    format!(
        "the batch is paused by {} since {}: its jobs wait until `pixfleet batch resume {batch}`",
        held.by,
        at(held.at, Timestamp::now())
    )
}

fn unknown(batch: &BatchName, why: &str) -> Option<Held> {
    warn!(
        ledger.error = why,
        %batch, "it is not known whether the batch is paused or cancelled: jobs are enqueued all the same"
    );
    None
}
