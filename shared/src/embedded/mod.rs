//! The engine for one machine: queue, limits and ledger in one SQLite file, with no server at all.
//!
//! Any number of processes may use the file at once. `store` is the file, `serving` its two threads and `task` what they
//! do; `file` opens it, `process` knows who else uses it. `jobs`, `lending`, `letters`, `parking`, `log`, `turns`, `taken`, `bill`,
//! `kept`, `counts`, `deaths`, `counted`, `standing` and `limits` hold every SQL statement; `queue`, `intake`, `settle`, `dead_letters`,
//! `subscriber`, `ledger`, `answers`, `batches` and `limiter` are the seams over them, `untold` is what the ledger keeps in
//! memory for a moment, and `allowance` is the limiter's arithmetic.

mod allowance;
mod answers;
mod batches;
mod bill;
mod counted;
mod counts;
mod dead_letters;
mod deaths;
mod file;
mod intake;
mod jobs;
mod json;
mod kept;
mod ledger;
mod lending;
mod letters;
mod limiter;
mod limits;
mod log;
mod parking;
mod process;
mod queue;
mod serving;
mod settle;
mod standing;
mod store;
mod subscriber;
mod taken;
mod task;
mod trouble;
mod turns;
mod untold;

use std::{path::Path, sync::Arc};

use self::lending::Served;
use crate::{
    answers::Answers,
    batch::BatchName,
    batches::Batches,
    ledger::Ledger,
    limiter::RateLimiter,
    queue::{Filter, Queue},
    result::Announcement,
};

pub use answers::EmbeddedAnswers;
pub use batches::EmbeddedBatches;
pub use counted::{BatchCounts, CallCounts, FailureCount};
pub use jobs::{Row, put};
pub use ledger::EmbeddedLedger;
pub use limiter::EmbeddedLimiter;
pub use process::is_member;
pub use queue::EmbeddedQueue;
pub use store::Store;
pub use trouble::StoreError;

/// The seams of one state file. Cheap to share.
#[derive(Clone)]
pub struct Embedded {
    store: Arc<Store>,
    queue: Arc<EmbeddedQueue>,
    limiter: Arc<EmbeddedLimiter>,
    ledger: Arc<EmbeddedLedger>,
    answers: Arc<EmbeddedAnswers>,
    batches: Arc<EmbeddedBatches>,
}

impl Embedded {
    /// Opens the state file at `path`, or begins one. Call within a Tokio runtime.
    ///
    /// # Errors
    /// [`StoreError`]: a folder that can't be written, a file that is not a state file, or one of a later version.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let store = Store::open(path)?;
        Ok(Self {
            queue: Arc::new(EmbeddedQueue::new(store.clone(), Served::All)),
            limiter: EmbeddedLimiter::open(store.clone()).await?,
            ledger: Arc::new(EmbeddedLedger::new(store.clone())),
            answers: Arc::new(EmbeddedAnswers::new(store.clone())),
            batches: Arc::new(EmbeddedBatches::open(store.clone()).await?),
            store,
        })
    }

    /// The file itself.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The queue.
    pub fn queue(&self) -> Arc<dyn Queue> {
        self.queue.clone()
    }

    /// The queue as a worker sees it that knows these providers alone: others' jobs are left to whoever knows them.
    pub fn queue_of(&self, providers: Vec<String>) -> Arc<dyn Queue> {
        Arc::new(EmbeddedQueue::new(self.store.clone(), Served::Of(providers)))
    }

    /// The limiter.
    pub fn limiter(&self) -> Arc<dyn RateLimiter> {
        self.limiter.clone()
    }

    /// The ledger.
    pub fn ledger(&self) -> Arc<dyn Ledger> {
        self.ledger.clone()
    }

    /// What was answered before.
    pub fn answers(&self) -> Arc<dyn Answers> {
        self.answers.clone()
    }

    /// What is known of each batch.
    pub fn batches(&self) -> Arc<dyn Batches> {
        self.batches.clone()
    }

    /// Keeps what is unused of the limits, and closes the file. What other handles ask of it is refused from then on.
    pub async fn close(&self) {
        self.limiter.give_back().await;
        self.store.close().await;
    }
}

/// What a look at a state file shows.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Status {
    /// Its batches, by name.
    pub batches: Vec<BatchCounts>,
    /// Jobs that processes have in hand now.
    pub lent: u64,
    /// Jobs that wait for their next attempt.
    pub waiting: u64,
    /// Jobs that are set aside, because their batch is paused.
    pub parked: u64,
    /// Processes that work on it now.
    pub processes: u64,
    /// What is known of each limit stack.
    pub limits: Vec<limits::Standing>,
}

impl Store {
    /// What the file holds.
    ///
    /// # Errors
    /// What SQLite said.
    pub async fn status(&self) -> Result<Status, StoreError> {
        self.read(|db| {
            let count = |state: &str| -> rusqlite::Result<u64> {
                let query = format!("SELECT count(*) FROM jobs WHERE state = {state}");
                db.query_row(&query, [], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
            };
            Ok(Status {
                batches: counted::read(db, None)?,
                lent: count("1")?,
                waiting: count("2")?,
                parked: count("3")?,
                processes: process::members(db)?,
                limits: limits::standings(db)?,
            })
        })
        .await
    }

    /// Where `batch` stands; nothing where the file does not know it.
    ///
    /// # Errors
    /// What SQLite said.
    pub async fn batch(&self, batch: &BatchName) -> Result<Option<BatchCounts>, StoreError> {
        let batch = batch.to_string();
        self.read(move |db| Ok(counted::read(db, Some(&batch))?.pop())).await
    }

    /// Up to `most` announcements of the log after the position `after` that `filter` wants, and the position to go
    /// on from.
    ///
    /// # Errors
    /// What SQLite said.
    pub async fn log(
        &self,
        after: i64,
        most: usize,
        filter: Filter,
    ) -> Result<(Vec<Announcement>, i64), StoreError> {
        let (found, end) = self.read(move |db| log::page(db, after, most, &filter)).await?;
        Ok((found.into_iter().map(|(_, announcement)| announcement).collect(), end))
    }

    /// A number that moves whenever something was published.
    pub fn published(&self) -> tokio::sync::watch::Receiver<u64> {
        self.news().log.subscribe()
    }

    /// Jobs were put into the file by [`put`]: whoever waits for some looks again.
    pub fn jobs_were_put(&self) {
        store::tell(&self.news().jobs);
    }

    /// How far the reader `name` of the log is, and the note that it left there; none before its first commit.
    ///
    /// # Errors
    /// What SQLite said.
    pub async fn reader(&self, name: &str) -> Result<Option<(i64, Option<String>)>, StoreError> {
        let name = name.to_owned();
        self.read(move |db| log::committed(db, &name)).await
    }

    /// The reader `name` has done with the log up to `position`, and leaves a note for its next run.
    ///
    /// # Errors
    /// What SQLite said.
    pub async fn commit_reader(&self, name: &str, position: i64, note: String) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.write(move |db| log::commit(db, &name, position, Some(&note))).await
    }

    /// The reader `name` has never been: what it reads into is nobody's any more.
    ///
    /// # Errors
    /// What SQLite said.
    pub async fn forget_reader(&self, name: &str) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.write(move |db| log::forget(db, &name)).await
    }

    /// This process's token in the file, as a member that holds things there. For [`is_member`].
    pub fn token(&self) -> i64 {
        self.membership().token()
    }

    /// Makes this process a member within a transaction: what it holds is kept from others while it lives.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn join(&self, db: &rusqlite::Connection) -> rusqlite::Result<i64> {
        self.membership().join(db)
    }
}
