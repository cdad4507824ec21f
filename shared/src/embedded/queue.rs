//! The queue on the state file.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use super::{
    counts, dead_letters, intake, jobs,
    lending::{self, Served},
    log::{self, Entry},
    parking,
    store::{Store, tell},
    subscriber,
};
use crate::{
    batch::{BatchEvent, BatchName},
    job::{Job, Priority},
    queue::{DeadLetters, Intake, Queue, QueueError, Subscriber, Subscription},
    result::Announcement,
};

/// Jobs that are put back in one transaction.
const UNPARKED: usize = 1_000;

/// The queue on the state file.
pub struct EmbeddedQueue {
    store: Arc<Store>,
    /// Whose jobs it lends.
    served: Served,
}

impl EmbeddedQueue {
    pub(super) fn new(store: Arc<Store>, served: Served) -> Self {
        Self { store, served }
    }
}

#[async_trait]
impl Queue for EmbeddedQueue {
    async fn open_lane(&self, priority: Priority) -> Result<u8, QueueError> {
        // Between equals chance decides, or every first batch would meet in lane 0.
        let chance: [u32; lending::LANES as usize] = rand::random();
        Ok(self.store.read(move |db| lending::emptiest(db, priority, &chance)).await?)
    }

    async fn enqueue(&self, jobs: Vec<Job>) -> Result<(), QueueError> {
        let rows: Vec<jobs::Row> = jobs.iter().map(jobs::Row::of).collect::<Result<_, _>>()?;
        self.store.write(move |db| jobs::put(db, &rows)).await?;
        tell(&self.store.news().jobs);
        Ok(())
    }

    async fn announce(&self, event: BatchEvent) -> Result<(), QueueError> {
        let own = self.store.membership().token();
        let entry = Entry::of(Announcement::Batch(event.clone()))?;
        let announce = move |db: &rusqlite::Connection| {
            log::append(db, &[entry])?;
            counts::announced(db, own, &event)
        };
        let complete = self.store.write(announce).await?;
        complete.into_iter().for_each(|batch| self.store.shared().completed.push(batch));
        tell(&self.store.news().log);
        Ok(())
    }

    async fn receive(&self, prefetch: watch::Receiver<u16>) -> Result<Box<dyn Intake>, QueueError> {
        Ok(Box::new(intake::start(self.store.clone(), self.served.clone(), prefetch)))
    }

    async fn subscribe(&self, subscription: Subscription) -> Result<Box<dyn Subscriber>, QueueError> {
        Ok(Box::new(subscriber::open(self.store.clone(), subscription).await?))
    }

    async fn prepare_parking(&self, batch: &BatchName) -> Result<(), QueueError> {
        let batch = batch.to_string();
        Ok(self.store.write(move |db| parking::prepare(db, &batch)).await?)
    }

    async fn parked(&self, batch: &BatchName) -> Result<u64, QueueError> {
        let batch = batch.to_string();
        Ok(self.store.read(move |db| parking::count(db, &batch)).await?)
    }

    async fn unpark(&self, batch: &BatchName) -> Result<u64, QueueError> {
        let mut all = 0;
        loop {
            let batch = batch.to_string();
            let some = self.store.write(move |db| parking::put_back(db, &batch, UNPARKED)).await?;
            if some == 0 {
                return Ok(all);
            }
            all += some as u64;
            tell(&self.store.news().jobs);
        }
    }

    async fn dead_letters(&self) -> Result<Box<dyn DeadLetters>, QueueError> {
        Ok(Box::new(dead_letters::open(self.store.clone()).await?))
    }

    fn health(&self) -> Result<(), String> {
        self.store.failure().map_or(Ok(()), |failure| Err(failure.to_string()))
    }

    async fn close(&self) {
        self.store.close().await;
    }
}
