//! One consuming channel: a consumer on every lane, what they received, and whose turn it is.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use lapin::{
    Channel, Consumer, Error,
    message::Delivery as Message,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::time::timeout;
use tracing::debug;

use super::{
    link::Up,
    topology::{self, job_queue},
};
use crate::{
    job::{Job, Priority, Unreadable},
    lanes::{Turns, weight, weight_of},
    queue::QueueError,
};

/// Time for a request on the channel (qos, consume, cancel).
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A lane: its priority, and its number among that priority's.
pub(super) type LaneKey = (Priority, u8);

/// One channel with a consumer on every lane.
pub(super) struct Session {
    pub(super) channel: Arc<Channel>,
    lanes: Vec<Lane>,
    turns: Turns<usize>,
    generation: u32,
    prefetch: u16,
}

struct Lane {
    key: LaneKey,
    /// The living consumer last; before it, cancelled ones that still hold received messages.
    consumers: VecDeque<Consumer>,
    head: Option<Head>,
}

/// A message, and what it says: its weight has to be known before its turn.
pub(super) struct Head {
    pub(super) message: Message,
    pub(super) job: Result<Job, Unreadable>,
}

impl Head {
    fn read(message: Message, (priority, lane): LaneKey) -> Self {
        let mut job = Job::from_message(&message.data);
        if let Ok(job) = &mut job {
            // The queue that it came from is the truth: a retry goes back there.
            (job.priority, job.lane) = (priority, lane);
        }
        Self { message, job }
    }

    fn weight(&self, (priority, _): LaneKey) -> u64 {
        self.job.as_ref().map_or_else(|_| weight_of(priority, 1), weight)
    }
}

impl Session {
    pub(super) async fn open(up: &Up, lanes: u8, prefetch: u16) -> Result<Self, QueueError> {
        let channel = Arc::new(bounded(up.connection.create_channel()).await?);
        let keys: Vec<_> =
            Priority::ALL.into_iter().flat_map(|p| (0..lanes).map(move |lane| (p, lane))).collect();
        let mut session = Self {
            channel,
            turns: Turns::default(),
            lanes: keys.into_iter().map(|key| Lane { key, consumers: VecDeque::new(), head: None }).collect(),
            generation: 0,
            prefetch: prefetch.max(1),
        };
        session.consume().await?;
        Ok(session)
    }

    async fn consume(&mut self) -> Result<(), QueueError> {
        bounded(self.channel.basic_qos(self.prefetch, BasicQosOptions::default())).await?;
        self.generation += 1;
        for lane in &mut self.lanes {
            let (priority, number) = lane.key;
            let tag = format!("{priority}.{number}.{}", self.generation);
            let queue = job_queue(priority, number).as_str().into();
            let options = BasicConsumeOptions::default();
            let consumer =
                self.channel.basic_consume(queue, tag.as_str().into(), options, FieldTable::default());
            lane.consumers.push_back(bounded(consumer).await?);
        }
        Ok(())
    }

    /// A prefetch holds for consumers that start after it: they are replaced, and what the old ones had received
    /// stays on the same channel and is lent first.
    pub(super) async fn resize(&mut self, prefetch: u16) -> Result<(), QueueError> {
        if prefetch.max(1) == self.prefetch {
            return Ok(());
        }
        self.prefetch = prefetch.max(1);
        self.cancel_consumers().await?;
        self.consume().await
    }

    async fn cancel_consumers(&mut self) -> Result<(), QueueError> {
        for lane in &self.lanes {
            if let Some(consumer) = lane.consumers.back() {
                bounded(self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default())).await?;
            }
        }
        Ok(())
    }

    /// Takes the head of the lane whose turn it is, when any lane has one.
    pub(super) fn poll_pick(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, QueueError>> {
        for lane in &mut self.lanes {
            if let Poll::Ready(Err(error)) = lane.poll_head(cx) {
                return Poll::Ready(Err(error));
            }
        }
        let ready = self.lanes.iter().enumerate();
        let ready = ready.filter_map(|(at, lane)| Some((at, lane.head.as_ref()?.weight(lane.key))));
        match self.turns.take(ready).and_then(|at| self.lanes[at].head.take()) {
            Some(head) => Poll::Ready(Ok(head)),
            None => Poll::Pending,
        }
    }

    /// Stops the consumers and returns what they had received and not given out.
    pub(super) async fn cancel(&mut self) -> Vec<Head> {
        let mut left = Vec::new();
        if let Err(error) = self.cancel_consumers().await {
            debug!(%error, "consumers could not be cancelled, the broker will deliver their jobs again");
            return left;
        }
        for lane in &mut self.lanes {
            left.extend(lane.head.take());
            // After cancel-ok every received message is in the stream, and then its end.
            let drained = timeout(REQUEST_TIMEOUT, poll_fn(|cx| lane.poll_rest(cx, &mut left))).await;
            if drained.is_err() {
                debug!(lane = ?lane.key, "a cancelled consumer did not end");
            }
        }
        left
    }
}

impl Lane {
    /// Fills the head. The end of the living consumer (its queue was deleted, its leader lost) ends the session.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), QueueError>> {
        while self.head.is_none() {
            let Some(consumer) = self.consumers.front_mut() else {
                return Poll::Ready(Err(QueueError::Away(format!("no consumer on lane {:?}", self.key))));
            };
            match Pin::new(consumer).poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(message))) => self.head = Some(Head::read(message, self.key)),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(topology::away(error))),
                Poll::Ready(None) => {
                    self.consumers.pop_front();
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>, left: &mut Vec<Head>) -> Poll<()> {
        loop {
            match self.poll_head(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) => left.extend(self.head.take()),
            }
        }
    }
}

async fn bounded<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T, QueueError> {
    match timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => answer.map_err(topology::away),
        Err(_) => Err(QueueError::Away(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()))),
    }
}
