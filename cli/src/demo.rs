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
    engine::{Engine, Kind, Place},
    exit::Exit,
    output,
    results::terminal::{self, folded},
    worker::on_signal,
};

use self::{
    figures::Figures,
    play::{Folder, Play},
    stage::Judge,
};

const SERVER_PATIENCE: Duration = Duration::from_secs(3);
const NO_SERVERS: &str =
    "start private servers with `eval \"$(tests/services start)\"`, or name yours in the settings";

/// Run the Restb tutorial's job, 6 images by 6 models at 4 calls a second, against a sandbox that judges
///
/// Everything but the API is real: a producer, a queue, two workers under one limit, and a subscriber. They work on a
/// state file of their own, so nothing has to be installed. With `--engine rabbitmq` they work on the configured
/// RabbitMQ and Redis, and the workers take from the common job queues: use a broker that has no other work.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  pixfleet demo                        with a live view, a table and the statistics
  pixfleet demo --judge bucket         another way of counting calls
  pixfleet demo --engine rabbitmq      the same on servers
  pixfleet demo --json                 the figures as one JSON line")]
pub(crate) struct Args {
    /// How the sandbox decides that a caller is over the limit
    #[arg(long, value_enum, default_value_t)]
    judge: Judge,
    /// What the parts work on
    #[arg(long, value_enum, default_value_t = Kind::Embedded)]
    engine: Kind,
    /// Print the figures as one JSON line, and nothing else, on stdout
    #[arg(long)]
    json: bool,
}

/// Plays the job and prints what came of it.
///
/// # Errors
/// When the engine can't be used, or the job is not done within two minutes.
pub(crate) async fn run(args: Args, config: Config) -> anyhow::Result<ExitCode> {
    let stop = on_signal()?;
    let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port for the sandbox")?;
    let sandbox = Sandbox::start(listener, stage::sandbox(args.judge))?;
    let batch = batch_name()?;
    let folder = Folder::new(&batch)?;
    let (engine, engines) = match args.engine {
        Kind::Rabbitmq => servers(&config, &batch).await?,
        Kind::Embedded => {
            let place = Place::State(folder.path().join("demo.pixfleet"));
            Engine::start(&place, &config, vec![stage::PROVIDER.to_owned()]).await?
        }
    };
    let play =
        Play { sandbox: &sandbox, engine: &engine, engines: &engines, batch: &batch, judge: args.judge };
    let played = play.run(&folder, &stop).await;
    engine.close().await;
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
        if args.engine == Kind::Rabbitmq {
            let again = format!("see the results again: pixfleet results --batch {batch} --format table");
            output::line(folded(&again, width))?;
        }
    }
    Ok(if figures.lost > 0 { Exit::Failed } else { Exit::Done }.into())
}

async fn servers(config: &Config, batch: &BatchName) -> anyhow::Result<(Engine, Engines)> {
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
    let engines = Engines {
        queue: queue.clone(),
        limiter: redis.limiter(),
        ledger: redis.ledger(),
        answers: redis.answers(),
        batches: redis.batches(),
    };
    Ok((Engine::Servers(queue), engines))
}

/// A name that no other run has: `demo-20261122-101112-4711`.
fn batch_name() -> anyhow::Result<BatchName> {
    let now = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    Ok(format!("demo-{now}-{}", std::process::id()).parse()?)
}
