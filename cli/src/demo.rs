//! `pixfleet demo`: the job of the Restb tutorial, the whole way on one machine.
//!
//! `stage` sets up the sandbox and the provider, this file runs producer, queue, workers and subscriber, `view`
//! shows how it goes, and `figures` judges by what the sandbox saw.

mod figures;
mod stage;
mod view;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use pixfleet_producer::{
    BadRows, Order,
    manifest::{Manifest, Reading},
    plan::{Plan, Tariff},
    record::{Identity, Record},
};
use pixfleet_sandbox::{Running, Sandbox};
use pixfleet_shared::{
    batch::BatchName,
    fleet::{rabbit::RabbitQueue, redis::Redis},
    job::Priority,
    queue::{Filter, From, Subscription},
    result::Announcement,
    trace::TraceParent,
};
use pixfleet_worker::{Engines, Report};
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::interval};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    exit::Exit,
    output,
    results::{Gather, Sight, Source, Tally},
    worker::on_signal,
};

use self::{figures::Figures, stage::Judge, view::View};

/// What a stalled broker or a machine under heavy load may take; the job itself takes ten seconds.
const PATIENCE: Duration = Duration::from_secs(120);
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
        let mut gather = played.gather;
        output::line(stage::table(&gather.finish(true)))?;
        for line in figures.lines(&played.tally, &bill, &played.workers) {
            output::line(line)?;
        }
        output::line(format!("see the results again: pixfleet results --batch {batch} --format table"))?;
    }
    Ok(if figures.lost > 0 { Exit::Failed } else { Exit::Done }.into())
}

/// One run of the job.
struct Play<'a> {
    sandbox: &'a Running,
    engines: &'a Engines,
    batch: &'a BatchName,
    judge: Judge,
}

/// What one run left.
struct Played {
    tally: Tally,
    gather: Gather,
    duplicates: u64,
    workers: Vec<Report>,
}

impl Play<'_> {
    async fn run(&self, stop: &CancellationToken) -> anyhow::Result<Played> {
        let queue = &*self.engines.queue;
        // Before the jobs: a reader of the log that begins now is there for the first result.
        let mut results = Source::open(queue, self.subscription()).await?;
        let shutdown = stop.child_token();
        let mut workers = self.workers(&shutdown)?;
        self.enqueue(stop).await?;
        let read = tokio::select! {
            read = self.read(&mut results) => read,
            () = stop.cancelled() => Err(anyhow::anyhow!("interrupted; what was not done is still in the queue")),
            () = tokio::time::sleep(PATIENCE) => Err(anyhow::anyhow!(
                "not done within {} s: does another fleet take jobs from this broker? The log (stderr) says more",
                PATIENCE.as_secs()
            )),
        };
        shutdown.cancel();
        let mut reports = Vec::new();
        while let Some(ended) = workers.join_next().await {
            reports.push(ended??);
        }
        let (tally, gather, duplicates) = read?;
        Ok(Played { tally, gather, duplicates, workers: reports })
    }

    /// Its results are only minutes old: the log is not read from its beginning.
    fn subscription(&self) -> Subscription {
        Subscription {
            name: None,
            from: From::Ago(Duration::from_secs(60)),
            filter: Filter { batch: Some(self.batch.clone()), ..Filter::default() },
        }
    }

    fn workers(
        &self,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<JoinSet<Result<Report, pixfleet_worker::RunError>>> {
        let mut workers = JoinSet::new();
        for number in 1..=stage::WORKERS {
            let provider = Arc::new(stage::provider(&self.sandbox.url(), self.judge)?);
            let config = pixfleet_worker::Config { name: format!("worker-{number}"), ..Default::default() };
            let working =
                pixfleet_worker::run(config, vec![provider], self.engines.clone(), None, shutdown.clone());
            workers.spawn(working);
        }
        Ok(workers)
    }

    /// As `pixfleet enqueue` does it: a manifest, a record of what is confirmed, and the queue.
    async fn enqueue(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let folder = Folder::new(self.batch)?;
        let manifest = folder.0.join("images.csv");
        std::fs::write(&manifest, stage::manifest()).context("the demo's manifest")?;
        let manifest = Manifest::open(&[manifest.display().to_string()], Reading::default())?;
        let plan = Plan::new(stage::PROVIDER, &stage::MODELS.map(str::to_owned), 1, Tariff::default())?;
        let priority = Priority::High;
        let identity = Identity::new(self.batch, &plan, priority, "demo");
        let record = Record::open(&folder.0.join("record.sqlite"), &identity)?;
        let order = Order {
            batch: self.batch.clone(),
            priority,
            plan,
            trace: Some(TraceParent::random()),
            bad_rows: BadRows::Stop,
        };
        let config = pixfleet_producer::Config::default();
        let (progress, _) = watch::channel(Default::default());
        let queue = self.engines.queue.clone();
        let stop = stop.child_token();
        pixfleet_producer::enqueue(queue, manifest, record, order, &config, stop, &progress).await?;
        Ok(())
    }

    /// Until the batch is complete. Repetitions are counted and dropped.
    async fn read(&self, results: &mut Source) -> anyhow::Result<(Tally, Gather, u64)> {
        let mut tally = Tally::bounded(10_000);
        let mut gather = Gather::new(Vec::new(), 10_000);
        let mut duplicates = 0;
        let mut view = View::start(stage::results());
        let mut tick = interval(view::EVERY);
        while !tally.counts().complete() {
            tokio::select! {
                announcement = results.next() => match announcement? {
                    Announcement::Batch(event) => tally.event(event),
                    Announcement::Result(result, _) => match tally.result(&result) {
                        Sight::Repeated => duplicates += 1,
                        _ => drop(gather.add(&result)),
                    },
                },
                _ = tick.tick() => view.show(tally.counts().results, &self.sandbox.bill()),
            }
        }
        view.end();
        Ok((tally, gather, duplicates))
    }
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

/// A folder of this run's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(batch: &BatchName) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("pixfleet-{batch}"));
        std::fs::create_dir(&path).with_context(|| format!("can't make the folder {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "the demo's folder is left behind");
        }
    }
}

/// A name that no other run has: `demo-20261122-101112-4711`.
fn batch_name() -> anyhow::Result<BatchName> {
    let now = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    Ok(format!("demo-{now}-{}", std::process::id()).parse()?)
}
