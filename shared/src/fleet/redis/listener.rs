//! Hears what the fleet says to itself, on a connection of its own: hold-offs, changed terms, shares to give up,
//! batches that are kept or let go.
//!
//! A message is news, not the truth, which is in the stack's hash: after each new connection it is read again, and a
//! server that may have lost it is told what this process remembers.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use rand::RngExt;
use redis::{Msg, Value};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{hold_offs::Held, pool::Away, wire::Wire};

/// A connection that says nothing is asked this often whether it still lives.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// Listens until `stop`, through any number of connections.
pub(super) async fn listen(wire: Arc<Wire>, stop: CancellationToken) {
    let listen = async {
        let mut backoff = MIN_BACKOFF;
        loop {
            let began = Instant::now();
            let Away(why) = wire.one_connection().await;
            wire.listens(false);
            if began.elapsed() > MAX_BACKOFF {
                backoff = MIN_BACKOFF;
            }
            tracing::debug!(redis.why = %why, backoff_ms = backoff.as_millis() as u64, "not listening to the fleet");
            let share: f64 = rand::rng().random_range(0.5..1.0);
            sleep(backoff.mul_f64(share)).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    };
    stop.run_until_cancelled(listen).await;
}

impl Wire {
    /// Listens on one connection until it fails, and says why it did.
    async fn one_connection(&self) -> Away {
        let (mut sink, mut news) = match self.link.subscribe(&self.channel()).await {
            Ok(listening) => listening.split(),
            Err(away) => return away,
        };
        // Subscribed first: what is said while we read is heard as well.
        self.listens(true);
        if let Err(away) = self.catch_up().await {
            return away;
        }
        let mut ticks = interval(PING_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = news.next() => match message {
                    Some(message) => self.hear(&message).await,
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

    /// One word, and what it is about. Anything else is of a later release, and none of ours.
    async fn hear(&self, message: &Msg) {
        let Some((word, rest)) =
            std::str::from_utf8(message.get_payload_bytes()).ok().and_then(|text| text.split_once(' '))
        else {
            return;
        };
        match word {
            "held" => self.hear_of_hold_off(rest),
            "free" => self.hold_offs.forget(rest),
            "open" | "share" => {}
            "holds" => return self.holds_hint.notify_one(),
            // Whoever asks next would learn it anyway; who waits has to be woken.
            "terms" => match self.terms(rest).await {
                Ok(terms) => {
                    self.knowledge.adopt(rest, terms);
                }
                Err(Away(why)) => tracing::debug!(redis.why = %why, stack = rest, "terms not read"),
            },
            "lost" => {
                if let Err(Away(why)) = self.remember(rest).await {
                    tracing::debug!(redis.why = %why, stack = rest, "not said again");
                }
            }
            _ => return,
        }
        self.knowledge.announce();
    }

    /// `<until on the server's clock> <time left> <stack>`, in microseconds.
    fn hear_of_hold_off(&self, text: &str) {
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

    /// Reads hold-off and terms of every stack that matters here, once it was said again what this process remembers.
    async fn catch_up(&self) -> Result<(), Away> {
        // Without a clock nothing was asked yet, and the first answer will tell.
        let stacks = if self.clock.is_set() { self.hold_offs.watched() } else { Vec::new() };
        for stack in self.knowledge.names() {
            self.remember(&stack).await?;
        }
        for stack in &stacks {
            self.catch_up_with(stack).await?;
        }
        self.knowledge.announce();
        Ok(())
    }

    /// Reads hold-off and terms of one stack.
    pub(super) async fn catch_up_with(&self, stack: &str) -> Result<(), Away> {
        let (_, fields) = self.hash(stack).await?;
        if let Some(server_us) = fields.get("nb").and_then(|text| text.parse().ok()) {
            self.note(stack, server_us, 0);
        }
        let terms = self.terms(stack).await?;
        self.knowledge.adopt(stack, terms);
        Ok(())
    }
}
