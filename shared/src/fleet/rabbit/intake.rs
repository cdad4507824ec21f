//! Lends jobs: one consumer a lane with a small prefetch, the next lane chosen by weight at the last moment.

use std::{future::poll_fn, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use lapin::Channel;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{
    declare::{ALL_ARE_TOLD, declare},
    headers,
    link::Link,
    publisher::Publisher,
    session::{Head, REQUEST_TIMEOUT, Session},
    settle::{self, RabbitSettle},
};
use crate::queue::{Delivery, Intake, QueueError};

/// Jobs given back at the same time when an intake stops.
const GIVEN_BACK_AT_ONCE: usize = 64;
/// From so many deliveries on a job is about to be given up by the broker, which publishes no result for it.
const WORN: i64 = super::topology::DELIVERY_LIMIT - 3;

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
            tokio::select! {
                () = sleep(ALL_ARE_TOLD) => {}
                () = stop.cancelled() => return,
            }
            // A channel alone may have died (a queue was deleted): declare anew before consuming again.
            let mended = match up.connection.status().connected() {
                true => timeout(REQUEST_TIMEOUT, declare(&up.connection, self.lanes)).await,
                false => Ok(Err(QueueError::Away("the connection ended".to_owned()))),
            };
            // What can't be declared is found, said and waited for by the link.
            if !matches!(mended, Ok(Ok(()))) {
                self.link.retire(up.epoch);
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
                Some(head) => {
                    if let Some(delivery) = lender.deliver(head) {
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
        let deliveries = left.into_iter().filter_map(|head| lender.deliver(head));
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
    /// A message that is no job is buried, and nothing is delivered.
    fn deliver(&self, Head { message, job }: Head) -> Option<Delivery> {
        match job {
            Ok(mut job) => {
                job.traceparent = job.traceparent.or_else(|| headers::traceparent(&message));
                let again = message.redelivered;
                // A first delivery has none: such a header is the sender's own.
                let worn = again && headers::deliveries(&message) >= WORN;
                let Self { publisher, channel, tasks } = self.clone();
                let settle = RabbitSettle::new(message.acker, channel, publisher, &job, tasks);
                Some(Delivery::new(job, again, Box::new(settle)).worn(worn))
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
