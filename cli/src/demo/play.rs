//! One run of the job: workers, producer, queue and subscriber, in one process.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use pixfleet_producer::{
    BadRows, Destination, Order,
    manifest::{Manifest, Reading},
    plan::{Plan, Tariff},
    record::{Identity, Record},
};
use pixfleet_sandbox::Running;
use pixfleet_shared::{
    batch::BatchName,
    job::Priority,
    queue::{Filter, From, Subscription},
    result::Announcement,
    trace::TraceParent,
};
use pixfleet_worker::{Engines, Report};
use tokio::{sync::watch, task::JoinSet, time::interval};
use tokio_util::sync::CancellationToken;

use super::{
    stage::{self, Judge},
    view::{self, View},
};
use crate::{
    engine::Engine,
    enqueue::record_within,
    results::{Gather, Sight, Source, Tally},
};

/// What a stalled broker or a machine under heavy load may take; the job itself takes ten seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// One run of the job.
pub(super) struct Play<'a> {
    pub sandbox: &'a Running,
    pub engine: &'a Engine,
    pub engines: &'a Engines,
    pub batch: &'a BatchName,
    pub judge: Judge,
}

/// What one run left.
pub(super) struct Played {
    pub tally: Tally,
    pub gather: Gather,
    pub duplicates: u64,
    pub workers: Vec<Report>,
}

impl Play<'_> {
    /// Until every result is here, or `stop`.
    ///
    /// # Errors
    /// When a part of the fleet fails, or the job is not done within [`PATIENCE`].
    pub(super) async fn run(&self, folder: &Folder, stop: &CancellationToken) -> anyhow::Result<Played> {
        let queue = &*self.engines.queue;
        // Before the jobs: a reader of the log that begins now is there for the first result.
        let mut results = Source::open(queue, self.subscription()).await?;
        let shutdown = stop.child_token();
        let mut workers = self.workers(&shutdown)?;
        self.enqueue(folder, stop).await?;
        let read = tokio::select! {
            read = self.read(&mut results) => read,
            () = stop.cancelled() => Err(anyhow::anyhow!("interrupted; what was not done is still in the queue")),
            () = tokio::time::sleep(PATIENCE) => Err(anyhow::anyhow!(
                "not done within {} s: does another fleet take its jobs? The log (stderr) says more",
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
            let working = pixfleet_worker::run(
                config,
                vec![provider],
                self.engines.clone(),
                Arc::default(),
                None,
                shutdown.clone(),
            );
            workers.spawn(working);
        }
        Ok(workers)
    }

    /// As `pixfleet enqueue` does it: a manifest, a record of what is confirmed, and the queue.
    async fn enqueue(&self, folder: &Folder, stop: &CancellationToken) -> anyhow::Result<()> {
        let manifest = folder.0.join("images.csv");
        std::fs::write(&manifest, stage::manifest()).context("the demo's manifest")?;
        let manifest = Manifest::open(&[manifest.display().to_string()], Reading::default())?;
        let plan = Plan::new(stage::PROVIDER, &stage::MODELS.map(str::to_owned), 1, Tariff::default())?;
        let priority = Priority::High;
        let identity = Identity::new(self.batch, &plan, priority, "demo");
        let record = match self.engine {
            Engine::Servers(_) => Record::open(&folder.0.join("record.sqlite"), &identity)?,
            Engine::State(embedded) => record_within(embedded, &identity).await?,
        };
        let order = Order {
            batch: self.batch.clone(),
            priority,
            weight: 1,
            budget: None,
            deadline: None,
            refresh: false,
            plan,
            trace: Some(TraceParent::random()),
            bad_rows: BadRows::Stop,
            same_manifest: false,
        };
        let config = pixfleet_producer::Config::default();
        let (progress, _) = watch::channel(Default::default());
        let to =
            Destination { queue: self.engines.queue.clone(), batches: Some(self.engines.batches.clone()) };
        let stop = stop.child_token();
        pixfleet_producer::enqueue(to, manifest, record, order, &config, stop, &progress).await?;
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

/// A folder of this run's own, removed at its end.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(batch: &BatchName) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("pixfleet-{batch}"));
        std::fs::create_dir(&path).with_context(|| format!("can't make the folder {}", path.display()))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "the demo's folder is left behind");
        }
    }
}
