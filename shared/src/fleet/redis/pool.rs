//! Connections for commands: a few, multiplexed, each lent for a moment and used by many callers at once.
//!
//! Nobody asks a connection whether it is well before using it. Whoever sees one fail condemns it, and with it all that
//! are as old: they lead to the same server. The pool puts new ones in their place at the next loan; so a server that
//! was demoted, froze or vanished costs one failed exchange, and nobody goes on with it when it comes back as something else.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use deadpool::{
    Runtime,
    managed::{self, Metrics, PoolError, RecycleError, RecycleResult, TimeoutType},
};
use redis::{ErrorKind, RedisError, RedisResult, ServerErrorKind};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Config, Unusable,
    ages::Ages,
    scripts::Scripts,
    servers::{Connection, Servers},
};

/// Without other exchanges, one is made this often, so that health is never old news.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Why there was no answer; safe to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Away(pub(super) String);

/// The way to the server, and what is known of its health.
pub(super) struct Link {
    pool: managed::Pool<Connections>,
    ages: Arc<Ages>,
    servers: Arc<Servers>,
    address: String,
    health: Mutex<Health>,
    pub(super) scripts: Arc<Scripts>,
}

struct Health {
    state: Result<(), String>,
    at: Instant,
}

impl Link {
    pub(super) fn new(config: &Config) -> Result<Self, Unusable> {
        let servers = Arc::new(config.servers()?);
        let address = servers.shown();
        let scripts = Arc::new(Scripts::new());
        let ages = Arc::new(Ages::default());
        let connections = Connections {
            servers: servers.clone(),
            ages: ages.clone(),
            max_age: config.max_age(),
            scripts: scripts.clone(),
        };
        let create = servers.patience();
        let pool = managed::Pool::builder(connections)
            .max_size(config.pool_size)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(create))
            .create_timeout(Some(create))
            .recycle_timeout(Some(create))
            .build()
            .map_err(|error| Unusable(error.to_string()))?;
        Ok(Self {
            pool,
            ages,
            servers,
            health: Mutex::new(Health {
                state: Err(format!("Redis at {address} has not answered yet")),
                at: Instant::now(),
            }),
            address,
            scripts,
        })
    }

    /// Lends a connection to `work`, and draws the conclusions from how it went.
    pub(super) async fn exchange<T, F>(&self, work: impl FnOnce(Connection) -> F + Send) -> Result<T, Away>
    where
        F: Future<Output = RedisResult<T>> + Send,
    {
        let answer = self.look(work).await?;
        self.note(Ok(()));
        Ok(answer)
    }

    /// As [`exchange`](Self::exchange), for work that only reads: a server that answers it may still be one that can't write.
    pub(super) async fn look<T, F>(&self, work: impl FnOnce(Connection) -> F + Send) -> Result<T, Away>
    where
        F: Future<Output = RedisResult<T>> + Send,
    {
        let lent = match self.pool.get().await {
            // A clone to work with, while the pooled one is back at once.
            Ok(pooled) => (*pooled).clone(),
            Err(error) => return Err(self.ill(&unlent(&error))),
        };
        match work(lent.connection).await {
            Ok(answer) => Ok(answer),
            Err(error) => {
                if ends_connection(&error) {
                    self.ages.condemn(lent.age);
                }
                Err(self.ill(&error.to_string()))
            }
        }
    }

    /// A connection of its own that listens.
    pub(super) async fn subscribe(&self, channel: &str) -> Result<redis::aio::PubSub, Away> {
        let connect = async {
            let mut listening = self.servers.listen().await?;
            listening.subscribe(channel).await?;
            Ok::<_, RedisError>(listening)
        };
        match tokio::time::timeout(self.servers.patience(), connect).await {
            Ok(Ok(listening)) => Ok(listening),
            Ok(Err(error)) => Err(Away(format!("Redis at {}: {error}", self.address))),
            Err(_) => Err(Away(format!("Redis at {}: no answer in time", self.address))),
        }
    }

    /// What the last exchange said.
    pub(super) fn health(&self) -> Result<(), String> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).state.clone()
    }

    fn ill(&self, why: &str) -> Away {
        let why = format!("Redis at {}: {why}", self.address);
        self.note(Err(why.clone()));
        Away(why)
    }

    fn note(&self, state: Result<(), String>) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        match (&health.state, &state) {
            (Ok(()), Err(why)) => {
                tracing::warn!(redis.why = %why, "redis does not answer: nothing is sent until it does")
            }
            (Err(_), Ok(())) => tracing::info!(redis.address = %self.address, "redis answers"),
            _ => {}
        }
        *health = Health { state, at: Instant::now() };
    }

    fn quiet_for(&self) -> Duration {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).at.elapsed()
    }
}

/// Keeps the health of an idle process fresh. A write, because a server that only reads can't limit anything.
pub(super) async fn keep_probing(link: Arc<Link>, namespace: Arc<str>, stop: CancellationToken) {
    let key = format!("{namespace}:probe");
    let probe = |mut connection: Connection| {
        let mut write = redis::cmd("SET");
        write.arg(&key).arg(1).arg("PX").arg(10_000);
        async move { write.exec_async(&mut connection).await }
    };
    let keep = async {
        // The first one does not wait: it is what makes the process ready.
        let _ = link.exchange(probe).await;
        loop {
            sleep(PROBE_EVERY).await;
            if link.quiet_for() >= PROBE_EVERY {
                // Health has it already.
                let _ = link.exchange(probe).await;
            }
        }
    };
    stop.run_until_cancelled(keep).await;
}

/// Makes connections and judges them when they are lent.
struct Connections {
    servers: Arc<Servers>,
    ages: Arc<Ages>,
    max_age: Duration,
    scripts: Arc<Scripts>,
}

#[derive(Clone)]
struct Pooled {
    connection: Connection,
    age: u64,
}

impl managed::Manager for Connections {
    type Type = Pooled;
    type Error = RedisError;

    /// Connects and loads the scripts, so that each call of one is a single round trip from the first on.
    async fn create(&self) -> Result<Pooled, RedisError> {
        let age = self.ages.next();
        let mut connection = self.servers.connect().await?;
        for script in self.scripts.all() {
            match (script.load_async(&mut connection).await, &connection) {
                // All masters of a cluster are told, and one that is away must not stop what the others do. Where a
                // script is missing, its first call loads it.
                (Ok(_), _) | (Err(_), Connection::Cluster(_)) => {}
                (Err(error), Connection::Server(_)) => return Err(error),
            }
        }
        Ok(Pooled { connection, age })
    }

    async fn recycle(&self, pooled: &mut Pooled, metrics: &Metrics) -> RecycleResult<RedisError> {
        if self.ages.is_condemned(pooled.age) {
            return Err(RecycleError::message("condemned"));
        }
        if metrics.age() > self.max_age {
            return Err(RecycleError::message("of age"));
        }
        Ok(())
    }
}

/// Whether the connection, or the server at its other end, is of no more use.
fn ends_connection(error: &RedisError) -> bool {
    use ServerErrorKind as Server;
    let of_no_use = matches!(
        error.kind(),
        ErrorKind::Io
            | ErrorKind::Parse
            | ErrorKind::AuthenticationFailed
            | ErrorKind::Server(
                Server::ReadOnly | Server::MasterDown | Server::BusyLoading | Server::ClusterDown
            )
    );
    of_no_use || error.is_unrecoverable_error() || error.code() == Some("NOREPLICAS")
}

fn unlent(error: &PoolError<RedisError>) -> String {
    match error {
        PoolError::Backend(error) => error.to_string(),
        PoolError::Timeout(TimeoutType::Wait) => "no connection was free in time".to_owned(),
        PoolError::Timeout(_) => "connecting took too long".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said_by_server(line: &str) -> RedisError {
        redis::parse_redis_value(format!("-{line}\r\n").as_bytes())
            .and_then(|value| value.extract_error())
            .unwrap_err()
    }

    #[test]
    fn a_connection_to_a_server_that_can_not_write_is_replaced() {
        for line in [
            "READONLY You can't write against a read only replica.",
            "MASTERDOWN Link with MASTER is down.",
            "LOADING Redis is loading the dataset in memory",
            "NOREPLICAS Not enough good replicas to write.",
        ] {
            assert!(ends_connection(&said_by_server(line)), "{line}");
        }
    }

    #[test]
    fn a_connection_that_carried_a_refusal_is_kept() {
        for line in ["OOM command not allowed", "ERR no such thing", "NOPERM no"] {
            assert!(!ends_connection(&said_by_server(line)), "{line}");
        }
    }
}
