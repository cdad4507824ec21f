//! Subscribers: a durable one has its own queue; a reader of the log replays the stream.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use jiff::Timestamp;
use lapin::{
    Channel, Consumer,
    message::Delivery as Message,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::{
    declare::{declare, declare_queue},
    headers,
    link::Link,
    topology::{self, RESULTS_LOG, of_subscriber, subscriber_queue},
};
use crate::{
    queue::{From, QueueError, Subscriber, Subscription},
    result::Announcement,
};

/// Announcements sent ahead of their turn. A durable subscriber may hold as many without a commit.
const PREFETCH: u16 = 500;
/// A reader of the log has nothing to keep: it acks this often, only to be sent more.
const LOG_ACK_EVERY: u64 = 100;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const REOPEN_PAUSE: Duration = Duration::from_millis(500);

pub(super) struct RabbitSubscriber {
    link: Link,
    lanes: u8,
    subscription: Subscription,
    session: Option<Session>,
    /// The next offset of the log, once one was seen: where a new session goes on.
    next_offset: Option<i64>,
    unacked: u64,
}

struct Session {
    channel: Channel,
    consumer: Consumer,
    last_tag: u64,
}

impl RabbitSubscriber {
    /// Subscribes; the durable queue and its bindings exist when it returns.
    pub(super) async fn open(link: Link, lanes: u8, subscription: Subscription) -> Result<Self, QueueError> {
        let mut subscriber = Self { link, lanes, subscription, session: None, next_offset: None, unacked: 0 };
        subscriber.session = Some(subscriber.connect().await?);
        Ok(subscriber)
    }

    async fn connect(&mut self) -> Result<Session, QueueError> {
        let up = self.link.up().await;
        match timeout(REQUEST_TIMEOUT, self.consume(&up.connection)).await {
            Ok(Ok(session)) => Ok(session),
            Ok(Err(error)) if error.is_amqp_soft_error() => {
                let _ = timeout(REQUEST_TIMEOUT, declare(&up.connection, self.lanes)).await;
                Err(QueueError::Topology(error.to_string()))
            }
            Ok(Err(error)) => Err(topology::away(error)),
            Err(_) => {
                self.link.retire(up.epoch);
                Err(QueueError::Away(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs())))
            }
        }
    }

    async fn consume(&self, connection: &lapin::Connection) -> Result<Session, lapin::Error> {
        let channel = connection.create_channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let (queue, arguments) = match &self.subscription.name {
            Some(name) => {
                let queue = of_subscriber(name, &self.subscription.filter);
                declare_queue(&channel, &queue).await?;
                (subscriber_queue(name), FieldTable::default())
            }
            None => (RESULTS_LOG.to_owned(), self.offset()),
        };
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(queue.as_str().into(), "".into(), options, arguments).await?;
        Ok(Session { channel, consumer, last_tag: 0 })
    }

    fn offset(&self) -> FieldTable {
        let offset = match (self.next_offset, self.subscription.from) {
            (Some(next), _) => AMQPValue::LongLongInt(next),
            (None, From::Now) => AMQPValue::LongString("next".into()),
            (None, From::Beginning) => AMQPValue::LongString("first".into()),
            // The stream is cut in chunks: it begins with the chunk that holds this second.
            (None, From::Ago(ago)) => {
                let seconds = Timestamp::now().as_second().saturating_sub_unsigned(ago.as_secs());
                AMQPValue::Timestamp(seconds.max(0).unsigned_abs())
            }
        };
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), offset);
        arguments
    }

    /// The next message of a session, opened again as often as it takes.
    async fn message(&mut self) -> Result<Message, QueueError> {
        loop {
            if let Some(session) = &mut self.session {
                match session.consumer.next().await {
                    Some(Ok(message)) => {
                        session.last_tag = message.delivery_tag;
                        return Ok(message);
                    }
                    ended => {
                        let reason =
                            ended.and_then(Result::err).map_or("ended".to_owned(), |e| e.to_string());
                        warn!(reason, "subscription lost, opening it again");
                        self.session = None;
                        self.unacked = 0;
                        sleep(REOPEN_PAUSE).await;
                    }
                }
            }
            if self.session.is_none() {
                match self.connect().await {
                    Ok(session) => self.session = Some(session),
                    Err(QueueError::Away(reason)) => {
                        warn!(reason, "subscription not back yet");
                        sleep(REOPEN_PAUSE).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }

    fn passed_over(&mut self, message: &Message) {
        self.next_offset = headers::next_offset(message).or(self.next_offset);
        self.unacked += 1;
    }

    async fn ack_all(&mut self) -> Result<(), QueueError> {
        let Some(session) = &self.session else {
            return Ok(());
        };
        if self.unacked == 0 {
            return Ok(());
        }
        self.unacked = 0;
        let multiple = BasicAckOptions { multiple: true };
        match timeout(REQUEST_TIMEOUT, session.channel.basic_ack(session.last_tag, multiple)).await {
            Ok(acked) => acked.map_err(topology::away),
            Err(_) => Err(QueueError::Away("the ack could not be written in time".to_owned())),
        }
    }
}

#[async_trait]
impl Subscriber for RabbitSubscriber {
    async fn next(&mut self) -> Result<Announcement, QueueError> {
        loop {
            // Before a message is taken: dropped at a later await, this future would take the message with it. A
            // lost ack costs a repetition, and the session that lost it is opened again.
            if self.subscription.name.is_none() && self.unacked >= LOG_ACK_EVERY {
                let _ = self.ack_all().await;
            }
            let message = self.message().await?;
            self.passed_over(&message);
            match Announcement::from_message(&message.data) {
                Ok(announcement) if self.subscription.filter.wants(&announcement) => return Ok(announcement),
                Ok(_) => {}
                Err(error) => warn!(%error, "passed over"),
            }
        }
    }

    async fn commit(&mut self) -> Result<(), QueueError> {
        self.ack_all().await
    }
}
