//! What is said of the batch as a whole: events for subscribers, and what to expect for the batches seam.

use std::time::Duration;

use jiff::Timestamp;
use pixfleet_shared::{
    batch::{BatchEvent, BatchState, Tally},
    batches::Expected,
};
use tokio::time::timeout;
use tracing::warn;

use super::{Run, Why};
use crate::record::Totals;

/// How long one word to the batches seam may take: without it the enqueue goes on.
const A_WORD: Duration = Duration::from_secs(5);

impl Run {
    /// More may come: until the batch is closed again, it is not complete.
    pub(super) async fn say_opened(&self, totals: Totals) -> Result<(), Why> {
        self.expect(totals, false).await;
        self.announce(BatchState::Opened, totals, None).await
    }

    /// All is put in. Where its last result is out already, no worker will find the batch complete any more: it is said here.
    pub(super) async fn close(&self, totals: Totals) -> Result<(), Why> {
        self.announce(BatchState::Closed, totals, None).await?;
        self.expect(totals, true).await;
        match self.complete().await {
            Some(tally) => self.announce(BatchState::Complete, totals, Some(tally)).await,
            None => Ok(()),
        }
    }

    /// Tells what to expect. Without that word jobs are worked on all the same, so its failure is a warning.
    pub(super) async fn expect(&self, totals: Totals, closed: bool) {
        let Some(batches) = &self.batches else {
            return;
        };
        let Totals { jobs, results } = totals;
        let expected = Expected { batch: self.batch.clone(), jobs, results, closed };
        let why = match timeout(A_WORD, batches.expect(&expected)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        warn!(
            ledger.error = %why,
            "the batches were not told what to expect: jobs are enqueued all the same, and `pixfleet batch show` does \
             not know; the same command again tells them"
        );
    }

    /// What the batch's results count as, once they are all there.
    async fn complete(&self) -> Option<Tally> {
        let progress = timeout(A_WORD, self.batches.as_ref()?.progress(&self.batch)).await;
        let progress = progress.ok()?.ok()??;
        progress.is_complete().then_some(progress.tally)
    }

    async fn announce(&self, state: BatchState, totals: Totals, tally: Option<Tally>) -> Result<(), Why> {
        let Some(queue) = &self.queue else {
            return Ok(());
        };
        let event = BatchEvent {
            v: 1,
            batch: self.batch.clone(),
            state,
            jobs: totals.jobs,
            results: totals.results,
            at: Timestamp::now(),
            tally,
        };
        self.patiently(|| queue.announce(event.clone())).await
    }
}
