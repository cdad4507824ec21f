//! The settings of every role, in one file: each section is the struct of the code that it configures.

use std::collections::BTreeMap;

use pixfleet_shared::{
    fleet::{rabbit, redis},
    settings::{Document, Problems},
    telemetry::LogFormat,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Everything that pixfleet can be told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// What stands behind the commands.
    pub(crate) engine: crate::engine::Config,
    /// The broker that keeps jobs and results.
    pub(crate) rabbitmq: rabbit::Config,
    /// The server that keeps the limits and the ledger.
    pub(crate) redis: redis::Config,
    /// How manifests become jobs.
    pub(crate) enqueue: pixfleet_producer::Config,
    /// What a worker does with its jobs.
    pub(crate) worker: pixfleet_worker::Config,
    /// The worker's own HTTP server: `/livez`, `/readyz`, `/metrics`. It has no access control: keep it on a private
    /// network.
    pub(crate) admin: pixfleet_worker::admin::Config,
    /// The log, on stderr.
    pub(crate) log: Log,
    /// The image APIs, one table each, under a name of yours: a preset and what differs from it, or a definition
    /// of your own. See `docs/providers.md`.
    pub(crate) providers: BTreeMap<String, BTreeMap<String, Value>>,
}

/// The log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// What is logged: a level (`error`, `warn`, `info`, `debug`, `trace`), or levels by module such as
    /// `info,pixfleet_worker=debug`. Default: `info,lapin=off` (pixfleet itself says what becomes of its connections),
    /// and `warn,lapin=off` for the commands that one waits for: `enqueue`, `results`, `demo`.
    pub(crate) filter: String,
    /// How lines are written. Default: `text`.
    pub(crate) format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info,lapin=off".to_owned(), format: LogFormat::default() }
    }
}

impl Config {
    /// What the schema can't say: values that only fit together, or that another library must read.
    pub(super) fn problems(&self, document: &Document) -> Problems {
        let mut problems = Problems::default();
        let mut demand = |holds: bool, field: &str, message: &str| {
            if !holds {
                problems.push(document.problem(field, message));
            }
        };
        let amqp = ["amqp://", "amqps://"].iter().any(|scheme| self.rabbitmq.url.starts_with(scheme));
        demand(amqp, "rabbitmq.url", "not a RabbitMQ URL: give amqp://HOST:PORT/VHOST or amqps://…");
        if let Err(why) = self.redis.check_url() {
            demand(false, "redis.url", &why);
        }
        let listen = &self.admin.listen;
        demand(
            listen.is_empty() || is_address(listen),
            "admin.listen",
            "not an address: give HOST:PORT, for example 127.0.0.1:9600, or \"\" for no server",
        );
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log.filter) {
            let message = format!(
                "can't be read ({error}): give a level, for example info, or info,pixfleet_worker=debug"
            );
            problems.push(document.problem("log.filter", message));
        }
        problems
    }
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}
