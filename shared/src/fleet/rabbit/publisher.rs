//! The one owner of the publishing channel: pipelined, mandatory, confirmed, and said again until it is.
//!
//! A message counts as stored only when the broker acked it and did not return it. Returned, nacked or
//! unconfirmed (a channel or connection that ended): it is published again, with the same id. One task owns the
//! channel, because lapin numbers publishes and writes them under two locks: two publishers could swap numbers.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use super::{
    config::Config,
    link::{Link, Up},
    topology,
};
use crate::queue::QueueError;

/// Times that a message may come back as unroutable, with the topology declared anew in between.
const MAX_RETURNS: u32 = 5;

/// One message to publish, persistent and mandatory.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    /// Names the message: a returned one is found by it.
    pub(super) id: String,
    pub(super) content_type: &'static str,
    /// Rebuilt for each publish, never copied from a delivery: an `x-death` sent back is read by the broker, and
    /// can make it drop the message as a cycle.
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
}

/// A handle on the publishing task.
#[derive(Clone)]
pub(super) struct Publisher {
    parcels: mpsc::Sender<Parcel>,
    patience: Duration,
}

/// Messages that one caller waits for together.
struct Parcel {
    messages: Vec<Message>,
    done: oneshot::Sender<Result<(), QueueError>>,
}

impl Publisher {
    /// Starts the task; it ends when every handle is gone or with `stop`.
    pub(super) fn start(link: Link, config: &Config, tasks: &TaskTracker, stop: CancellationToken) -> Self {
        let (parcels, inbox) = mpsc::channel(64);
        let owner = Owner {
            link,
            lanes: config.lanes,
            confirm_timeout: config.confirm_timeout(),
            max_unconfirmed: config.max_unconfirmed,
            inbox,
            ledger: Unconfirmed::default(),
        };
        tasks.spawn(async move {
            tokio::select! {
                () = owner.run() => {}
                () = stop.cancelled() => {}
            }
        });
        Self { parcels, patience: config.publish_patience() }
    }

    /// Publishes the messages; all are stored when it returns.
    ///
    /// # Errors
    /// After an error some may be stored: say them again, ids make that harmless.
    pub(super) async fn publish(&self, messages: Vec<Message>) -> Result<(), QueueError> {
        if messages.is_empty() {
            return Ok(());
        }
        let (done, stored) = oneshot::channel();
        let said = async {
            self.parcels.send(Parcel { messages, done }).await.ok()?;
            stored.await.ok()
        };
        match timeout(self.patience, said).await {
            Ok(Some(outcome)) => outcome,
            Ok(None) => Err(QueueError::Away("the publisher has stopped".to_owned())),
            Err(_) => {
                Err(QueueError::Away(format!("nothing confirmed within {} s", self.patience.as_secs())))
            }
        }
    }
}

/// What is published and not yet known to be stored.
#[derive(Default)]
struct Unconfirmed {
    next: u64,
    messages: HashMap<u64, Pending>,
    callers: HashMap<u64, Caller>,
    /// To be said (again), the oldest first.
    backlog: VecDeque<u64>,
    /// Ids that came back as unroutable, until their own confirm arrives.
    returned: HashSet<String>,
}

struct Pending {
    message: Arc<Message>,
    caller: u64,
    returns: u32,
}

struct Caller {
    waiting_for: usize,
    done: oneshot::Sender<Result<(), QueueError>>,
}

impl Unconfirmed {
    fn accept(&mut self, parcel: Parcel) {
        let caller = self.next;
        self.callers.insert(caller, Caller { waiting_for: parcel.messages.len(), done: parcel.done });
        for message in parcel.messages {
            self.next += 1;
            self.messages.insert(self.next, Pending { message: Arc::new(message), caller, returns: 0 });
            self.backlog.push_back(self.next);
        }
        self.next += 1;
    }

    fn stored(&mut self, number: u64) {
        let Some(pending) = self.messages.remove(&number) else {
            return;
        };
        let Some(caller) = self.callers.get_mut(&pending.caller) else {
            return;
        };
        caller.waiting_for -= 1;
        if caller.waiting_for == 0 {
            self.tell(pending.caller, Ok(()));
        }
    }

    /// One of a caller's messages can't be stored: the caller is told, its others may be.
    fn refused(&mut self, number: u64, error: QueueError) {
        if let Some(pending) = self.messages.remove(&number) {
            self.tell(pending.caller, Err(error));
        }
    }

    fn tell(&mut self, caller: u64, outcome: Result<(), QueueError>) {
        if let Some(caller) = self.callers.remove(&caller) {
            // A caller that no longer listens lost its patience, and knows.
            let _ = caller.done.send(outcome);
        }
    }

    /// The channel is gone: everything that was on its way is to be said again, in its order.
    fn all_again(&mut self) {
        let mut numbers: Vec<u64> = self.messages.keys().copied().collect();
        numbers.sort_unstable();
        self.backlog = numbers.into();
        self.returned.clear();
    }
}

struct Owner {
    link: Link,
    lanes: u8,
    confirm_timeout: Duration,
    max_unconfirmed: usize,
    inbox: mpsc::Receiver<Parcel>,
    ledger: Unconfirmed,
}

type Confirm = BoxFuture<'static, (u64, Result<Confirmation, lapin::Error>)>;

/// Why an epoch of the publisher ended.
enum Ended {
    /// Every handle is gone, and everything is stored.
    Done,
    /// The channel or connection is gone.
    Lost(String),
}

impl Owner {
    async fn run(mut self) {
        loop {
            let up = self.link.up().await;
            match self.epoch(&up).await {
                Ended::Done => return,
                Ended::Lost(reason) => {
                    warn!(reason, unconfirmed = self.ledger.messages.len(), "publishing channel lost");
                    self.link.retire(up.epoch);
                    self.ledger.all_again();
                    // The link needs a moment to notice; a new epoch is waited for in `up`.
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    async fn epoch(&mut self, up: &Up) -> Ended {
        let channel = match timeout(self.confirm_timeout, open(up)).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Ended::Lost(error.to_string()),
            Err(_) => return Ended::Lost("no publishing channel in time".to_owned()),
        };
        let mut on_their_way: FuturesUnordered<Confirm> = FuturesUnordered::new();
        let mut progress = Instant::now();
        let mut check = interval(Duration::from_millis(500));
        let mut open = true;
        let mut blocked = up.blocked;
        loop {
            while !blocked && on_their_way.len() < self.max_unconfirmed {
                let Some(number) = self.ledger.backlog.pop_front() else {
                    break;
                };
                if let Some(pending) = self.ledger.messages.get(&number) {
                    on_their_way.push(Box::pin(say(channel.clone(), number, pending.message.clone())));
                }
            }
            if !open && self.ledger.messages.is_empty() {
                return Ended::Done;
            }
            let room = self.ledger.backlog.is_empty() && on_their_way.len() < self.max_unconfirmed;
            tokio::select! {
                biased;
                Some((number, confirm)) = on_their_way.next() => {
                    progress = Instant::now();
                    if let Err(lost) = self.confirmed(number, confirm, up).await {
                        return Ended::Lost(lost);
                    }
                }
                parcel = self.inbox.recv(), if open && room && !blocked => match parcel {
                    Some(parcel) => {
                        if on_their_way.is_empty() { progress = Instant::now(); }
                        self.ledger.accept(parcel);
                    }
                    None => open = false,
                },
                () = self.link.changed() => match self.link.state() {
                    super::link::State::Up(now) if now.epoch == up.epoch => {
                        blocked = now.blocked;
                        progress = Instant::now();
                    }
                    _ => return Ended::Lost("the connection ended".to_owned()),
                },
                _ = check.tick() => {
                    let overdue = progress.elapsed() > self.confirm_timeout;
                    if overdue && !blocked && !on_their_way.is_empty() {
                        return Ended::Lost(format!("no confirm for {} s", self.confirm_timeout.as_secs()));
                    }
                }
            }
        }
    }

    /// Books one confirm.
    ///
    /// lapin hands a returned message to whichever confirm completes next, so the message is known by its own
    /// id: it is noted here, and its own confirm (which the broker sends after the return) finds the note.
    async fn confirmed(
        &mut self,
        number: u64,
        confirm: Result<Confirmation, lapin::Error>,
        up: &Up,
    ) -> Result<(), String> {
        let confirm = confirm.map_err(|error| error.to_string())?;
        let nacked = match confirm {
            Confirmation::NotRequested => return Err("the channel does not confirm".to_owned()),
            Confirmation::Nack(_) => true,
            Confirmation::Ack(_) => false,
        };
        if let Some(returned) = confirm.take_message()
            && let Some(id) = returned.delivery.properties.message_id()
        {
            self.ledger.returned.insert(id.to_string());
        }
        let Some(pending) = self.ledger.messages.get_mut(&number) else {
            return Ok(());
        };
        if self.ledger.returned.remove(&pending.message.id) {
            pending.returns += 1;
            return self.unroutable(number, up).await;
        }
        if nacked {
            self.ledger.backlog.push_back(number);
        } else {
            self.ledger.stored(number);
        }
        Ok(())
    }

    /// Nobody takes the message: the topology is declared anew, and the message said again.
    async fn unroutable(&mut self, number: u64, up: &Up) -> Result<(), String> {
        let Some(pending) = self.ledger.messages.get(&number) else {
            return Ok(());
        };
        let (exchange, key) = (&pending.message.exchange, &pending.message.routing_key);
        let error = QueueError::Topology(format!("no queue takes `{key}` from exchange `{exchange}`"));
        warn!(%error, "a message came back");
        if pending.returns > MAX_RETURNS {
            self.ledger.refused(number, error);
            return Ok(());
        }
        match timeout(self.confirm_timeout, topology::declare(&up.connection, self.lanes)).await {
            Ok(Ok(())) => self.ledger.backlog.push_back(number),
            Ok(Err(error @ QueueError::Topology(_))) => self.ledger.refused(number, error),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("the topology could not be declared in time".to_owned()),
        }
        Ok(())
    }
}

async fn open(up: &Up) -> Result<Channel, lapin::Error> {
    let channel = up.connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

async fn say(
    channel: Channel,
    number: u64,
    message: Arc<Message>,
) -> (u64, Result<Confirmation, lapin::Error>) {
    let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let (exchange, key) = (message.exchange.as_str().into(), message.routing_key.as_str().into());
    let confirm =
        match channel.basic_publish(exchange, key, mandatory, &message.body, properties(&message)).await {
            Ok(confirm) => confirm.await,
            Err(error) => Err(error),
        };
    (number, confirm)
}

fn properties(message: &Message) -> BasicProperties {
    const PERSISTENT: u8 = 2;
    let mut headers = FieldTable::default();
    for (key, value) in &message.headers {
        headers.insert((*key).into(), AMQPValue::LongString(value.as_str().into()));
    }
    BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type(message.content_type.into())
        .with_message_id(message.id.as_str().into())
        .with_headers(headers)
}
