//! Which engine stands behind the seams: servers for a fleet, or a state file for one machine.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, bail};
use pixfleet_shared::{
    batch::BatchName,
    embedded::Embedded,
    fleet::{rabbit::RabbitQueue, redis::Redis},
    queue::Queue,
};
use pixfleet_worker::Engines;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config;

/// The `[engine]` settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// What `enqueue`, `worker` and `results` work on: `rabbitmq` (RabbitMQ and Redis, for any number of machines) or
    /// `embedded` (a state file, for this one). Default: `rabbitmq`. `run` and `demo` need no server.
    pub(crate) kind: Kind,
    /// The state file of the embedded engine. Default: not set, which is `<batch>.pixfleet` in the working folder.
    pub(crate) state: Option<PathBuf>,
}

/// An engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// RabbitMQ and Redis, for any number of machines
    #[default]
    Rabbitmq,
    /// A state file, for one machine
    Embedded,
}

/// What a command line says of the engine.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Choice {
    /// Work on this state file, with no server [default: the engine of the settings]
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Option<PathBuf>,
}

/// Where a role works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The servers of the settings.
    Servers,
    /// This state file.
    State(PathBuf),
}

/// Whether a state file may be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// It is begun where there is none.
    Allowed,
    /// It has to be there: who only looks must not be shown an empty one because of a typing error.
    Refused,
}

/// The state file that a batch's run has by default.
pub(crate) fn state_of(batch: &BatchName) -> PathBuf {
    PathBuf::from(format!("{batch}.pixfleet"))
}

impl Choice {
    /// Where to work: the flag, else the settings.
    ///
    /// # Errors
    /// When the settings choose a state file and nobody says which.
    pub(crate) fn place(&self, settings: &Config, batch: Option<&BatchName>) -> anyhow::Result<Place> {
        if let Some(state) = &self.state {
            return Ok(Place::State(state.clone()));
        }
        match (settings.kind, &settings.state, batch) {
            (Kind::Rabbitmq, ..) => Ok(Place::Servers),
            (Kind::Embedded, Some(state), _) => Ok(Place::State(state.clone())),
            (Kind::Embedded, None, Some(batch)) => Ok(Place::State(state_of(batch))),
            (Kind::Embedded, None, None) => {
                bail!("the embedded engine works on a state file: give --state FILE, or set engine.state")
            }
        }
    }
}

/// An engine that was opened.
pub(crate) enum Engine {
    /// The servers.
    Servers(Arc<RabbitQueue>),
    /// The state file.
    State(Embedded),
}

impl Engine {
    /// Connects to the broker, or opens the state file.
    ///
    /// # Errors
    /// When the broker is away, or the file can't be used.
    pub(crate) async fn open(place: &Place, config: &config::Config, begin: Begin) -> anyhow::Result<Self> {
        match place {
            Place::Servers => Ok(Self::Servers(RabbitQueue::connect(config.rabbitmq.clone()).await?)),
            Place::State(state) if begin == Begin::Refused && !state.exists() => bail!(
                "there is no state file {}: `pixfleet run` and `pixfleet enqueue --state` begin one",
                state.display()
            ),
            Place::State(state) => Ok(Self::State(Embedded::open(state).await?)),
        }
    }

    /// The same for a worker of these providers: it waits for servers that are away.
    ///
    /// # Errors
    /// When the settings can't be used, or the file.
    pub(crate) async fn start(
        place: &Place,
        config: &config::Config,
        providers: Vec<String>,
    ) -> anyhow::Result<(Self, Engines)> {
        let engine = match place {
            Place::Servers => Self::Servers(RabbitQueue::start(config.rabbitmq.clone())),
            Place::State(_) => Self::open(place, config, Begin::Allowed).await?,
        };
        let engines = match &engine {
            Self::Servers(queue) => {
                let redis = Redis::start(&config.redis).context("the limiter and the ledger")?;
                Engines {
                    queue: queue.clone(),
                    limiter: redis.limiter(),
                    ledger: redis.ledger(),
                    answers: redis.answers(),
                    batches: redis.batches(),
                }
            }
            Self::State(embedded) => engines_of(embedded, providers),
        };
        Ok((engine, engines))
    }

    /// The queue.
    pub(crate) fn queue(&self) -> Arc<dyn Queue> {
        match self {
            Self::Servers(queue) => queue.clone(),
            Self::State(embedded) => embedded.queue(),
        }
    }

    /// Lets go of the servers, or of the file.
    pub(crate) async fn close(&self) {
        match self {
            Self::Servers(queue) => queue.close().await,
            Self::State(embedded) => embedded.close().await,
        }
    }
}

/// The three seams of a state file, for a worker of these providers.
pub(crate) fn engines_of(embedded: &Embedded, providers: Vec<String>) -> Engines {
    let queue = embedded.queue_of(providers);
    Engines {
        queue,
        limiter: embedded.limiter(),
        ledger: embedded.ledger(),
        answers: embedded.answers(),
        batches: embedded.batches(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_wins_over_the_settings_and_a_batch_names_its_file() {
        let batch = "spring".parse().unwrap();
        let flag = Choice { state: Some("a.pixfleet".into()) };
        let none = Choice::default();
        let embedded = Config { kind: Kind::Embedded, state: None };
        assert_eq!(flag.place(&Config::default(), None).unwrap(), Place::State("a.pixfleet".into()));
        assert_eq!(none.place(&Config::default(), Some(&batch)).unwrap(), Place::Servers);
        assert_eq!(none.place(&embedded, Some(&batch)).unwrap(), Place::State("spring.pixfleet".into()));
        assert!(none.place(&embedded, None).unwrap_err().to_string().contains("--state"));
    }
}
