//! What subscribers are sent, repetitions and all, up to a mark that the test sets at the end.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use pixfleet_shared::{
    batch::{BatchEvent, BatchState},
    id::Id,
    job::WIRE_VERSION,
    queue::{Filter, From, Queue, QueueError, Subscriber, Subscription},
    result::Announcement,
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::history::Seen;

/// The batch whose news is the mark: everything that was published before it has been sent by then.
const MARK: &str = "end-of-the-run";
/// After so much silence what has come is committed.
const QUIET: Duration = Duration::from_millis(200);
/// Commits in between: a durable subscriber is sent only so much ahead of them.
const COMMIT_EVERY: usize = 100;
/// How long a reader waits for the mark.
const PATIENCE: Duration = Duration::from_secs(60);

/// A result, and when and of whom it came.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// When.
    pub at: Instant,
    /// The result.
    pub seen: Seen,
    /// The worker that made its call.
    pub worker: Option<String>,
}

/// A durable subscriber that takes everything from its start on.
pub struct Collector {
    arrived: Arc<Mutex<Vec<Arrived>>>,
    news: watch::Receiver<usize>,
    task: JoinHandle<Result<(), QueueError>>,
}

impl Collector {
    /// Subscribes; what is published from now on will be there.
    pub async fn start(queue: &Arc<dyn Queue>, name: &str) -> Self {
        let subscription =
            Subscription { name: Some(name.to_owned()), from: From::Now, filter: Filter::default() };
        let subscriber = queue.subscribe(subscription).await.unwrap();
        let (arrived, (told, news)) = (Arc::new(Mutex::new(Vec::new())), watch::channel(0));
        let task = tokio::spawn(collect(subscriber, arrived.clone(), told));
        Self { arrived, news, task }
    }

    /// What has come so far.
    pub fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The ids of what has come after the first `count`.
    pub fn ids_after(&self, count: usize) -> Vec<Id> {
        let arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived[count..].iter().map(|one| one.seen.id).collect()
    }

    /// How many have come so far, repetitions among them.
    pub fn count(&self) -> usize {
        *self.news.borrow()
    }

    /// Waits until something more has come; answers whether it did within `patience`.
    pub async fn more(&mut self, patience: Duration) -> bool {
        matches!(timeout(patience, self.news.changed()).await, Ok(Ok(())))
    }

    /// Everything that came before the mark.
    pub async fn end(&mut self) -> Result<Vec<Arrived>, String> {
        let arrived = self.arrived.clone();
        match timeout(PATIENCE, &mut self.task).await {
            Ok(Ok(Ok(()))) => Ok(arrived.lock().unwrap_or_else(PoisonError::into_inner).clone()),
            Ok(Ok(Err(error))) => Err(format!("the durable subscriber ended: {error}")),
            Ok(Err(panic)) => Err(format!("the durable subscriber ended: {panic}")),
            Err(_) => Err("the durable subscriber never met the mark".to_owned()),
        }
    }
}

/// Sets the mark.
pub async fn mark(queue: &Arc<dyn Queue>) -> Result<(), QueueError> {
    let event = BatchEvent {
        v: WIRE_VERSION,
        batch: MARK.parse().unwrap(),
        state: BatchState::Opened,
        jobs: 0,
        results: 0,
        at: Timestamp::now(),
        tally: None,
    };
    queue.announce(event).await
}

/// Everything that the replay log has before the mark, from its beginning.
pub async fn replay(queue: &Arc<dyn Queue>) -> Result<Vec<Seen>, String> {
    let subscription = Subscription { name: None, from: From::Beginning, filter: Filter::default() };
    let mut log = queue.subscribe(subscription).await.map_err(|error| error.to_string())?;
    let mut seen = Vec::new();
    loop {
        match timeout(PATIENCE, log.next()).await {
            Ok(Ok(Announcement::Result(result, _))) => seen.push(Seen::from(&*result)),
            Ok(Ok(Announcement::Batch(event))) if event.batch.as_str() == MARK => return Ok(seen),
            Ok(Ok(Announcement::Batch(_))) => {}
            Ok(Err(error)) => return Err(format!("the replay log can't be read: {error}")),
            Err(_) => return Err(format!("the replay log is silent after {} results", seen.len())),
        }
    }
}

async fn collect(
    mut subscriber: Box<dyn Subscriber>,
    arrived: Arc<Mutex<Vec<Arrived>>>,
    told: watch::Sender<usize>,
) -> Result<(), QueueError> {
    let mut open = 0;
    loop {
        let Ok(next) = timeout(QUIET, subscriber.next()).await else {
            if open > 0 {
                subscriber.commit().await?;
                open = 0;
            }
            continue;
        };
        match next? {
            Announcement::Result(result, _) => {
                let worker = result.call.as_ref().map(|call| call.worker.clone());
                let one = Arrived { at: Instant::now(), seen: Seen::from(&*result), worker };
                let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
                arrived.push(one);
                told.send_replace(arrived.len());
            }
            Announcement::Batch(event) if event.batch.as_str() == MARK => return subscriber.commit().await,
            Announcement::Batch(_) => {}
        }
        open += 1;
        if open == COMMIT_EVERY {
            subscriber.commit().await?;
            open = 0;
        }
    }
}
