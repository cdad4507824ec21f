//! The engine: wires the links, the publisher, the intake and the subscribers to the [`Queue`] seam.

mod depths;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    config::Config,
    dead, earlier, intake,
    link::{CONSUME, Link, PUBLISH, State, Up},
    parking,
    publisher::Publisher,
    settle::{announcement_message, job_message},
    subscriber::RabbitSubscriber,
    topology::JOBS_EXCHANGE,
};
use crate::{
    batch::{BatchEvent, BatchName},
    job::{Job, Priority},
    queue::{DeadLetters, Intake, Queue, QueueError, Subscriber, Subscription},
    result::Announcement,
};

pub use depths::LaneDepth;

/// Time for the broker to answer a question.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for tasks to end when the queue is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The queue on RabbitMQ.
pub struct RabbitQueue {
    config: Config,
    publishing: Link,
    consuming: Link,
    publisher: Publisher,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl RabbitQueue {
    /// Starts to connect and returns at once: whoever uses the queue waits for the broker. Call within a runtime.
    pub fn start(config: Config) -> Arc<Self> {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let publishing = Link::start(PUBLISH, config.clone(), &tasks, stop.clone());
        let consuming = Link::start(CONSUME, config.clone(), &tasks, stop.clone());
        let publisher = Publisher::start(publishing.clone(), &config, &tasks, stop.clone());
        Arc::new(Self { config, publishing, consuming, publisher, tasks, stop })
    }

    /// Starts, and waits for the broker within the connect timeout.
    ///
    /// # Errors
    /// [`QueueError`] that names the broker and says what is wrong with it.
    pub async fn connect(config: Config) -> Result<Arc<Self>, QueueError> {
        let queue = Self::start(config);
        match queue.ready(queue.config.connect_timeout()).await {
            Ok(()) => Ok(queue),
            Err(error) => {
                queue.close().await;
                Err(error)
            }
        }
    }

    async fn ready(&self, patience: Duration) -> Result<(), QueueError> {
        let (mut publishing, mut consuming) = (self.publishing.clone(), self.consuming.clone());
        let both = async {
            publishing.up().await;
            consuming.up().await;
        };
        let watch = async {
            let mut link = self.publishing.clone();
            loop {
                if let State::Down(error @ QueueError::Topology(_)) = link.state() {
                    return error;
                }
                link.changed().await;
            }
        };
        tokio::select! {
            waited = timeout(patience, both) => match (waited, self.publishing.state()) {
                (Ok(()), _) => Ok(()),
                (Err(_), State::Down(error)) => Err(self.named(error)),
                (Err(_), State::Up(_)) => Err(self.named(QueueError::Away("only half connected".to_owned()))),
            },
            error = watch => Err(error),
        }
    }

    /// The consuming connection, once it is up; within the connect timeout.
    async fn up(&self) -> Result<Up, QueueError> {
        let mut link = self.consuming.clone();
        match (timeout(self.config.connect_timeout(), link.up()).await, self.consuming.state()) {
            (Ok(up), _) => Ok(up),
            (Err(_), State::Down(error)) => Err(self.named(error)),
            (Err(_), State::Up(_)) => Err(self.named(QueueError::Away("it comes and goes".to_owned()))),
        }
    }

    fn named(&self, error: QueueError) -> QueueError {
        match error {
            QueueError::Away(why) => QueueError::Away(format!(
                "RabbitMQ at {} can't be used: {why}. Is it running? `rabbitmq.url` says where it is",
                self.config.endpoint()
            )),
            other => other,
        }
    }
}

#[async_trait]
impl Queue for RabbitQueue {
    async fn open_lane(&self, priority: Priority) -> Result<u8, QueueError> {
        // Between equals chance decides, or every first batch would meet in lane 0.
        let depths = self.depths_of(priority).await?.into_iter();
        let emptiest = depths.map(|depth| (depth.ready, rand::random::<u32>(), depth.lane)).min();
        Ok(emptiest.map_or(0, |(_, _, lane)| lane))
    }

    async fn enqueue(&self, jobs: Vec<Job>) -> Result<(), QueueError> {
        let messages: Result<_, _> =
            jobs.iter().map(|job| job_message(job, JOBS_EXCHANGE.to_owned())).collect();
        self.publisher.publish(messages?).await
    }

    async fn announce(&self, event: BatchEvent) -> Result<(), QueueError> {
        let message = announcement_message(&Announcement::Batch(event))?;
        self.publisher.publish(vec![message]).await
    }

    async fn receive(&self, prefetch: watch::Receiver<u16>) -> Result<Box<dyn Intake>, QueueError> {
        let (link, publisher) = (self.consuming.clone(), self.publisher.clone());
        let stop = self.stop.child_token();
        Ok(Box::new(intake::start(link, publisher, self.config.lanes, prefetch, &self.tasks, stop)))
    }

    async fn subscribe(&self, subscription: Subscription) -> Result<Box<dyn Subscriber>, QueueError> {
        let link = self.consuming.clone();
        Ok(Box::new(RabbitSubscriber::open(link, self.config.lanes, subscription).await?))
    }

    async fn prepare_parking(&self, batch: &BatchName) -> Result<(), QueueError> {
        parking::prepare(&self.up().await?, batch).await
    }

    async fn parked(&self, batch: &BatchName) -> Result<u64, QueueError> {
        parking::parked(&self.up().await?, batch).await
    }

    async fn unpark(&self, batch: &BatchName) -> Result<u64, QueueError> {
        parking::unpark(&self.up().await?, &self.publisher, batch).await
    }

    async fn dead_letters(&self) -> Result<Box<dyn DeadLetters>, QueueError> {
        let up = self.up().await?;
        earlier::bring_over(&up, &self.publisher).await?;
        Ok(Box::new(dead::open(up, self.publisher.clone()).await?))
    }

    fn health(&self) -> Result<(), String> {
        for (name, link) in [(PUBLISH, &self.publishing), (CONSUME, &self.consuming)] {
            match link.state() {
                State::Down(error) => return Err(format!("RabbitMQ {name} connection: {error}")),
                State::Up(up) if up.blocked => {
                    return Err("RabbitMQ takes no publishes now (memory or disk alarm)".to_owned());
                }
                State::Up(_) => {}
            }
        }
        self.publisher.trouble().map_or(Ok(()), Err)
    }

    async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        let _ = timeout(CLOSE_TIMEOUT, self.tasks.wait()).await;
    }
}

/// A queue that is dropped unclosed leaves no task behind.
impl Drop for RabbitQueue {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
