//! Subscribers: a durable one has its own queue; a reader of the log replays the stream.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::StreamExt;
use jiff::Timestamp;
use lapin::{
    Channel, Connection, Consumer,
    message::Delivery as Message,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tracing::warn;

use super::{
    declare::{declare, declare_queue, is_not_found},
    headers,
    link::{Link, Up},
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
    opening: Option<Opening>,
    /// A session is not opened again before this.
    not_before: Instant,
    /// The next offset of the log, once one was seen: where a new session goes on.
    next_offset: Option<i64>,
    unacked: u64,
}

struct Session {
    channel: Channel,
    consumer: Consumer,
    last_tag: u64,
}

/// A session on its way, in a task of its own. Dropped halfway, as `next` may be, the request would leave a consumer
/// at the broker that is sent announcements and has no reader.
struct Opening {
    up: Up,
    task: JoinHandle<Result<Session, Unopened>>,
}

enum Unopened {
    Refused(lapin::Error),
    Unanswered,
}

impl RabbitSubscriber {
    /// Subscribes; the durable queue and its bindings exist when it returns.
    pub(super) async fn open(link: Link, lanes: u8, subscription: Subscription) -> Result<Self, QueueError> {
        let mut subscriber = Self {
            link,
            lanes,
            subscription,
            session: None,
            opening: None,
            not_before: Instant::now(),
            next_offset: None,
            unacked: 0,
        };
        subscriber.connect().await?;
        Ok(subscriber)
    }

    /// Opens a session; dropped and called again, it goes on with the one that is on its way.
    async fn connect(&mut self) -> Result<(), QueueError> {
        sleep_until(self.not_before).await;
        let opening = match &mut self.opening {
            Some(opening) => opening,
            None => {
                let up = self.link.up().await;
                let consumer = consume(up.connection.clone(), self.subscription.clone(), self.offset());
                let task = tokio::spawn(async {
                    match timeout(REQUEST_TIMEOUT, consumer).await {
                        Ok(opened) => opened.map_err(Unopened::Refused),
                        Err(_) => Err(Unopened::Unanswered),
                    }
                });
                self.opening.insert(Opening { up, task })
            }
        };
        let opened = (&mut opening.task).await;
        let up = opening.up.clone();
        self.opening = None;
        self.not_before = Instant::now() + REOPEN_PAUSE;
        match opened {
            Ok(Ok(session)) => {
                self.session = Some(session);
                self.unacked = 0;
                Ok(())
            }
            Ok(Err(Unopened::Refused(error))) if is_not_found(&error) => {
                match timeout(REQUEST_TIMEOUT, declare(&up.connection, self.lanes)).await {
                    Ok(Err(differs @ QueueError::Topology(_))) => Err(differs),
                    _ => Err(topology::away(error)),
                }
            }
            Ok(Err(Unopened::Refused(error))) if error.is_amqp_soft_error() => {
                Err(QueueError::Topology(error.to_string()))
            }
            Ok(Err(Unopened::Refused(error))) => Err(topology::away(error)),
            Ok(Err(Unopened::Unanswered)) => {
                self.link.retire(up.epoch);
                Err(QueueError::Away(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs())))
            }
            Err(ended) => Err(QueueError::Away(ended.to_string())),
        }
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
                        self.not_before = Instant::now() + REOPEN_PAUSE;
                    }
                }
            }
            match self.connect().await {
                Ok(()) => {}
                Err(QueueError::Away(reason)) => warn!(reason, "subscription not back yet"),
                Err(error) => return Err(error),
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

async fn consume(
    connection: Arc<Connection>,
    subscription: Subscription,
    offset: FieldTable,
) -> Result<Session, lapin::Error> {
    let channel = connection.create_channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let (queue, arguments) = match &subscription.name {
        Some(name) => {
            declare_queue(&channel, &of_subscriber(name, &subscription.filter)).await?;
            (subscriber_queue(name), FieldTable::default())
        }
        None => (RESULTS_LOG.to_owned(), offset),
    };
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(queue.as_str().into(), "".into(), options, arguments).await?;
    Ok(Session { channel, consumer, last_tag: 0 })
}
