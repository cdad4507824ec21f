//! A look through the dead letters: each is received and held, so that the next one comes, and given back at the end.
//!
//! A queue has no cursor: what was seen and is given back at once would come again. So everything seen stays unacked
//! until the look is closed, while its bytes are let go of here. Consumers are sent one window of letters each, and
//! what a window may hold follows from how large the letters of the last one were.

mod giving_back;

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::{
    Acker, Channel, Consumer,
    message::Delivery as Message,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::{
    deaths,
    declare::{bounded, depth},
    link::Up,
    publisher::Publisher,
    settle::{ack, job_message},
    topology::{DEAD_QUEUE, JOBS_EXCHANGE, away},
};
use crate::{
    job::Job,
    queue::{Buried, DeadLetter, DeadLetters, QueueError},
};

/// The first window's letters: nobody knows yet how large they are.
const FIRST_WINDOW: u16 = 16;
/// The most letters of a window.
const LARGEST_WINDOW: u16 = 500;
/// What a window should hold, in bytes.
const WINDOW_BYTES: u64 = 8 * 1024 * 1024;
/// A letter that does not come for this long was taken by somebody else, perhaps.
const SILENCE: Duration = Duration::from_secs(2);
/// As long is another look waited for, and until letters that were given back are there again.
const PATIENCE: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_millis(10);

pub(super) struct RabbitDeadLetters {
    up: Up,
    channel: Arc<Channel>,
    publisher: Publisher,
    window: Option<Window>,
    windows: u32,
    /// How many letters the next window may hold.
    size: u16,
    /// Received, and not seen yet.
    ahead: VecDeque<Message>,
    /// Of those that there were when the look began: the ones not received yet.
    left: u64,
    last_tag: u64,
    /// The tags of letters that were replayed or purged.
    ended: Ended,
}

type Ended = Arc<Mutex<HashSet<u64>>>;

struct Window {
    consumer: Consumer,
    size: u16,
    received: u16,
    bytes: u64,
}

impl Window {
    fn next_size(&self) -> u16 {
        let mean = (self.bytes / u64::from(self.received.max(1))).max(1);
        let fitting = (WINDOW_BYTES / mean).clamp(FIRST_WINDOW.into(), LARGEST_WINDOW.into());
        u16::try_from(fitting).unwrap_or(LARGEST_WINDOW)
    }
}

/// Begins a look.
///
/// # Errors
/// When the broker is away, or somebody else looks and does not end.
pub(super) async fn open(up: Up, publisher: Publisher) -> Result<RabbitDeadLetters, QueueError> {
    let left = unwatched(&up).await?;
    let channel = Arc::new(bounded(up.connection.create_channel()).await?);
    Ok(RabbitDeadLetters {
        up,
        channel,
        publisher,
        window: None,
        windows: 0,
        size: FIRST_WINDOW,
        ahead: VecDeque::new(),
        left,
        last_tag: 0,
        ended: Ended::default(),
    })
}

/// How many letters there are, once nobody else holds some of them.
async fn unwatched(up: &Up) -> Result<u64, QueueError> {
    let begun = Instant::now();
    loop {
        let depth = depth(&up.connection, DEAD_QUEUE).await?;
        match depth {
            None => return Ok(0),
            Some(depth) if depth.consumers == 0 => return Ok(depth.ready.into()),
            Some(depth) if begun.elapsed() > PATIENCE => {
                return Err(QueueError::Away(format!(
                    "somebody else looks through the dead letters ({} consumers on `{DEAD_QUEUE}`), and holds those \
                     that were seen: try again when that has ended",
                    depth.consumers
                )));
            }
            Some(_) => sleep(ASK_AGAIN).await,
        }
    }
}

impl RabbitDeadLetters {
    /// The next message; none where somebody else has taken what is left.
    async fn message(&mut self) -> Result<Option<Message>, QueueError> {
        let begun = Instant::now();
        loop {
            if let Some(message) = self.ahead.pop_front() {
                return Ok(Some(message));
            }
            let window = match self.window.take() {
                Some(window) if window.received < window.size => window,
                Some(spent) => {
                    self.size = spent.next_size();
                    self.end(spent).await?;
                    continue;
                }
                None => self.begin().await?,
            };
            let window = self.window.insert(window);
            match timeout(SILENCE, window.consumer.next()).await {
                Ok(Some(Ok(message))) => {
                    window.received += 1;
                    window.bytes += message.data.len() as u64;
                    self.last_tag = message.delivery_tag;
                    return Ok(Some(message));
                }
                Ok(Some(Err(error))) => return Err(away(error)),
                Ok(None) => {
                    return Err(QueueError::Away("the look through the dead letters was ended".to_owned()));
                }
                Err(_) => match depth(&self.up.connection, DEAD_QUEUE).await? {
                    Some(depth) if depth.ready > 0 && begun.elapsed() < PATIENCE => {}
                    Some(depth) if depth.ready > 0 => {
                        return Err(QueueError::Away("the dead letters do not come".to_owned()));
                    }
                    _ => return Ok(None),
                },
            }
        }
    }

    /// A prefetch bounds what one consumer holds unacked: the next window is the next consumer's.
    async fn begin(&mut self) -> Result<Window, QueueError> {
        let size = self.size.min(u16::try_from(self.left).unwrap_or(u16::MAX)).max(1);
        self.windows += 1;
        // The broker goes through them in the order of their names.
        let tag = format!("dead.{:08}", self.windows);
        bounded(self.channel.basic_qos(size, BasicQosOptions::default())).await?;
        let options = BasicConsumeOptions::default();
        let consumer =
            self.channel.basic_consume(DEAD_QUEUE.into(), tag.into(), options, FieldTable::default());
        Ok(Window { consumer: bounded(consumer).await?, size, received: 0, bytes: 0 })
    }

    /// Ends a window. For each letter that was ended meanwhile the broker has sent one more: they come next.
    async fn end(&mut self, mut window: Window) -> Result<(), QueueError> {
        bounded(self.channel.basic_cancel(window.consumer.tag(), BasicCancelOptions::default())).await?;
        while let Ok(Some(Ok(message))) = timeout(SILENCE, window.consumer.next()).await {
            self.last_tag = message.delivery_tag;
            self.ahead.push_back(message);
        }
        Ok(())
    }
}

#[async_trait]
impl DeadLetters for RabbitDeadLetters {
    async fn next(&mut self) -> Result<Option<DeadLetter>, QueueError> {
        if self.left == 0 {
            return Ok(None);
        }
        let Some(message) = self.message().await? else {
            self.left = 0;
            return Ok(None);
        };
        self.left -= 1;
        let death = deaths::read(&message);
        let job = Job::from_message(&message.data).map_err(|_| message.data);
        let buried = RabbitBuried {
            tag: message.delivery_tag,
            acker: message.acker,
            channel: self.channel.clone(),
            publisher: self.publisher.clone(),
            ended: self.ended.clone(),
        };
        Ok(Some(DeadLetter::new(death, job, Box::new(buried))))
    }

    async fn close(mut self: Box<Self>) {
        if let Err(error) = self.give_back().await {
            debug!(%error, "the broker takes back the dead letters by itself, when their channel ends");
        }
    }
}

/// The right to end one letter. Dropped, the letter stays where it is.
struct RabbitBuried {
    tag: u64,
    acker: Acker,
    /// lapin closes a channel with its last handle.
    channel: Arc<Channel>,
    publisher: Publisher,
    ended: Ended,
}

#[async_trait]
impl Buried for RabbitBuried {
    async fn end(self: Box<Self>, replay: Option<Job>) -> Result<(), QueueError> {
        if let Some(job) = replay {
            self.publisher.publish(vec![job_message(&job, JOBS_EXCHANGE.to_owned())?]).await?;
        }
        ack(&self.acker).await?;
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).insert(self.tag);
        drop(self.channel);
        Ok(())
    }
}
