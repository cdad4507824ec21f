//! The one owner of the publishing channel: pipelined, mandatory, confirmed, and said again until it is.
//!
//! A message counts as stored only when the broker acked it and did not return it. Returned, nacked or
//! unconfirmed (a channel or connection that ended): it is published again, with the same id, until its caller loses
//! patience. A nack is how a full queue refuses: each message rests longer and longer then. One task owns the channel, because lapin numbers publishes and writes them under two locks: two publishers could swap numbers.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use lapin::{Channel, Confirmation};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, interval, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use super::{
    config::Config,
    declare::{ALL_ARE_TOLD, declare},
    link::{Link, Up},
    say::{open, say},
    trouble::Trouble,
    unconfirmed::{Booked, Message, Parcel, Unconfirmed},
};
use crate::queue::QueueError;

/// Times that a message may come back as unroutable, with the topology declared anew in between.
const MAX_RETURNS: u32 = 5;

/// For so long after the topology was declared anew, what comes back is of before.
const MENDED_FOR: Duration = Duration::from_secs(1);
/// How often a channel is replaced on which a queue refuses messages again and again.
const RENEW_EVERY: Duration = Duration::from_secs(5);

/// A handle on the publishing task.
#[derive(Clone)]
pub(super) struct Publisher {
    parcels: mpsc::Sender<Parcel>,
    patience: Duration,
    trouble: watch::Receiver<Option<String>>,
}

impl Publisher {
    /// Starts the task; it ends when every handle is gone or with `stop`.
    pub(super) fn start(link: Link, config: &Config, tasks: &TaskTracker, stop: CancellationToken) -> Self {
        let (parcels, inbox) = mpsc::channel(64);
        let (told, trouble) = Trouble::new();
        let owner = Owner {
            link,
            lanes: config.lanes,
            confirm_timeout: config.confirm_timeout(),
            max_unconfirmed: config.max_unconfirmed,
            inbox,
            unconfirmed: Unconfirmed::default(),
            trouble: told,
            mended: None,
        };
        tasks.spawn(async move {
            tokio::select! {
                () = owner.run() => {}
                () = stop.cancelled() => {}
            }
        });
        Self { parcels, patience: config.publish_patience(), trouble }
    }

    /// Why messages are not stored now, although the broker is there.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.borrow().clone()
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
                let why = self.trouble().map_or_else(String::new, |trouble| format!(": {trouble}"));
                Err(QueueError::Away(format!("not confirmed within {} s{why}", self.patience.as_secs())))
            }
        }
    }
}

struct Owner {
    link: Link,
    lanes: u8,
    confirm_timeout: Duration,
    max_unconfirmed: usize,
    inbox: mpsc::Receiver<Parcel>,
    unconfirmed: Unconfirmed,
    trouble: Trouble,
    /// When the topology was last declared anew.
    mended: Option<Instant>,
}

type Confirm = BoxFuture<'static, (u64, Arc<Message>, Result<Confirmation, lapin::Error>)>;

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
                    warn!(reason, unconfirmed = self.unconfirmed.len(), "publishing channel lost");
                    self.link.retire(up.epoch);
                    self.unconfirmed.all_again();
                    // The link needs a moment to notice; a new epoch is waited for in `up`.
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    async fn epoch(&mut self, up: &Up) -> Ended {
        let mut channel = match self.open(up).await {
            Ok(channel) => channel,
            Err(lost) => return Ended::Lost(lost),
        };
        let mut opened = Instant::now();
        let mut on_their_way: FuturesUnordered<Confirm> = FuturesUnordered::new();
        let mut progress = Instant::now();
        let mut check = interval(Duration::from_millis(500));
        let mut open = true;
        let mut blocked = up.blocked;
        loop {
            self.unconfirmed.wake(Instant::now());
            self.trouble.show(self.unconfirmed.refused());
            // A queue tells a channel that it refused when there is room again, but not (RabbitMQ 3.10) when the policy that
            // bounded it is gone: a new channel finds out. What is on its way on the old one is still confirmed there.
            if self.unconfirmed.is_stuck() && opened.elapsed() > RENEW_EVERY {
                channel = match self.open(up).await {
                    Ok(channel) => channel,
                    Err(lost) => return Ended::Lost(lost),
                };
                opened = Instant::now();
            }
            while !blocked && on_their_way.len() < self.max_unconfirmed {
                let Some((number, message)) = self.unconfirmed.say_next() else { break };
                on_their_way.push(Box::pin(say(channel.clone(), number, message)));
            }
            if !open && self.unconfirmed.is_empty() {
                return Ended::Done;
            }
            let room = !self.unconfirmed.has_backlog() && on_their_way.len() < self.max_unconfirmed;
            tokio::select! {
                biased;
                Some((number, message, confirm)) = on_their_way.next() => {
                    progress = Instant::now();
                    if let Err(lost) = self.confirmed(number, &message, confirm, up).await {
                        return Ended::Lost(lost);
                    }
                }
                parcel = self.inbox.recv(), if open && room && !blocked => match parcel {
                    Some(parcel) => {
                        if on_their_way.is_empty() { progress = Instant::now(); }
                        self.unconfirmed.accept(parcel);
                    }
                    None => open = false,
                },
                () = at(self.unconfirmed.wakes_at()) => {}
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

    async fn open(&self, up: &Up) -> Result<Channel, String> {
        match timeout(self.confirm_timeout, open(up)).await {
            Ok(channel) => channel.map_err(|error| error.to_string()),
            Err(_) => Err("no publishing channel in time".to_owned()),
        }
    }

    /// Books one confirm; an error ends the epoch.
    async fn confirmed(
        &mut self,
        number: u64,
        message: &Message,
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
            self.unconfirmed.came_back(id.as_str());
        }
        match self.unconfirmed.confirmed(number, nacked, Instant::now()) {
            Booked::Stored | Booked::Again => Ok(()),
            Booked::Unroutable(times) => self.unroutable(number, message, times, up).await,
        }
    }

    /// Nobody takes the message: the topology is declared anew, and the message said again.
    async fn unroutable(
        &mut self,
        number: u64,
        message: &Message,
        times: u32,
        up: &Up,
    ) -> Result<(), String> {
        let Message { exchange, routing_key, .. } = message;
        let error =
            QueueError::Topology(format!("no queue takes `{routing_key}` from exchange `{exchange}`"));
        warn!(%error, times, "a message came back");
        if times > MAX_RETURNS {
            self.unconfirmed.refuse(number, error);
            return Ok(());
        }
        // Of many that come back together the first waits for all.
        if self.mended.is_none_or(|at| at.elapsed() > MENDED_FOR) {
            sleep(ALL_ARE_TOLD).await;
        }
        let mended = timeout(self.confirm_timeout, declare(&up.connection, self.lanes)).await;
        self.mended = Some(Instant::now());
        match mended {
            Ok(Ok(())) => self.unconfirmed.again(number),
            Ok(Err(error)) => {
                // The link finds the same, says it, and stays down until it is mended: nothing else is published.
                let why = error.to_string();
                if matches!(error, QueueError::Topology(_)) {
                    self.unconfirmed.refuse(number, error);
                }
                return Err(why);
            }
            Err(_) => return Err("the topology could not be declared in time".to_owned()),
        }
        Ok(())
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
