//! Moves all messages of one queue to another place: each is published, confirmed, and then acked.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    Channel, Consumer,
    message::Delivery,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeleteOptions},
    types::FieldTable,
};
use tokio::time::timeout;

use super::{
    declare::{bounded, depth},
    link::Up,
    publisher::Publisher,
    settle::ack,
    topology::away,
    unconfirmed::Message,
};
use crate::queue::QueueError;

/// Messages on their way at once. Each may be as large as a job.
const AT_ONCE: u16 = 128;

/// The queue that is emptied, and how its messages go on.
pub(super) struct Move<'a> {
    pub(super) up: &'a Up,
    pub(super) publisher: &'a Publisher,
    /// Nothing may be bound to it any more.
    pub(super) queue: &'a str,
    /// It is empty when nothing came for so long.
    pub(super) quiet: Duration,
    pub(super) sent_as: fn(Delivery) -> Result<Message, QueueError>,
}

impl Move<'_> {
    /// Moves what is in the queue, and what comes in meanwhile; then deletes it. Answers how many messages were moved.
    ///
    /// # Errors
    /// What was not moved is still there, and something may be in both places: begin again.
    pub(super) async fn all(&self) -> Result<u64, QueueError> {
        let mut moved = 0;
        while depth(&self.up.connection, self.queue).await?.is_some() {
            moved += self.until_quiet().await?;
            // Quorum queues know no "delete if empty". Nothing was routed here for a while, and nobody has anything of it in
            // hand; whoever else moves it is left to end it.
            match depth(&self.up.connection, self.queue).await? {
                Some(depth) if depth.ready > 0 => {}
                Some(depth) if depth.consumers == 0 => {
                    self.delete().await?;
                    return Ok(moved);
                }
                _ => return Ok(moved),
            }
        }
        Ok(moved)
    }

    async fn until_quiet(&self) -> Result<u64, QueueError> {
        let channel = Arc::new(bounded(self.up.connection.create_channel()).await?);
        let mut consumer = self.consume(&channel).await?;
        let mut under_way = FuturesUnordered::new();
        let (mut moved, mut cancelled) = (0, false);
        loop {
            tokio::select! {
                biased;
                Some(done) = under_way.next() => {
                    let done: Result<(), QueueError> = done;
                    done?;
                    moved += 1;
                }
                came = timeout(self.quiet, consumer.next()) => match came {
                    Ok(Some(Ok(delivery))) => under_way.push(self.one(delivery)),
                    Ok(Some(Err(error))) => return Err(away(error)),
                    Ok(None) if cancelled => break,
                    Ok(None) => return Err(QueueError::Away(format!("`{}` was deleted meanwhile", self.queue))),
                    // What was sent before the consumer was cancelled is still received, and then its end.
                    Err(_) if !cancelled && under_way.is_empty() => {
                        bounded(channel.basic_cancel(consumer.tag(), BasicCancelOptions::default())).await?;
                        cancelled = true;
                    }
                    Err(_) if cancelled && under_way.is_empty() => break,
                    Err(_) => {}
                },
            }
        }
        while let Some(done) = under_way.next().await {
            done?;
            moved += 1;
        }
        bounded(channel.close(200, "moved".into())).await?;
        Ok(moved)
    }

    async fn consume(&self, channel: &Channel) -> Result<Consumer, QueueError> {
        bounded(channel.basic_qos(AT_ONCE, BasicQosOptions::default())).await?;
        let (queue, options) = (self.queue.into(), BasicConsumeOptions::default());
        bounded(channel.basic_consume(queue, "".into(), options, FieldTable::default())).await
    }

    async fn one(&self, delivery: Delivery) -> Result<(), QueueError> {
        let acker = delivery.acker.clone();
        self.publisher.publish(vec![(self.sent_as)(delivery)?]).await?;
        ack(&acker).await
    }

    async fn delete(&self) -> Result<(), QueueError> {
        let channel = bounded(self.up.connection.create_channel()).await?;
        bounded(channel.queue_delete(self.queue.into(), QueueDeleteOptions::default())).await?;
        bounded(channel.close(200, "deleted".into())).await
    }
}
