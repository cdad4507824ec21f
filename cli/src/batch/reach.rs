//! The engines that a command about batches or calls speaks to.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use pixfleet_shared::{
    batch::BatchName,
    batches::Batches,
    embedded::Embedded,
    fleet::{rabbit::RabbitQueue, redis::Redis},
    ledger::{Ledger, LedgerError},
    queue::Queue,
};
use tokio::time::timeout;

use crate::{
    config::Config,
    engine::{Begin, Choice, Engine, Place},
};

/// How long servers that are not there yet are waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a queue may take to be let go of.
const LAST_WORD: Duration = Duration::from_secs(5);

/// What is known of calls and batches, in the fleet or in a state file.
pub(crate) struct Reach {
    /// Of each call.
    pub(crate) ledger: Arc<dyn Ledger>,
    /// Of each batch.
    pub(crate) batches: Arc<dyn Batches>,
    embedded: Option<Embedded>,
}

/// The queue of a [`Reach`], which lets go of its servers.
pub(crate) struct Lanes {
    /// The queue.
    pub(crate) queue: Arc<dyn Queue>,
    /// A state file is closed with its reach.
    own: bool,
}

impl Reach {
    /// Connects to Redis, or opens the state file.
    ///
    /// # Errors
    /// When neither answers.
    pub(crate) async fn open(
        engine: &Choice,
        config: &Config,
        batch: Option<&BatchName>,
    ) -> anyhow::Result<Self> {
        let place = engine.place(&config.engine, batch)?;
        if place == Place::Servers {
            return Self::of_fleet(config).await;
        }
        match Engine::open(&place, config, Begin::Refused).await? {
            Engine::State(embedded) => {
                Ok(Self { ledger: embedded.ledger(), batches: embedded.batches(), embedded: Some(embedded) })
            }
            Engine::Servers(_) => Self::of_fleet(config).await,
        }
    }

    /// Connects to Redis.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn of_fleet(config: &Config) -> anyhow::Result<Self> {
        let redis = Redis::start(&config.redis).context("the ledger")?;
        redis.ready(PATIENCE).await.map_err(|why| {
            LedgerError::Away(format!("{why}. Is it running? `redis.url` says where it is"))
        })?;
        Ok(Self { ledger: redis.ledger(), batches: redis.batches(), embedded: None })
    }

    /// The queue: that of the state file, or the broker's.
    ///
    /// # Errors
    /// When the broker is away.
    pub(crate) async fn queue(&self, config: &Config) -> anyhow::Result<Lanes> {
        match &self.embedded {
            Some(embedded) => Ok(Lanes { queue: embedded.queue(), own: false }),
            None => {
                let mut rabbitmq = config.rabbitmq.clone();
                let patience = u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX);
                rabbitmq.connect_timeout_ms = rabbitmq.connect_timeout_ms.min(patience);
                Ok(Lanes { queue: RabbitQueue::connect(rabbitmq).await?, own: true })
            }
        }
    }

    /// The state file, where it is one.
    pub(crate) fn state(&self) -> Option<&Embedded> {
        self.embedded.as_ref()
    }

    /// Lets go of it, once what was said is stored.
    pub(crate) async fn close(self) {
        self.ledger.flush().await;
        if let Some(embedded) = self.embedded {
            embedded.close().await;
        }
    }
}

impl Lanes {
    /// Lets go of the broker.
    pub(crate) async fn close(self) {
        if self.own {
            // What was handed over is durable by now: there is nothing to lose.
            let _ = timeout(LAST_WORD, self.queue.close()).await;
        }
    }
}
