//! The limiter and the ledger on Redis.
//!
//! [`Redis::start`] needs no server yet: without one nothing is granted, [`health`](crate::limiter::RateLimiter::health)
//! says why, and work begins when it answers. Two kinds of connection are kept: a pool of multiplexed ones for
//! commands, and one that listens for the fleet's hold-offs.

mod address;
mod ages;
mod answers;
mod batches;
mod bill;
mod calls;
mod clerk;
mod completion;
mod config;
mod hold_offs;
mod holds;
mod keys;
mod ledger;
mod limiter;
mod listener;
mod pool;
mod reply;
mod round;
mod rounds;
mod scripts;
mod servers;
mod told;
mod wire;
mod word;

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{answers::Answers, batches::Batches, ledger::Ledger, limiter::RateLimiter};

pub use config::Config;
pub use ledger::RedisLedger;
pub use limiter::{Booking, RedisLimiter};

use pool::Link;
use wire::Wire;

/// The settings can't work, whatever the server does.
#[derive(Debug, thiserror::Error)]
#[error("redis: {0}")]
pub struct Unusable(String);

/// The engine of one process: its limiter and its ledger over one pool.
#[derive(Clone)]
pub struct Redis {
    limiter: Arc<RedisLimiter>,
    ledger: Arc<RedisLedger>,
}

/// Ends the background tasks with the last part of the engine that needs them.
type Background = Arc<DropGuard>;

impl Redis {
    /// Starts the engine on the current Tokio runtime. The server may be away.
    ///
    /// # Errors
    /// [`Unusable`] when the URL can't be read or understood.
    pub fn start(config: &Config) -> Result<Self, Unusable> {
        let link = Arc::new(Link::new(config)?);
        let stop = CancellationToken::new();
        let namespace: Arc<str> = config.namespace.as_str().into();
        tokio::spawn(pool::keep_probing(link.clone(), namespace.clone(), stop.clone()));
        let wire = Arc::new(Wire::new(link.clone(), namespace));
        tokio::spawn(listener::listen(wire.clone(), stop.clone()));
        let background: Background = Arc::new(stop.clone().drop_guard());
        let ledger = RedisLedger::new(link, &wire, config.ledger_ttl(), stop, background.clone());
        Ok(Self { limiter: Arc::new(RedisLimiter::new(wire, background)), ledger: Arc::new(ledger) })
    }

    /// The limiter.
    pub fn limiter(&self) -> Arc<RedisLimiter> {
        self.limiter.clone()
    }

    /// Round trips so far of what is said of calls, answers and batches.
    pub fn ledger_trips(&self) -> u64 {
        self.ledger.trips()
    }

    /// The ledger.
    pub fn ledger(&self) -> Arc<dyn Ledger> {
        self.ledger.clone()
    }

    /// What was answered before.
    pub fn answers(&self) -> Arc<dyn Answers> {
        self.ledger.clone()
    }

    /// What is known of each batch.
    pub fn batches(&self) -> Arc<dyn Batches> {
        self.ledger.clone()
    }

    /// Waits until the server has answered, at most this long.
    ///
    /// # Errors
    /// Why it has not, as [`health`](RateLimiter::health) says it.
    pub async fn ready(&self, within: Duration) -> Result<(), String> {
        let deadline = Instant::now() + within;
        loop {
            match self.limiter.health() {
                Ok(()) => return Ok(()),
                Err(why) if Instant::now() >= deadline => return Err(why),
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }
}
