//! The ledger on the state file. A delivery that is completed is marked in the transaction that settles it, so what
//! is asked here is mostly known already; a look does not wait for the writer.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::civil::Date;
use rusqlite::{Connection, params};
use tokio::sync::watch;

use super::{process::now_us, store::Store};
use crate::{
    answers::{Answers, Kept, Recalled},
    batch::BatchName,
    batches::{Batches, Expected, Held, Hold, Progress},
    id::Id,
    job::Job,
    ledger::{
        Answered, BillLine, End, Intent, Known, Ledger, LedgerError, Lost, Mark, Resolution, TakenUp,
        Unanswered,
    },
};

/// Settled jobs, for as long as the file is kept: about 30 bytes each.
pub struct EmbeddedLedger {
    store: Arc<Store>,
}

impl EmbeddedLedger {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    async fn known(&self, job: Id) -> Result<Known, LedgerError> {
        let marked = self.store.read(move |db| is_marked(db, job)).await?;
        Ok(if marked { Known::Over } else { Known::Clear })
    }
}

#[async_trait]
impl Ledger for EmbeddedLedger {
    fn settled(&self, mark: Mark) {
        if mark.end == End::Done {
            self.store.write_unheard(move |db| self::mark(db, mark.job));
        }
    }

    async fn take_up(&self, job: &Job) -> Result<TakenUp, LedgerError> {
        Ok(TakenUp { known: self.known(job.id).await?, crashed: 0, unsure: 0 })
    }

    fn let_go(&self, _job: &Job) {}

    async fn depart(&self, intent: &Intent) -> Result<Known, LedgerError> {
        self.known(intent.job).await
    }

    fn answered(&self, _intent: &Intent, _answered: Answered) {}

    fn lost(&self, _intent: &Intent, _then: Lost) {}

    async fn reopen(&self, _job: &Job) -> Result<bool, LedgerError> {
        Ok(true)
    }

    async fn flush(&self) {}

    async fn days(&self) -> Result<Vec<Date>, LedgerError> {
        Ok(Vec::new())
    }

    async fn unanswered(&self, _day: Date) -> Result<Vec<Unanswered>, LedgerError> {
        Ok(Vec::new())
    }

    async fn resolve(&self, _day: Date, _call: Id, _resolution: &Resolution) -> Result<bool, LedgerError> {
        Ok(false)
    }

    async fn bill(&self, _day: Date) -> Result<Vec<BillLine>, LedgerError> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl Answers for EmbeddedLedger {
    async fn recall(&self, keys: &[Id], _claim_for: Duration) -> Result<Vec<Recalled>, LedgerError> {
        Ok(keys.iter().map(|_| Recalled::Claimed).collect())
    }

    fn keep(&self, _key: Id, _kept: Kept, _ttl: Duration) {}

    fn give_up(&self, _key: Id) {}
}

#[async_trait]
impl Batches for EmbeddedLedger {
    async fn expect(&self, _expected: &Expected) -> Result<(), LedgerError> {
        Ok(())
    }

    fn held(&self, _batch: &BatchName) -> Option<Hold> {
        None
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    async fn hold(&self, _batch: &BatchName, held: Option<Held>) -> Result<Option<Held>, LedgerError> {
        Ok(held)
    }

    async fn progress(&self, _batch: &BatchName) -> Result<Option<Progress>, LedgerError> {
        Ok(None)
    }

    async fn list(&self) -> Result<Vec<Progress>, LedgerError> {
        Ok(Vec::new())
    }

    async fn complete(&self) -> Progress {
        std::future::pending().await
    }
}

/// Marks a job as settled.
pub(super) fn mark(db: &Connection, job: Id) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO settled (job, at_us) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
        .execute(params![job.to_bytes(), now_us() as i64])
        .map(drop)
}

fn is_marked(db: &Connection, job: Id) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT EXISTS (SELECT 1 FROM settled WHERE job = ?1)")?
        .query_row([job.to_bytes()], |row| row.get(0))
}
