//! The limiter that a command speaks to.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use pixfleet_shared::{
    embedded::Embedded,
    fleet::redis::Redis,
    limiter::{LimiterError, RateLimiter},
};

use crate::{
    config,
    engine::{Begin, Choice, Engine, Place},
};

/// The limiter of the fleet, or of a state file.
pub(crate) struct Limiter {
    pub(crate) limiter: Arc<dyn RateLimiter>,
    embedded: Option<Embedded>,
}

/// How long a server that is not there yet is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

impl Limiter {
    /// Connects to Redis, or opens the state file.
    ///
    /// # Errors
    /// When neither answers.
    pub(crate) async fn open(engine: &Choice, config: &config::Config) -> anyhow::Result<Self> {
        match engine.place(&config.engine, None)? {
            Place::Servers => Self::of_fleet(config).await,
            place => match Engine::open(&place, config, Begin::Refused).await? {
                Engine::State(embedded) => Ok(Self { limiter: embedded.limiter(), embedded: Some(embedded) }),
                Engine::Servers(_) => Self::of_fleet(config).await,
            },
        }
    }

    /// Connects to Redis.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn of_fleet(config: &config::Config) -> anyhow::Result<Self> {
        let redis = Redis::start(&config.redis).context("the limiter")?;
        redis.ready(PATIENCE).await.map_err(|why| {
            LimiterError::Away(format!("{why}. Is it running? `redis.url` says where it is"))
        })?;
        Ok(Self { limiter: redis.limiter(), embedded: None })
    }

    /// Lets go of it.
    pub(crate) async fn close(self) {
        if let Some(embedded) = self.embedded {
            embedded.close().await;
        }
    }
}
