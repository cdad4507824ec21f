//! The batches on the state file. Whatever some process writes of them, the others read within a twentieth of a second.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    counts,
    process::now_us,
    standing,
    store::{Shared, Store, tell},
    trouble::StoreError,
};
use crate::{
    batch::BatchName,
    batches::{Batches, Expected, Held, Hold, Progress},
    ledger::LedgerError,
};

/// How often a waiting process looks whether somebody died who was to tell of a complete batch.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Batches that became complete by what this process wrote, until they are told of.
#[derive(Debug, Default)]
pub(super) struct Completed {
    batches: Mutex<VecDeque<Progress>>,
    some: Notify,
}

impl Completed {
    pub(super) fn push(&self, batch: Progress) {
        locked(&self.batches).push_back(batch);
        self.some.notify_one();
    }

    fn pop(&self) -> Option<Progress> {
        locked(&self.batches).pop_front()
    }
}

fn locked<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is known of each batch.
pub struct EmbeddedBatches {
    store: Arc<Store>,
    holds: Arc<Holds>,
    /// Ends the task that hears of other processes' words.
    _ears: DropGuard,
}

/// What keeps batches, as far as this process knows.
#[derive(Default)]
struct Holds {
    known: Mutex<HashMap<BatchName, Hold>>,
    changes: watch::Sender<u64>,
    /// Held from a look to its keeping: a later look is never undone by an earlier one.
    looking: tokio::sync::Mutex<()>,
}

impl Holds {
    async fn look(&self, store: &Store) -> Result<(), StoreError> {
        let _looking = self.looking.lock().await;
        let found: HashMap<BatchName, Hold> = store.read(standing::holds).await?.into_iter().collect();
        let changed = *locked(&self.known) != found;
        if changed {
            *locked(&self.known) = found;
            tell(&self.changes);
        }
        Ok(())
    }
}

impl EmbeddedBatches {
    pub(super) async fn open(store: Arc<Store>) -> Result<Self, StoreError> {
        let (holds, stop) = (Arc::new(Holds::default()), CancellationToken::new());
        let mut foreign = store.news().foreign.subscribe();
        holds.look(&store).await?;
        let (ears, weak, stopped) = (holds.clone(), Arc::downgrade(&store), stop.clone());
        tokio::spawn(stopped.run_until_cancelled_owned(async move {
            while foreign.changed().await.is_ok() {
                let Some(store) = weak.upgrade() else { return };
                if ears.look(&store).await == Err(StoreError::Closed) {
                    return;
                }
            }
        }));
        Ok(Self { store, holds, _ears: stop.drop_guard() })
    }

    /// Takes over from processes that died before they told of a complete batch.
    async fn look_for_the_gone(&self) {
        let own = self.store.membership().token();
        let gone = self.store.read(move |db| standing::is_somebody_gone(db, own)).await;
        if gone == Ok(true) {
            let shared = self.store.shared();
            // Not awaited: whoever waits here may be dropped, and nobody would tell of it.
            self.store.write_unheard(move |db| take_over(db, &shared));
        }
    }
}

fn take_over(db: &rusqlite::Connection, shared: &Shared) -> rusqlite::Result<()> {
    let own = shared.membership.join(db)?;
    standing::take_over(db, own)?.into_iter().for_each(|batch| shared.completed.push(batch));
    Ok(())
}

#[async_trait]
impl Batches for EmbeddedBatches {
    async fn expect(&self, expected: &Expected) -> Result<(), LedgerError> {
        let (own, expected) = (self.store.membership().token(), expected.clone());
        let complete = self.store.write(move |db| counts::expect(db, own, &expected)).await?;
        complete.into_iter().for_each(|batch| self.store.shared().completed.push(batch));
        Ok(())
    }

    fn held(&self, batch: &BatchName) -> Option<Hold> {
        locked(&self.holds.known).get(batch).copied()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.holds.changes.subscribe()
    }

    async fn hold(&self, batch: &BatchName, held: Option<Held>) -> Result<Option<Held>, LedgerError> {
        let batch = batch.to_string();
        let holds = self.store.write(move |db| standing::hold(db, &batch, held, now_us())).await?;
        self.holds.look(&self.store).await?;
        Ok(holds)
    }

    async fn progress(&self, batch: &BatchName) -> Result<Option<Progress>, LedgerError> {
        let batch = batch.to_string();
        Ok(self.store.read(move |db| standing::one(db, &batch)).await?)
    }

    async fn list(&self) -> Result<Vec<Progress>, LedgerError> {
        Ok(self.store.read(standing::all).await?)
    }

    async fn complete(&self) -> Progress {
        let completed = &self.store.shared().completed;
        let mut look_at = Instant::now();
        loop {
            if let Some(batch) = completed.pop() {
                return batch;
            }
            if look_at <= Instant::now() {
                self.look_for_the_gone().await;
                look_at = Instant::now() + LOOK_EVERY;
            }
            let _ = timeout(LOOK_EVERY, completed.some.notified()).await;
        }
    }
}
