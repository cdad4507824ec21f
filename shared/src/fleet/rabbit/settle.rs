//! Ends one delivery: what follows from it is stored first, then it is acked.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use lapin::{
    Acker, Channel,
    options::{BasicAckOptions, BasicNackOptions},
};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::{
    publisher::Publisher,
    topology::{DEAD_EXCHANGE, RESULTS_EXCHANGE, exchange_after},
    unconfirmed::Message,
};
use crate::{
    failpoint,
    id::Id,
    job::{Job, Unreadable},
    queue::{QueueError, Reason, Settle, Settlement, Then},
    result::{Announcement, CLOUD_EVENT_TYPE, ImageResult},
    trace::TraceParent,
};

/// Time for an ack to be written to the socket.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);

/// The right to settle one delivery. Dropped unsettled (a panic, an error), it gives the job back.
pub(super) struct RabbitSettle {
    acker: Option<Acker>,
    /// lapin closes a channel with its last handle, and the broker then takes back what is not acked.
    channel: Arc<Channel>,
    publisher: Publisher,
    traceparent: Option<TraceParent>,
    tasks: TaskTracker,
}

impl RabbitSettle {
    pub(super) fn new(
        acker: Acker,
        channel: Arc<Channel>,
        publisher: Publisher,
        job: &Job,
        tasks: TaskTracker,
    ) -> Self {
        Self { acker: Some(acker), channel, publisher, traceparent: job.traceparent, tasks }
    }

    fn messages(&self, settlement: Settlement) -> Result<Vec<Message>, QueueError> {
        let mut messages = Vec::with_capacity(settlement.results.len() + 1);
        for result in settlement.results {
            messages.push(result_message(result, self.traceparent)?);
        }
        match settlement.then {
            Then::Done => {}
            Then::Again(job, after) => messages.push(job_message(&job, exchange_after(after))?),
            Then::Parked(job) => messages.push(job_message(&job, exchange_after(Duration::from_secs(30)))?),
            Then::Dead(job, reason) => messages.push(dead_letter(&job, reason)?),
        }
        Ok(messages)
    }
}

#[async_trait]
impl Settle for RabbitSettle {
    async fn settle(mut self: Box<Self>, settlement: Settlement) -> Result<(), QueueError> {
        self.publisher.publish(self.messages(settlement)?).await?;
        failpoint::reached("after_publish");
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
            let channel = self.channel.clone();
            self.tasks.spawn(async move {
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
    let reason = why.reason();
    let message = Message {
        exchange: DEAD_EXCHANGE.to_owned(),
        routing_key: reason.as_str().to_owned(),
        id: Id::of(&[b"pixfleet.unreadable.v1", &body]).to_string(),
        content_type: "application/octet-stream",
        headers: death(reason, &why.to_string()),
        body,
    };
    let buried = match publisher.publish(vec![message]).await {
        Ok(()) => ack(&acker).await,
        error => error,
    };
    if let Err(error) = buried {
        debug!(%error, "an unreadable message could not be buried, it will come again");
    }
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
    })
}

fn dead_letter(job: &Job, reason: Reason) -> Result<Message, QueueError> {
    let mut headers = death(reason, "");
    headers.extend(trace(job.traceparent));
    Ok(Message {
        exchange: DEAD_EXCHANGE.to_owned(),
        routing_key: reason.as_str().to_owned(),
        id: job.id.to_string(),
        content_type: "application/json",
        headers,
        body: body(job)?,
    })
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
    })
}

fn body(job: &Job) -> Result<Vec<u8>, QueueError> {
    job.to_message().map_err(|error| QueueError::Unsendable(format!("job {}: {error}", job.id)))
}

fn trace(traceparent: Option<TraceParent>) -> Vec<(&'static str, String)> {
    traceparent.map(|trace| ("traceparent", trace.to_string())).into_iter().collect()
}

fn death(reason: Reason, message: &str) -> Vec<(&'static str, String)> {
    vec![
        ("x-reason", reason.as_str().to_owned()),
        ("x-message", message.to_owned()),
        ("x-died-at", Timestamp::now().to_string()),
    ]
}
