//! Ends one delivery of the state file: everything that follows from it is one transaction.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;

use super::{
    jobs::{self, After, Met, Row, Settling},
    log::Entry,
    store::{Shared, Store, tell},
    untold,
};
use crate::{
    batch::Tally,
    job::Job,
    ledger::End,
    queue::{Death, QueueError, Reason, Settle, Settlement, Steps, Then},
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

/// What a settlement of `job` keeps.
fn settling(seq: i64, job: &Job, settlement: Settlement) -> Result<Settling, QueueError> {
    let Settlement { results, then } = settlement;
    let end = match &then {
        Then::Done => Some(End::Done),
        Then::Again(next, _) if next.turn() > job.turn() => Some(End::Again),
        Then::Again(..) | Then::Parked(_) => None,
        Then::Dead(..) => Some(End::Dead),
    };
    let after = match then {
        Then::Done => After::Done,
        Then::Again(job, after) => After::Again(Row::of(&job)?, micros(after)),
        Then::Parked(job) => After::Parked(Row::of(&job)?),
        Then::Dead(job, reason) => After::Dead(Row::of(&job)?, Death::of(reason, &results, Timestamp::now())),
    };
    let (batch, tally) = (job.batch.to_string(), Tally::of(&results));
    let entries = Entry::of_results(results, job.traceparent)?;
    Ok(Settling { seq, job: job.id, turn: job.turn(), batch, entries, after, end, tally })
}

#[async_trait]
impl Settle for EmbeddedSettle {
    async fn settle(
        mut self: Box<Self>,
        settlement: Settlement,
        _steps: Steps<'_>,
    ) -> Result<(), QueueError> {
        let Some(job) = self.job.as_ref() else {
            return Ok(());
        };
        let published = !settlement.results.is_empty();
        let settling = settling(self.seq, job, settlement)?;
        let comes_again = matches!(settling.after, After::Again(..) | After::Parked(_));
        let (token, id, turn) = (self.store.membership().token(), job.id, job.turn());
        let settle = move |db: &rusqlite::Connection, told: Option<&untold::Told>| {
            jobs::settle(db, token, &settling, told)
        };
        let Met { in_time, news, complete } = untold::write_with(&self.store, id, settle).await?;
        // Only now: a settlement that failed is a delivery that was dropped.
        self.job = None;
        if news {
            self.store.untold().note_end(id, turn);
        }
        let shared = self.store.shared();
        complete.into_iter().for_each(|batch| shared.completed.push(batch));
        if published {
            tell(&shared.news.log);
        }
        if comes_again {
            tell(&shared.news.jobs);
        }
        if in_time {
            return Ok(());
        }
        Err(QueueError::Away(
            "this process stood still for so long that its lease on the job ended, and another process has it"
                .to_owned(),
        ))
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
                give_up(db, &shared, seq, &job)?;
                tell(&shared.news.log);
            }
            tell(&shared.news.jobs);
            Ok(())
        });
    }
}

/// A dead letter, with a failed result for every model: its batch still becomes complete.
fn give_up(db: &rusqlite::Connection, shared: &Shared, seq: i64, job: &Job) -> rusqlite::Result<()> {
    let failed = |model: &String| ImageResult {
        failure: Some(Failure {
            class: Reason::DeliveryLimit.as_str().to_owned(),
            message: format!("{MOST_DROPPED} workers took the job and ended badly; their logs say how"),
        }),
        ..ImageResult::of(job, model, Outcome::Dead)
    };
    let results = job.models.iter().map(failed).collect();
    let then = Then::Dead(Box::new(job.clone()), Reason::DeliveryLimit);
    // It was read from this file, so it can be written to it.
    let Ok(settling) = settling(seq, job, Settlement { results, then }) else {
        return Ok(());
    };
    let met = jobs::finish(db, shared.membership.token(), &settling, None)?;
    met.complete.into_iter().for_each(|batch| shared.completed.push(batch));
    Ok(())
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 4)
}
