//! `pixfleet demo`: the job of the Restb tutorial, the whole way on one machine.
//!
//! `stage` sets up the sandbox and the provider, `play` runs producer, queue, workers and subscriber, `view` shows how
//! it goes, and `figures` judges by what the sandbox saw.

mod figures;
mod play;
mod stage;
mod view;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use pixfleet_sandbox::Sandbox;
use pixfleet_shared::{
    batch::BatchName,
    fleet::{rabbit::RabbitQueue, redis::Redis},
};
use pixfleet_worker::Engines;
use tokio::net::TcpListener;

use crate::{
    config::Config,
    exit::Exit,
    output,
    results::terminal::{self, folded},
    worker::on_signal,
};

use self::{figures::Figures, play::Play, stage::Judge};

const SERVER_PATIENCE: Duration = Duration::from_secs(3);
const NO_SERVERS: &str =
    "start private servers with `eval \"$(tests/services start)\"`, or name yours in the settings";

/// Run the Restb tutorial's job, 6 images by 6 models at 4 calls a second, against a sandbox that judges
///
/// Everything but the API is real: jobs go through the configured RabbitMQ to two workers in this process, under
/// one limit in the configured Redis, and the results come back through the results exchange. The workers take
/// from the common job queues: use a broker that has no other work.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  pixfleet demo                        with a live view, a table and the statistics
  pixfleet demo --judge bucket         another way of counting calls
  pixfleet demo --json                 the figures as one JSON line")]
pub(crate) struct Args {
    /// How the sandbox decides that a caller is over the limit
    #[arg(long, value_enum, default_value_t)]
    judge: Judge,
    /// Print the figures as one JSON line, and nothing else, on stdout
    #[arg(long)]
    json: bool,
}

/// Plays the job and prints what came of it.
///
/// # Errors
/// When RabbitMQ or Redis is away, or the job is not done within two minutes.
pub(crate) async fn run(args: Args, config: Config) -> anyhow::Result<ExitCode> {
    let stop = on_signal()?;
    let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port for the sandbox")?;
    let sandbox = Sandbox::start(listener, stage::sandbox(args.judge))?;
    let batch = batch_name()?;
    let engines = engines(&config, &batch).await?;
    let played =
        Play { sandbox: &sandbox, engines: &engines, batch: &batch, judge: args.judge }.run(&stop).await;
    engines.queue.close().await;
    let played = match played {
        Err(why) if stop.is_cancelled() => {
            eprintln!("{why:#}");
            return Ok(Exit::WorkLeft.into());
        }
        played => played?,
    };
    let figures = Figures::of(&sandbox.access().await, &played.tally, played.duplicates, stage::results());
    let bill = sandbox.shutdown().await?;
    if args.json {
        output::json(&figures)?;
    } else {
        let (mut gather, width) = (played.gather, terminal::stdout_width());
        output::text(String::from_utf8_lossy(&stage::table(gather.finish(true))))?;
        for line in figures.lines(&played.tally, &bill, &played.workers) {
            output::line(folded(&line, width))?;
        }
        let again = format!("see the results again: pixfleet results --batch {batch} --format table");
        output::line(folded(&again, width))?;
    }
    Ok(if figures.lost > 0 { Exit::Failed } else { Exit::Done }.into())
}

async fn engines(config: &Config, batch: &BatchName) -> anyhow::Result<Engines> {
    let mut redis = config.redis.clone();
    // Keys of its own: a demo neither waits for another fleet's limits nor disturbs them. They expire.
    redis.namespace = format!("pixfleet-{batch}");
    redis.ledger_ttl_s = 3600;
    let redis = Redis::start(&redis)?;
    if let Err(why) = redis.ready(SERVER_PATIENCE).await {
        bail!("{why}: {NO_SERVERS}");
    }
    let mut rabbitmq = config.rabbitmq.clone();
    rabbitmq.connect_timeout_ms = rabbitmq.connect_timeout_ms.min(SERVER_PATIENCE.as_millis() as u64);
    let queue = RabbitQueue::connect(rabbitmq).await.with_context(|| NO_SERVERS)?;
    Ok(Engines { queue, limiter: redis.limiter(), ledger: redis.ledger() })
}

/// A name that no other run has: `demo-20261122-101112-4711`.
fn batch_name() -> anyhow::Result<BatchName> {
    let now = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    Ok(format!("demo-{now}-{}", std::process::id()).parse()?)
}
