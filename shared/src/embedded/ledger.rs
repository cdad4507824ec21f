//! The ledger on the state file.
//!
//! An intent is on the disk before its call leaves: a process that is killed leaves it behind, and so does a machine
//! that loses its power. That is one more write for each call, and no more syncs for it where the file is busy: intents,
//! settlements and whatever else waits share a commit, so throughput is bound by commits, not by calls. How a turn ends is
//! kept by the transaction that settles it, and mostly what became of its call, too (see `untold`).
//!
//! Nothing is taken out of it by time. What is over is kept as long as the file, which is as long as its batches.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::civil::Date;
use rusqlite::Connection;
use tokio::time::timeout;

use super::{
    bill,
    counts::{self, Moved},
    deaths,
    store::Store,
    taken,
    turns::{self, Found},
    untold::{self, Told},
};
use crate::{
    id::Id,
    job::Job,
    ledger::{
        Answered, BillLine, End, Intent, Known, Ledger, LedgerError, Lost, Mark, Resolution, TakenUp,
        Unanswered,
    },
};

/// The longest wait for what was said to be stored.
const FLUSH: Duration = Duration::from_secs(10);

/// What is known of each call.
pub struct EmbeddedLedger {
    store: Arc<Store>,
}

impl EmbeddedLedger {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }
}

/// What was found, as the seam says it.
fn known(found: Found) -> Result<Known, LedgerError> {
    found
        .known()
        .map_err(|error| LedgerError::Away(format!("the state file's ledger can't be read: {error}")))
}

#[async_trait]
impl Ledger for EmbeddedLedger {
    async fn take_up(&self, job: &Job) -> Result<TakenUp, LedgerError> {
        let (shared, id, turn) = (self.store.shared(), job.id, job.turn());
        let take_up = move |db: &Connection| {
            let own = shared.membership.join(db)?;
            let (crashed, unsure) = taken::take_up(db, own, id)?;
            Ok((turns::look(db, id, turn, None)?, crashed, unsure))
        };
        let (found, crashed, unsure) = untold::write_after(&self.store, id, take_up).await?;
        Ok(TakenUp { known: known(found)?, crashed, unsure })
    }

    fn let_go(&self, job: &Job) {
        let (own, id) = (self.store.membership().token(), job.id);
        self.store.write_unheard(move |db| taken::let_go(db, own, id));
    }

    async fn depart(&self, intent: &Intent) -> Result<Known, LedgerError> {
        let (shared, job, intent) = (self.store.shared(), intent.job, intent.clone());
        // Made before anybody waits for it.
        let body = serde_json::to_vec(&intent)
            .map_err(|error| LedgerError::Away(format!("an intent can't be written: {error}")))?;
        let depart = move |db: &Connection| {
            let own = shared.membership.join(db)?;
            turns::depart(db, own, &intent, &body)
        };
        known(untold::write_after(&self.store, job, depart).await?)
    }

    fn answered(&self, intent: &Intent, answered: Answered) {
        let told = Told { intent: intent.clone(), answered };
        if matches!(told.answered, Answered::Unsent) {
            let own = self.store.membership().token();
            self.store.write_unheard(move |db| turns::answered(db, own, &told));
        } else {
            untold::tell(&self.store, told);
        }
    }

    async fn stands(&self, job: &Job) -> Result<bool, LedgerError> {
        let (id, turn) = (job.id, job.turn());
        let look = move |db: &Connection| turns::look(db, id, turn, None);
        Ok(!matches!(untold::write_after(&self.store, id, look).await?, turns::Found::Over))
    }

    fn lost(&self, intent: &Intent, then: Lost) {
        let intent = intent.clone();
        self.store.write_unheard(move |db| {
            turns::lost(db, &intent)?;
            bill::note(db, &intent, then)
        });
    }

    fn settled(&self, mark: Mark) {
        // Mostly the settlement has kept it.
        if self.store.untold().take_end(mark.job, mark.turn) {
            return;
        }
        let shared = self.store.shared();
        self.store.write_unheard(move |db| {
            let Mark { job, batch, turn, tally, end } = mark;
            let death = if end == End::Dead { Some(deaths::of(tally, &[], false)?) } else { None };
            if turns::end(db, job, turn, end, death.as_deref())? {
                let moved = Moved { tally, ..Moved::default() };
                let complete = counts::moved(db, shared.membership.token(), batch.as_str(), &moved)?;
                complete.into_iter().for_each(|batch| shared.completed.push(batch));
            }
            Ok(())
        });
    }

    async fn reopen(&self, job: &Job) -> Result<bool, LedgerError> {
        let job = job.clone();
        Ok(self.store.write(move |db| deaths::open_again(db, &job)).await?)
    }

    async fn flush(&self) {
        self.store.keep_untold();
        // One writer does everything in its order.
        let _ = timeout(FLUSH, self.store.write(|_| Ok(()))).await;
    }

    async fn days(&self) -> Result<Vec<Date>, LedgerError> {
        Ok(self.store.read(bill::days).await?)
    }

    async fn unanswered(&self, day: Date) -> Result<Vec<Unanswered>, LedgerError> {
        Ok(self.store.read(move |db| bill::unanswered(db, day)).await?)
    }

    async fn resolve(&self, day: Date, call: Id, resolution: &Resolution) -> Result<bool, LedgerError> {
        let resolution = resolution.clone();
        Ok(self.store.write(move |db| bill::resolve(db, day, call, &resolution)).await?)
    }

    async fn bill(&self, day: Date) -> Result<Vec<BillLine>, LedgerError> {
        Ok(self.store.read(move |db| bill::lines(db, day)).await?)
    }
}
