//! Ends one delivery of the state file: everything that follows from it is one transaction.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{
    jobs::{self, After, Met, Row},
    log::Entry,
    store::{Store, tell},
};
use crate::{
    job::Job,
    queue::{QueueError, Reason, Settle, Settlement, Then},
    result::{Failure, ImageResult, Outcome},
};

/// A job that its workers drop unsettled this often (they panic) is a dead letter: it would never end.
const MOST_DROPPED: u32 = 20;

/// The right to settle one delivery. Dropped unsettled (a panic, an abort), it gives the job back.
pub(super) struct EmbeddedSettle {
    store: Arc<Store>,
    seq: i64,
    /// Taken by the settlement.
    job: Option<Box<Job>>,
}

impl EmbeddedSettle {
    pub(super) fn new(store: Arc<Store>, seq: i64, job: &Job) -> Self {
        Self { store, seq, job: Some(Box::new(job.clone())) }
    }
}

#[async_trait]
impl Settle for EmbeddedSettle {
    async fn settle(mut self: Box<Self>, settlement: Settlement) -> Result<(), QueueError> {
        let Some(job) = self.job.as_ref() else {
            return Ok(());
        };
        let published = !settlement.results.is_empty();
        let entries = Entry::of_results(settlement.results, job.traceparent)?;
        let after = match settlement.then {
            Then::Done => After::Done(job.batch.to_string()),
            Then::Again(job, after) => After::Again(Row::of(&job)?, micros(after)),
            Then::Parked(job) => After::Again(Row::of(&job)?, 30_000_000),
            Then::Dead(job, reason) => After::Dead(Row::of(&job)?, reason),
        };
        let comes_again = matches!(after, After::Again(..));
        let (token, seq, id) = (self.store.membership().token(), self.seq, job.id);
        let met = self.store.write(move |db| jobs::settle(db, token, seq, id, &entries, &after)).await?;
        // Only now: a settlement that failed is a delivery that was dropped.
        self.job = None;
        if published {
            tell(&self.store.news().log);
        }
        if comes_again {
            tell(&self.store.news().jobs);
        }
        match met {
            Met::Settled => Ok(()),
            Met::TooLate => Err(QueueError::Away(
                "this process stood still for so long that its lease on the job ended, and another process has it"
                    .to_owned(),
            )),
        }
    }
}

impl Drop for EmbeddedSettle {
    fn drop(&mut self) {
        let Some(job) = self.job.take() else {
            return;
        };
        let (shared, seq) = (self.store.shared(), self.seq);
        self.store.write_unheard(move |db| {
            if jobs::dropped(db, shared.membership.token(), seq)?.is_some_and(|times| times >= MOST_DROPPED) {
                give_up(db, seq, &job)?;
                tell(&shared.news.log);
            }
            tell(&shared.news.jobs);
            Ok(())
        });
    }
}

/// A dead letter, with a failed result for every model: its batch still becomes complete.
fn give_up(db: &rusqlite::Connection, seq: i64, job: &Job) -> rusqlite::Result<()> {
    let failed = |model: &String| ImageResult {
        failure: Some(Failure {
            class: Reason::DeliveryLimit.as_str().to_owned(),
            message: format!("{MOST_DROPPED} workers took the job and ended badly; their logs say how"),
        }),
        ..ImageResult::of(job, model, Outcome::Dead)
    };
    let results = job.models.iter().map(failed).collect();
    match (Row::of(job), Entry::of_results(results, job.traceparent)) {
        (Ok(row), Ok(entries)) => jobs::bury_ready(db, seq, &row, &entries, Reason::DeliveryLimit),
        // It was read from this file, so it can be written to it.
        _ => Ok(()),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 4)
}
