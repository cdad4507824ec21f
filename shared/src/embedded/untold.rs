//! What became of calls, for the moment between their answer and its keeping.
//!
//! A settlement follows an answer at once, and one transaction then keeps both: an answer of its own would be written
//! and taken away again for each call. Where no settlement follows within milliseconds, the answer is kept by itself. A
//! process that dies in between leaves an intent, and so a call that is listed as unanswered: never one that nobody knows of.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rusqlite::Connection;
use tokio::time::sleep;

use super::{store::Store, trouble::StoreError, turns};
use crate::{
    id::Id,
    ledger::{Answered, Intent},
};

/// So long an answer waits for its settlement.
const PATIENCE: Duration = Duration::from_millis(5);
/// Pause before a file that failed is asked again.
const PAUSE: Duration = Duration::from_millis(250);
/// Ends of turns that are remembered until they are said a second time. One that is forgotten costs a look.
const MOST_ENDS: usize = 10_000;

/// What became of a call.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) intent: Intent,
    pub(super) answered: Answered,
}

/// What was said to this process, and is not on its way to the file yet.
#[derive(Debug, Default)]
pub(super) struct Untold {
    /// By job: it has one call at a time.
    answers: Mutex<HashMap<Id, Arc<Told>>>,
    /// Turns whose end the settlement has kept.
    ends: Mutex<HashSet<(Id, u64)>>,
}

fn locked<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Untold {
    fn take(&self, job: Id) -> Option<Arc<Told>> {
        locked(&self.answers).remove(&job)
    }

    fn take_this(&self, told: &Arc<Told>) -> bool {
        let mut answers = locked(&self.answers);
        let there = answers.get(&told.intent.job).is_some_and(|there| Arc::ptr_eq(there, told));
        there && answers.remove(&told.intent.job).is_some()
    }

    /// All of it, for a file that is about to close.
    pub(super) fn take_all(&self) -> Vec<Arc<Told>> {
        locked(&self.answers).drain().map(|(_, told)| told).collect()
    }

    /// The end of a turn was kept together with its settlement.
    pub(super) fn note_end(&self, job: Id, turn: u64) {
        let mut ends = locked(&self.ends);
        if ends.len() >= MOST_ENDS {
            ends.clear();
        }
        ends.insert((job, turn));
    }

    /// Whether it was; asked once.
    pub(super) fn take_end(&self, job: Id, turn: u64) -> bool {
        locked(&self.ends).remove(&(job, turn))
    }
}

/// Keeps what became of a call: with its settlement, if that follows, else soon.
pub(super) fn tell(store: &Arc<Store>, told: Told) {
    let told = Arc::new(told);
    let earlier = locked(&store.untold().answers).insert(told.intent.job, told.clone());
    if let Some(earlier) = earlier {
        keep(store, &earlier);
    }
    keep_after(store, told, PATIENCE);
}

fn keep(store: &Store, told: &Arc<Told>) {
    let (own, told) = (store.membership().token(), told.clone());
    store.write_unheard(move |db| turns::answered(db, own, &told));
}

fn keep_after(store: &Arc<Store>, told: Arc<Told>, pause: Duration) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        if store.untold().take_this(&told) {
            keep(store, &told);
        }
        return;
    };
    // The file may close meanwhile: it keeps what it was told first.
    let store = Arc::downgrade(store);
    runtime.spawn(async move {
        sleep(pause).await;
        let Some(store) = store.upgrade() else { return };
        if store.untold().take_this(&told) {
            // What failed was put back, and is tried again.
            let own = store.membership().token();
            let _ = with(&store, Some(told), move |db, told| keep_first(db, own, told)).await;
        }
    });
}

/// Does `work` in a transaction that is told what became of the job's call, if that is not kept yet, and keeps it.
///
/// # Errors
/// What SQLite said. What became of the call is not forgotten then.
pub(super) async fn write_with<T: Send + 'static>(
    store: &Arc<Store>,
    job: Id,
    work: impl FnOnce(&Connection, Option<&Told>) -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let told = store.untold().take(job);
    with(store, told, work).await
}

/// The same, for `work` that has nothing to do with what became of the call: that is kept first.
///
/// # Errors
/// As [`write_with`].
pub(super) async fn write_after<T: Send + 'static>(
    store: &Arc<Store>,
    job: Id,
    work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let (own, told) = (store.membership().token(), store.untold().take(job));
    let first = move |db: &Connection, told: Option<&Told>| {
        keep_first(db, own, told)?;
        work(db)
    };
    with(store, told, first).await
}

fn keep_first(db: &Connection, own: i64, told: Option<&Told>) -> rusqlite::Result<()> {
    told.map_or(Ok(()), |told| turns::answered(db, own, told))
}

async fn with<T: Send + 'static>(
    store: &Arc<Store>,
    told: Option<Arc<Told>>,
    work: impl FnOnce(&Connection, Option<&Told>) -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let known = told.clone();
    let done = store.write(move |db| work(db, known.as_deref())).await;
    if let (Err(error), Some(told)) = (&done, told)
        && !error.is_final()
        && *error != StoreError::Closed
    {
        locked(&store.untold().answers).entry(told.intent.job).or_insert_with(|| told.clone());
        keep_after(store, told, PAUSE);
    }
    done
}
