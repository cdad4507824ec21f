//! One supervised connection: connects, declares the topology, notices its end, and connects again.
//!
//! lapin's own recovery stays off: it re-publishes nothing, its reconnect has no time limit, and a channel that
//! the broker closes would come back under the feet of whoever holds it. Here an epoch ends for everybody at once.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use lapin::{Connection, ConnectionProperties, Event, uri::AMQPUri};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use super::{config::Config, declare::declare, topology};
use crate::queue::QueueError;

/// The longest pause between two attempts. However long the broker was away, a fleet is at its full rate within 5 s of its
/// return, so nobody may sleep for longer than a part of that; a thousand workers with two connections each ask it two thousand times a
/// second.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// What keeps a connection from being made is said again after this time.
const SAID_FOR: Duration = Duration::from_secs(30);
/// A connection that lived this long was healthy: the next attempt comes soon again.
const HEALTHY: Duration = Duration::from_secs(60);
/// Largest frame of a connection that is sent no messages, in bytes. lapin keeps 64 of them buffered a connection; a broker of
/// 4.1 or later refuses less than 8 KiB.
const FRAME_MAX: u32 = 32 * 1024;
/// Of one that is sent messages: what the broker takes from publishers by default. A message's headers come in one frame, even
/// one that is larger than was agreed, and it would end the connection each time that it comes.
const FRAME_MAX_OF_CONSUMERS: u32 = 128 * 1024;
/// How often a connection's state is looked at, besides its events.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Time for a connection to say goodbye; a blocked one never does.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The names of the connections.
pub(super) const PUBLISH: &str = "publish";
pub(super) const CONSUME: &str = "consume";

/// One connection's present state.
#[derive(Clone)]
pub(super) enum State {
    /// Not connected, and why.
    Down(QueueError),
    /// Connected.
    Up(Up),
}

/// A living connection.
#[derive(Clone)]
pub(super) struct Up {
    pub(super) connection: Arc<Connection>,
    pub(super) epoch: u64,
    /// The broker takes no publishes now.
    pub(super) blocked: bool,
}

/// A handle on one supervised connection.
#[derive(Clone)]
pub(super) struct Link {
    state: watch::Receiver<State>,
    retire: mpsc::Sender<u64>,
}

impl Link {
    /// Starts the supervisor; it ends with `stop`.
    pub(super) fn start(
        name: &'static str,
        config: Config,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (state, seen) = watch::channel(State::Down(QueueError::Away("not connected yet".to_owned())));
        let (retire, retired) = mpsc::channel(4);
        let supervisor = Supervisor { name, config, state, retired, stop, said: None };
        tasks.spawn(supervisor.run());
        Self { state: seen, retire }
    }

    /// Waits until the connection is up.
    pub(super) async fn up(&mut self) -> Up {
        loop {
            if let State::Up(up) = &*self.state.borrow_and_update() {
                return up.clone();
            }
            if self.state.changed().await.is_err() {
                // The supervisor has ended: nothing will ever be up again, and whoever waits is being stopped.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until the epoch is over or the broker blocks or unblocks it.
    pub(super) async fn changed(&mut self) {
        if self.state.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The state now.
    pub(super) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Says that the connection of `epoch` is no good: it is closed, and a new one made.
    pub(super) fn retire(&self, epoch: u64) {
        // A full channel holds the same message already.
        let _ = self.retire.try_send(epoch);
    }
}

struct Supervisor {
    name: &'static str,
    config: Config,
    state: watch::Sender<State>,
    retired: mpsc::Receiver<u64>,
    stop: CancellationToken,
    /// What was last said of a broker that is away, and when.
    said: Option<(String, Instant)>,
}

impl Supervisor {
    async fn run(mut self) {
        let stop = self.stop.clone();
        let mut failures = 0;
        for epoch in 1.. {
            let since = Instant::now();
            let ended = tokio::select! {
                ended = self.epoch(epoch) => ended,
                () = stop.cancelled() => return self.close().await,
            };
            failures = if since.elapsed() > HEALTHY { 0 } else { failures + 1 };
            self.say(&ended);
            self.state.send_replace(State::Down(ended));
            tokio::select! {
                () = sleep(pause(failures, rand::random())) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Says why it ended; the same again not so soon. A topology that differs stays so until somebody mends it: that is said
    /// once, as an error.
    fn say(&mut self, ended: &QueueError) {
        let (connection, broker) = (self.name, self.config.endpoint());
        let QueueError::Topology(difference) = ended else {
            let reason = ended.to_string();
            let lately = |(said, at): &(String, Instant)| *said == reason && at.elapsed() < SAID_FOR;
            if !self.said.as_ref().is_some_and(lately) {
                warn!(connection, %broker, reason, "disconnected");
                self.said = Some((reason, Instant::now()));
            }
            return;
        };
        let said =
            matches!(&*self.state.borrow(), State::Down(QueueError::Topology(said)) if said == difference);
        if !said {
            error!(connection, %broker, difference, "the topology has to be mended; looking again until it is");
        }
    }

    /// From connecting to the connection's end; returns why it ended.
    async fn epoch(&mut self, epoch: u64) -> QueueError {
        let connection = match timeout(self.config.connect_timeout(), self.connect()).await {
            Ok(Ok(connection)) => Arc::new(connection),
            Ok(Err(error)) => return error,
            Err(_) => {
                return QueueError::Away(format!("no answer within {} ms", self.config.connect_timeout_ms));
            }
        };
        info!(connection = self.name, broker = %self.config.endpoint(), epoch, "connected");
        self.said = None;
        let mut events = connection.events_listener();
        let up = |blocked| State::Up(Up { connection: connection.clone(), epoch, blocked });
        self.state.send_replace(up(connection.status().blocked()));
        // An event can be missed (it may be sent before anyone listens), a state can't.
        let mut check = interval(CHECK_EVERY);
        loop {
            tokio::select! {
                _ = check.tick() => if !connection.status().connected() {
                    return QueueError::Away("the connection ended".to_owned());
                },
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => {
                        warn!(connection = self.name, reason, "the broker takes no publishes");
                        self.state.send_replace(up(true));
                    }
                    Some(Event::ConnectionUnblocked) => { self.state.send_replace(up(false)); }
                    Some(Event::Error(error)) if !connection.status().connected() => return topology::away(error),
                    None => return QueueError::Away("the connection ended".to_owned()),
                    Some(_) => {}
                },
                Some(retired) = self.retired.recv() => if retired == epoch {
                    let _ = timeout(CLOSE_TIMEOUT, connection.close(200, "retired".into())).await;
                    return QueueError::Away("given up by its user".to_owned());
                },
            }
        }
    }

    async fn connect(&self) -> Result<Connection, QueueError> {
        let connection = connect(&self.config, self.name).await?;
        declare(&connection, self.config.lanes).await?;
        Ok(connection)
    }

    async fn close(self) {
        let state = self.state.borrow().clone();
        if let State::Up(up) = state {
            let _ = timeout(CLOSE_TIMEOUT, up.connection.close(200, "done".into())).await;
        }
    }
}

/// One connection, whose end nobody looks after. The caller bounds the time.
pub(super) async fn connect(config: &Config, name: &str) -> Result<Connection, QueueError> {
    let url = config.resolved_url().map_err(QueueError::Away)?;
    // The parser's error repeats the URL, which may hold a password.
    let mut uri: AMQPUri = url.parse().map_err(|_| {
        QueueError::Topology(
            "rabbitmq.url is not an AMQP URL: give amqp://user:password@host:port/vhost".into(),
        )
    })?;
    uri.query.heartbeat.get_or_insert(config.heartbeat_s);
    let frame_max = if name == CONSUME { FRAME_MAX_OF_CONSUMERS } else { FRAME_MAX };
    uri.query.frame_max.get_or_insert(frame_max);
    let name = format!("pixfleet {name} {}", std::process::id());
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    Connection::connect_uri(uri, properties).await.map_err(topology::away)
}

/// Full jitter over an exponential: `random` is in 0..1.
fn pause(failures: u32, random: f64) -> Duration {
    let ceiling = Duration::from_millis(100).saturating_mul(1 << failures.min(10)).min(MAX_PAUSE);
    Duration::from_millis(20) + ceiling.mul_f64(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_failures_and_stay_bounded() {
        assert!(pause(1, 0.999) < Duration::from_millis(250));
        assert!(pause(60, 0.999) <= MAX_PAUSE + Duration::from_millis(20));
        assert!(pause(60, 0.0) < Duration::from_millis(30), "full jitter reaches down to nothing");
    }
}
