//! Lends jobs: one consumer a lane with a small prefetch, the next lane chosen by weight at the last moment.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{Stream, StreamExt, stream};
use lapin::{
    Channel, Consumer, Error,
    message::Delivery as Message,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{
    lanes::{Turns, weight},
    link::{Link, Up},
    publisher::Publisher,
    settle::{self, RabbitSettle},
    topology::{self, job_queue},
};
use crate::{
    job::{Job, Priority},
    queue::{Delivery, Intake, QueueError},
};

/// Time for a request on the channel (qos, consume, cancel).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Jobs given back at the same time when an intake stops.
const GIVEN_BACK_AT_ONCE: usize = 64;
/// Pause before a lost session is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(250);

/// A lane: its priority, and its number among that priority's.
type LaneKey = (Priority, u8);

/// The handle that a worker holds; a task of its own does the work, so `next` can be dropped at any await.
pub(super) struct RabbitIntake {
    deliveries: mpsc::Receiver<Delivery>,
    stop: CancellationToken,
}

#[async_trait]
impl Intake for RabbitIntake {
    async fn next(&mut self) -> Option<Delivery> {
        self.deliveries.recv().await
    }

    async fn stop(&mut self) {
        self.stop.cancel();
        // Whatever was picked but not lent goes back with the rest.
        while let Some(delivery) = self.deliveries.recv().await {
            give_back(delivery).await;
        }
    }
}

/// Starts lending.
pub(super) fn start(
    link: Link,
    publisher: Publisher,
    lanes: u8,
    prefetch: watch::Receiver<u16>,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> RabbitIntake {
    // Room for one: a job picked earlier than needed was picked by stale weights.
    let (lend, deliveries) = mpsc::channel(1);
    let pump = Pump { link, publisher, lanes, prefetch, lend, stop: stop.clone(), tasks: tasks.clone() };
    tasks.spawn(pump.run());
    RabbitIntake { deliveries, stop }
}

struct Pump {
    link: Link,
    publisher: Publisher,
    lanes: u8,
    prefetch: watch::Receiver<u16>,
    lend: mpsc::Sender<Delivery>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Pump {
    async fn run(mut self) {
        let stop = self.stop.clone();
        loop {
            let up = tokio::select! {
                up = self.link.up() => up,
                () = stop.cancelled() => return,
            };
            let prefetch = *self.prefetch.borrow_and_update();
            match Session::open(&up, self.lanes, prefetch).await {
                Ok(session) => {
                    if let Err(error) = self.lend_from(session).await {
                        warn!(%error, "consuming channel lost");
                    } else {
                        return;
                    }
                }
                Err(error) => warn!(%error, "jobs can't be consumed"),
            }
            // A channel alone may have died (a queue was deleted): declare anew before consuming again.
            if up.connection.status().connected() {
                let _ = timeout(REQUEST_TIMEOUT, topology::declare(&up.connection, self.lanes)).await;
            } else {
                self.link.retire(up.epoch);
            }
            tokio::select! {
                () = sleep(REOPEN_PAUSE) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Lends until told to stop (`Ok`) or the session is lost.
    async fn lend_from(&mut self, mut session: Session) -> Result<(), QueueError> {
        let (publisher, tasks) = (self.publisher.clone(), self.tasks.clone());
        let lender = Lender { publisher, channel: session.channel.clone(), tasks };
        loop {
            let place = tokio::select! {
                place = self.lend.reserve() => place,
                () = self.stop.cancelled() => break,
            };
            // The handle is gone: nobody will take another job.
            let Ok(place) = place else { break };
            let picked = tokio::select! {
                picked = poll_fn(|cx| session.poll_pick(cx)) => Some(picked?),
                changed = self.prefetch.changed() => {
                    if changed.is_err() { break; }
                    None
                }
                () = self.stop.cancelled() => break,
            };
            match picked {
                Some((lane, message)) => {
                    if let Some(delivery) = lender.deliver(lane, message) {
                        place.send(delivery);
                    }
                }
                None => {
                    drop(place);
                    let prefetch = *self.prefetch.borrow_and_update();
                    session.resize(prefetch).await?;
                }
            }
        }
        Self::drain(session, &lender).await;
        Ok(())
    }

    /// Consumers are cancelled, and what they had received ahead goes back as fresh messages: a requeue would
    /// count towards the delivery limit, and rolling restarts would kill innocent jobs.
    async fn drain(mut session: Session, lender: &Lender) {
        let left = session.cancel().await;
        let deliveries = left.into_iter().filter_map(|(lane, message)| lender.deliver(lane, message));
        stream::iter(deliveries).for_each_concurrent(GIVEN_BACK_AT_ONCE, give_back).await;
    }
}

async fn give_back(delivery: Delivery) {
    let (job, unsettled) = delivery.split();
    let id = job.id;
    if let Err(error) = unsettled.release(job, Duration::ZERO).await {
        debug!(job = %id, %error, "a job could not be given back, it will come again");
    }
}

/// What one session's deliveries are settled with.
#[derive(Clone)]
struct Lender {
    publisher: Publisher,
    channel: Arc<Channel>,
    tasks: TaskTracker,
}

impl Lender {
    /// Reads the message; one that is no job is buried, and nothing is delivered.
    fn deliver(&self, lane: LaneKey, message: Message) -> Option<Delivery> {
        match Job::from_message(&message.data) {
            Ok(mut job) => {
                // The queue that it came from is the truth: a retry goes back there.
                (job.priority, job.lane) = lane;
                job.traceparent = job.traceparent.or_else(|| header(&message, "traceparent")?.parse().ok());
                let Self { publisher, channel, tasks } = self.clone();
                let settle = RabbitSettle::new(message.acker, channel, publisher, &job, tasks);
                Some(Delivery::new(job, Box::new(settle)))
            }
            Err(why) => {
                warn!(reason = why.reason().as_str(), bytes = message.data.len(), %why, "a message is no job");
                let Self { publisher, channel, tasks } = self.clone();
                tasks.spawn(async move {
                    settle::bury(publisher, message.acker, message.data, why).await;
                    drop(channel);
                });
                None
            }
        }
    }
}

fn header(message: &Message, name: &str) -> Option<String> {
    match message.properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(value) => Some(value.to_string()),
        _ => None,
    }
}

/// One channel with a consumer on every lane.
struct Session {
    channel: Arc<Channel>,
    lanes: Vec<Lane>,
    turns: Turns,
    generation: u32,
    prefetch: u16,
}

struct Lane {
    key: LaneKey,
    /// The living consumer last; before it, cancelled ones that still hold received messages.
    consumers: VecDeque<Consumer>,
    head: Option<Message>,
}

impl Session {
    async fn open(up: &Up, lanes: u8, prefetch: u16) -> Result<Self, QueueError> {
        let channel = Arc::new(bounded(up.connection.create_channel()).await?);
        let keys: Vec<_> =
            Priority::ALL.into_iter().flat_map(|p| (0..lanes).map(move |lane| (p, lane))).collect();
        let mut session = Self {
            channel,
            turns: Turns::new(keys.iter().map(|(priority, _)| weight(*priority))),
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
    async fn resize(&mut self, prefetch: u16) -> Result<(), QueueError> {
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
    fn poll_pick(&mut self, cx: &mut Context<'_>) -> Poll<Result<(LaneKey, Message), QueueError>> {
        for lane in &mut self.lanes {
            if let Poll::Ready(Err(error)) = lane.poll_head(cx) {
                return Poll::Ready(Err(error));
            }
        }
        let ready = self.lanes.iter().enumerate().filter(|(_, lane)| lane.head.is_some()).map(|(at, _)| at);
        match self.turns.take(ready) {
            Some(at) => {
                let lane = &mut self.lanes[at];
                let key = lane.key;
                lane.head.take().map_or(Poll::Pending, |head| Poll::Ready(Ok((key, head))))
            }
            None => Poll::Pending,
        }
    }

    /// Stops the consumers and returns what they had received and not given out.
    async fn cancel(&mut self) -> Vec<(LaneKey, Message)> {
        let mut left = Vec::new();
        if let Err(error) = self.cancel_consumers().await {
            debug!(%error, "consumers could not be cancelled, the broker will deliver their jobs again");
            return left;
        }
        for lane in &mut self.lanes {
            left.extend(lane.head.take().map(|head| (lane.key, head)));
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
                Poll::Ready(Some(Ok(message))) => self.head = Some(message),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(topology::away(error))),
                Poll::Ready(None) => {
                    self.consumers.pop_front();
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>, left: &mut Vec<(LaneKey, Message)>) -> Poll<()> {
        loop {
            match self.poll_head(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) => left.extend(self.head.take().map(|head| (self.key, head))),
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
