//! `pixfleet batch pause`, `resume` and `cancel`: the word for the whole fleet, and the jobs that are set aside.

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use jiff::Timestamp;
use pixfleet_shared::{
    batch::BatchName,
    batches::{Held, Hold},
    queue::{Queue, QueueError},
};
use tokio::time::{interval, sleep};

use super::reach::Reach;
use crate::{
    enqueue::view::say,
    words::{at, count},
};

/// Every worker has heard of a change by then; until then one may still set a job aside.
const HEARD: Duration = Duration::from_millis(1_500);
/// How often it is said how many jobs are still to be put back.
const SAID_EVERY: Duration = Duration::from_secs(2);

/// What a command is about.
pub(super) struct Order<'a> {
    pub(super) reach: &'a Reach,
    pub(super) queue: &'a Arc<dyn Queue>,
    pub(super) batch: &'a BatchName,
    pub(super) by: String,
}

impl Order<'_> {
    /// Lets no call of the batch leave: within a second, in the whole fleet.
    ///
    /// # Errors
    /// When the batch is cancelled, or a server is away: then nothing has changed.
    pub(super) async fn pause(self) -> anyhow::Result<()> {
        // Before any worker sets a job aside.
        self.queue.prepare_parking(self.batch).await?;
        match self.hold(Some(Hold::Paused)).await? {
            Some(Held { hold: Hold::Cancelled, by, at: when }) => bail!(
                "batch `{}` was cancelled by {by} at {}, and stays so: there is nothing to pause",
                self.batch,
                at(when, Timestamp::now())
            ),
            _ => Ok(()),
        }
    }

    /// Settles what is left of the batch as cancelled, for good. What a pause had set aside is put back for that.
    ///
    /// # Errors
    /// When a server is away. Run again, it goes on.
    pub(super) async fn cancel(self) -> anyhow::Result<()> {
        let before = self.reach.batches.progress(self.batch).await?.and_then(|progress| progress.held);
        self.hold(Some(Hold::Cancelled)).await?;
        // Of a batch that was never paused nothing is set aside.
        if before.is_some() || self.queue.parked(self.batch).await? > 0 {
            self.put_back("settled as cancelled").await?;
        }
        Ok(())
    }

    /// Lets the batch go on, and puts back what was set aside.
    ///
    /// # Errors
    /// When the batch is cancelled, or a server is away. Run again, it goes on.
    pub(super) async fn resume(self) -> anyhow::Result<()> {
        if let Some(Held { hold: Hold::Cancelled, by, at: when }) = self.hold(None).await? {
            bail!(
                "batch `{}` was cancelled by {by} at {}: a cancelled batch can't be resumed. Enqueue what is left as another \
                 batch: `pixfleet batch manifest {}` lists what was cancelled",
                self.batch,
                at(when, Timestamp::now()),
                self.batch
            )
        }
        self.put_back("back in the queue").await
    }

    async fn hold(&self, hold: Option<Hold>) -> anyhow::Result<Option<Held>> {
        let held = hold.map(|hold| Held { hold, by: self.by.clone(), at: Timestamp::now() });
        Ok(self.reach.batches.hold(self.batch, held).await?)
    }

    /// Puts back what is set aside, until nothing is any more, also from workers that hear of it late.
    async fn put_back(&self, what: &str) -> anyhow::Result<()> {
        let mut all = 0;
        let mut again = false;
        loop {
            let some = self.unpark().await?;
            all += some;
            if some == 0 && again {
                break;
            }
            again = true;
            sleep(HEARD).await;
        }
        if all > 0 {
            let noun = if all == 1 { "job is" } else { "jobs are" };
            say(&format!("batch {}: {} {noun} {what}", self.batch, count(all)));
        }
        Ok(())
    }

    /// One pass, with its progress on stderr.
    async fn unpark(&self) -> Result<u64, QueueError> {
        let (queue, batch) = (self.queue.clone(), self.batch.clone());
        let telling = tokio::spawn(async move {
            let mut ticks = interval(SAID_EVERY);
            // The first is at once, and a short way needs no progress.
            ticks.tick().await;
            loop {
                ticks.tick().await;
                if let Ok(left) = queue.parked(&batch).await {
                    say(&format!("batch {batch}: {} jobs are still to be put back", count(left)));
                }
            }
        });
        let put_back = self.queue.unpark(self.batch).await;
        telling.abort();
        put_back
    }
}
