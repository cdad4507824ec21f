//! Ends one delivery: what follows from it is stored first, then it is acked.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use lapin::{
    Acker, Channel,
    options::{BasicAckOptions, BasicNackOptions},
};
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::{
    deaths,
    publisher::Publisher,
    topology::{DEAD_EXCHANGE, PAUSED_EXCHANGE, RESULTS_EXCHANGE, exchange_after},
    unconfirmed::{Message, Route},
};
use crate::{
    failpoint,
    id::Id,
    job::{Job, Unreadable},
    queue::{Death, QueueError, Settle, Settlement, Steps, Then},
    result::{Announcement, CLOUD_EVENT_TYPE, ImageResult},
    trace::TraceParent,
};

/// Time for an ack to be written to the socket.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// A paused job that finds no queue of its batch: the batch goes on, and the job's worker has not heard of it yet.
const UNPARKED_PAUSE: Duration = Duration::from_secs(1);
/// A job that can't be settled until somebody mends the topology is kept for so long: each return counts towards the
/// delivery limit.
const MENDING_PAUSE: Duration = Duration::from_secs(30);

/// The right to settle one delivery. Dropped unsettled (a panic, an error), it gives the job back.
pub(super) struct RabbitSettle {
    acker: Option<Acker>,
    /// lapin closes a channel with its last handle, and the broker then takes back what is not acked.
    channel: Arc<Channel>,
    publisher: Publisher,
    traceparent: Option<TraceParent>,
    tasks: TaskTracker,
    /// How long the job is kept before it is given back.
    kept: Duration,
}

impl RabbitSettle {
    pub(super) fn new(
        acker: Acker,
        channel: Arc<Channel>,
        publisher: Publisher,
        job: &Job,
        tasks: TaskTracker,
    ) -> Self {
        let (traceparent, kept) = (job.traceparent, Duration::ZERO);
        Self { acker: Some(acker), channel, publisher, traceparent, tasks, kept }
    }

    fn messages(&self, settlement: Settlement) -> Result<Vec<Message>, QueueError> {
        let mut messages = Vec::with_capacity(settlement.results.len() + 1);
        let letter = match &settlement.then {
            Then::Dead(job, reason) => {
                let death = Death::of(*reason, &settlement.results, Timestamp::now());
                Some(dead_letter(job, &death, body(job)?))
            }
            _ => None,
        };
        for result in settlement.results {
            messages.push(result_message(result, self.traceparent)?);
        }
        match settlement.then {
            Then::Done | Then::Dead(..) => {}
            Then::Again(job, after) => messages.push(job_message(&job, exchange_after(after))?),
            Then::Parked(job) => messages.push(parked(&job)?),
        }
        messages.extend(letter);
        Ok(messages)
    }
}

#[async_trait]
impl Settle for RabbitSettle {
    async fn settle(mut self: Box<Self>, settlement: Settlement, steps: Steps<'_>) -> Result<(), QueueError> {
        if steps.before.await {
            let published = self.publisher.publish(self.messages(settlement)?).await;
            if matches!(published, Err(QueueError::Topology(_))) {
                self.kept = MENDING_PAUSE;
            }
            published?;
            failpoint::reached("after_publish");
            steps.stored.await;
        }
        let acked = match self.acker.take() {
            Some(acker) => ack(&acker).await,
            None => Ok(()),
        };
        failpoint::reached("after_ack");
        acked
    }
}

impl Drop for RabbitSettle {
    fn drop(&mut self) {
        if let Some(acker) = self.acker.take() {
            let requeue = BasicNackOptions { requeue: true, multiple: false };
            // On a channel that is gone the broker has taken the job back already.
            let (channel, kept) = (self.channel.clone(), self.kept);
            self.tasks.spawn(async move {
                sleep(kept).await;
                let _ = timeout(ACK_TIMEOUT, acker.nack(requeue)).await;
                drop(channel);
            });
        }
    }
}

/// Acks one delivery.
///
/// `Ok(false)` means that the delivery's channel is gone: the broker delivers the job again, and what was
/// published carries ids that make the repetition visible.
pub(super) async fn ack(acker: &Acker) -> Result<(), QueueError> {
    match timeout(ACK_TIMEOUT, acker.ack(BasicAckOptions::default())).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(QueueError::Unacked("its channel is gone".to_owned())),
        Ok(Err(error)) => Err(QueueError::Unacked(error.to_string())),
        Err(_) => Err(QueueError::Unacked("the ack could not be written in time".to_owned())),
    }
}

/// A body that is no job goes to the dead letters as it is, with its reason; then its delivery is acked.
pub(super) async fn bury(publisher: Publisher, acker: Acker, body: Vec<u8>, why: Unreadable) {
    let message = unreadable_message(body, &why);
    let buried = match publisher.publish(vec![message]).await {
        Ok(()) => ack(&acker).await,
        error => error,
    };
    if let Err(error) = buried {
        debug!(%error, "an unreadable message could not be buried, it will come again");
    }
}

/// The dead letter of a body that is no job.
pub(super) fn unreadable_message(body: Vec<u8>, why: &Unreadable) -> Message {
    let death = Death {
        reason: why.reason(),
        class: None,
        message: why.to_string(),
        status: None,
        worker: None,
        at: Some(Timestamp::now()),
    };
    unreadable_letter(&death, body)
}

/// The same, with what is known of its death.
pub(super) fn unreadable_letter(death: &Death, body: Vec<u8>) -> Message {
    let id = Id::of(&[b"pixfleet.unreadable.v1", &body]);
    letter(death, id, "application/octet-stream", deaths::headers(death, None), body)
}

/// The message of a job, for the exchange that takes it.
pub(super) fn job_message(job: &Job, exchange: String) -> Result<Message, QueueError> {
    Ok(Message {
        exchange,
        routing_key: job.routing_key(),
        id: job.id.to_string(),
        content_type: "application/json",
        headers: trace(job.traceparent),
        body: body(job)?,
        otherwise: None,
    })
}

/// A job that is set aside.
fn parked(job: &Job) -> Result<Message, QueueError> {
    let otherwise = Route { exchange: exchange_after(UNPARKED_PAUSE), key: job.routing_key() };
    let message = job_message(job, PAUSED_EXCHANGE.to_owned())?;
    Ok(Message { routing_key: job.batch.to_string(), otherwise: Some(otherwise), ..message })
}

/// The dead letter of a job whose message is `body`.
pub(super) fn dead_letter(job: &Job, death: &Death, body: Vec<u8>) -> Message {
    let mut headers = deaths::headers(death, Some(job));
    headers.extend(trace(job.traceparent));
    letter(death, job.id, "application/json", headers, body)
}

fn letter(
    death: &Death,
    id: Id,
    content_type: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
) -> Message {
    Message {
        exchange: DEAD_EXCHANGE.to_owned(),
        routing_key: death.reason.as_str().to_owned(),
        id: id.to_string(),
        content_type,
        headers,
        body,
        otherwise: None,
    }
}

fn result_message(result: ImageResult, trace_of_job: Option<TraceParent>) -> Result<Message, QueueError> {
    announcement_message(&Announcement::Result(Box::new(result), trace_of_job.map(TraceParent::child)))
}

/// The message of an announcement for the results exchange.
pub(super) fn announcement_message(announcement: &Announcement) -> Result<Message, QueueError> {
    let headers = match announcement {
        Announcement::Result(_, traceparent) => trace(*traceparent),
        Announcement::Batch(_) => Vec::new(),
    };
    Ok(Message {
        exchange: RESULTS_EXCHANGE.to_owned(),
        routing_key: announcement.routing_key(),
        id: announcement.id().to_string(),
        content_type: CLOUD_EVENT_TYPE,
        headers,
        body: announcement.to_message().map_err(|error| QueueError::Unsendable(error.to_string()))?,
        otherwise: None,
    })
}

fn body(job: &Job) -> Result<Vec<u8>, QueueError> {
    job.to_message().map_err(|error| QueueError::Unsendable(format!("job {}: {error}", job.id)))
}

fn trace(traceparent: Option<TraceParent>) -> Vec<(&'static str, String)> {
    traceparent.map(|trace| ("traceparent", trace.to_string())).into_iter().collect()
}
