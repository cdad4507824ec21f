//! The ledger on the state file. A delivery that is completed is marked in the transaction that settles it, so what
//! is asked here is mostly known already; a look does not wait for the writer.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, params};

use super::{process::now_us, store::Store};
use crate::{
    id::Id,
    ledger::{Begun, Ledger, LedgerError},
};

/// Settled jobs, for as long as the file is kept: about 30 bytes each.
pub struct EmbeddedLedger {
    store: Arc<Store>,
}

impl EmbeddedLedger {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    async fn knows(&self, job: Id) -> Result<bool, LedgerError> {
        Ok(self.store.read(move |db| is_marked(db, job)).await?)
    }
}

#[async_trait]
impl Ledger for EmbeddedLedger {
    async fn begin(&self, job: Id) -> Result<Begun, LedgerError> {
        Ok(if self.knows(job).await? { Begun::Settled } else { Begun::Fresh })
    }

    async fn settled(&self, job: Id) -> Result<(), LedgerError> {
        if !self.knows(job).await? {
            self.store.write(move |db| mark(db, job)).await?;
        }
        Ok(())
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
