//! Hears of the fleet's hold-offs, on a connection of its own.
//!
//! A message is news, not the truth, which is in the stack's hash: after each new connection it is read again.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, future::try_join_all};
use rand::RngExt;
use redis::{Cmd, Msg, Value};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    hold_offs::{Held, HoldOffs},
    limiter::{channel, key},
    pool::{Away, Link},
    servers::Connection,
};
use crate::clock::Clock;

/// A connection that says nothing is asked this often whether it still lives.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// What the listener writes to and reads from.
pub(super) struct Ears {
    pub(super) link: Arc<Link>,
    pub(super) hold_offs: Arc<HoldOffs>,
    pub(super) clock: Arc<Clock>,
    pub(super) namespace: Arc<str>,
}

/// Listens until `stop`, through any number of connections.
pub(super) async fn listen(ears: Ears, stop: CancellationToken) {
    let listen = async {
        let mut backoff = MIN_BACKOFF;
        loop {
            let began = Instant::now();
            let Away(why) = ears.one_connection().await;
            if began.elapsed() > MAX_BACKOFF {
                backoff = MIN_BACKOFF;
            }
            tracing::debug!(redis.why = %why, backoff_ms = backoff.as_millis() as u64, "not listening for hold-offs");
            let share: f64 = rand::rng().random_range(0.5..1.0);
            sleep(backoff.mul_f64(share)).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    };
    stop.run_until_cancelled(listen).await;
}

impl Ears {
    /// Listens on one connection until it fails, and says why it did.
    async fn one_connection(&self) -> Away {
        let (mut sink, mut news) = match self.link.subscribe(&channel(&self.namespace)).await {
            Ok(listening) => listening.split(),
            Err(away) => return away,
        };
        // Subscribed first: what is said while we read is heard as well.
        if let Err(away) = self.catch_up().await {
            return away;
        }
        let mut ticks = interval(PING_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = news.next() => match message {
                    Some(message) => self.hear(&message),
                    None => return Away("the connection that listens was closed".to_owned()),
                },
                _ = ticks.tick() => match timeout(PING_TIMEOUT, sink.ping::<Value>()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return Away(error.to_string()),
                    Err(_) => return Away("the connection that listens does not answer".to_owned()),
                },
            }
        }
    }

    /// `<until on the server's clock> <time left> <stack>`, in microseconds. Anything else is none of ours.
    fn hear(&self, message: &Msg) {
        let Ok(text) = std::str::from_utf8(message.get_payload_bytes()) else {
            return;
        };
        let mut parts = text.splitn(3, ' ');
        let mut number = || parts.next()?.parse::<u64>().ok();
        if let (Some(server_us), Some(left_us)) = (number(), number())
            && let Some(stack) = parts.next()
        {
            self.note(stack, server_us, left_us);
        }
    }

    fn note(&self, stack: &str, server_us: u64, left_us: u64) {
        let until = if self.clock.is_set() {
            self.clock.at(server_us)
        } else {
            Instant::now() + Duration::from_micros(left_us)
        };
        self.hold_offs.note(stack, Held { until, server_us });
    }

    /// Reads the hold-offs of every stack that matters here.
    async fn catch_up(&self) -> Result<(), Away> {
        // Without a clock nothing was asked yet, and the first answer will tell.
        let stacks = if self.clock.is_set() { self.hold_offs.watched() } else { Vec::new() };
        if stacks.is_empty() {
            return Ok(());
        }
        let ask = |stack: &String| {
            let mut ask = redis::cmd("HGET");
            ask.arg(key(&self.namespace, stack)).arg("nb");
            ask
        };
        let questions: Vec<Cmd> = stacks.iter().map(ask).collect();
        // Not as one pipeline: in a cluster each stack may be on another node.
        let work = move |connection: Connection| async move {
            try_join_all(questions.iter().map(|ask| {
                let mut connection = connection.clone();
                async move { ask.query_async::<Option<u64>>(&mut connection).await }
            }))
            .await
        };
        for (stack, held) in stacks.iter().zip(self.link.exchange(work).await?) {
            if let Some(server_us) = held {
                self.note(stack, server_us, 0);
            }
        }
        Ok(())
    }
}
