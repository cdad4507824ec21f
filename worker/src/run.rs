//! The worker's loop: take a delivery, step, count; and the drain.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use pixfleet_shared::queue::{Delivery, Intake, QueueError};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, error, info, info_span, warn};

use crate::{
    admin,
    budget::Spent,
    client::NoClient,
    closing,
    config::Config,
    crew::{Board, Crew, Engines, Recent, Serving},
    flights::Flights,
    image::Images,
    in_turn::InTurn,
    pace::{self, Seen},
    provider::Provider,
    step::{Settled, step},
    usage,
};

/// How often the jobs in hand are fitted to rate and latency.
const PACE_EVERY: Duration = Duration::from_millis(500);
/// Prefetched beyond the jobs in hand, so that the next one is there when one ends.
const LOOKAHEAD: usize = 2;

/// A worker could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Mend the settings or the machine: an HTTP client can't be made.
    #[error(transparent)]
    Client(#[from] NoClient),
    /// Try again: the queue can't be used.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// What a worker did, and what it left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Jobs completed.
    pub completed: u64,
    /// Jobs sent back for another attempt.
    pub retried: u64,
    /// Jobs sent back without one.
    pub released: u64,
    /// Jobs made dead letters.
    pub dead: u64,
    /// Jobs set aside, because their batch is paused.
    pub parked: u64,
    /// Deliveries that could not be settled: the queue delivers them again.
    pub lost: u64,
    /// Jobs still under way when the drain's time was up: they are delivered again.
    pub left: u64,
}

impl Report {
    fn count(&mut self, ended: Result<Settled, JoinError>) {
        match ended {
            Ok(Settled::Complete) => self.completed += 1,
            Ok(Settled::Retry) => self.retried += 1,
            Ok(Settled::Release) => self.released += 1,
            Ok(Settled::DeadLetter) => self.dead += 1,
            Ok(Settled::Park) => self.parked += 1,
            Ok(Settled::Lost) => self.lost += 1,
            Err(panic) => {
                error!(%panic, "a job's task ended badly, the job comes again");
                self.lost += 1;
            }
        }
    }

    fn ended(&self) -> u64 {
        self.completed + self.retried + self.released + self.dead + self.parked + self.lost
    }
}

/// Works until `shutdown`, then drains within the configured time. `board` shows it while it works.
///
/// # Errors
/// [`RunError`] when it can't start. Servers that are away are waited for.
pub async fn run(
    config: Config,
    providers: Vec<Arc<Provider>>,
    engines: Engines,
    board: Arc<Board>,
    admin: Option<TcpListener>,
    shutdown: CancellationToken,
) -> Result<Report, RunError> {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let crew = Arc::new(muster(config, providers, engines, board, &tasks, &stop)?);
    if let Some(listener) = admin {
        let served = admin::serve(listener, crew.clone(), stop.clone());
        tasks.spawn(async move { served.await.inspect_err(|error| warn!(%error, "admin pages ended")) });
    }
    tasks.spawn(usage::keep(crew.clone(), stop.clone()));
    tasks.spawn(closing::announce(crew.clone(), stop.clone()));
    let mut wanted = crew.first();
    let (prefetch, asked) = watch::channel(prefetch_for(wanted));
    let mut intake = crew.engines.queue.receive(asked.clone()).await?;
    info!(worker = crew.name, providers = ?crew.providers.keys(), "working");

    let mut jobs = JoinSet::new();
    let mut report = Report::default();
    let mut pacer = Pacer::new();
    let mut tick = interval(PACE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = jobs.join_next() => report.count(ended),
            _ = tick.tick() => wanted = pacer.fit(&crew, report.ended(), wanted, &prefetch),
            delivery = intake.next(), if jobs.len() < wanted => match delivery {
                Some(delivery) => start(&mut jobs, &crew, delivery),
                None => break,
            },
        }
        // Before the worker rests: nothing may happen then for long.
        crew.board.metrics.in_hand.set(jobs.len() as i64);
        if let Some(until) = crew.parked_until() {
            intake.stop().await;
            if !parked(&crew, until, &mut jobs, &mut report, &shutdown).await {
                break;
            }
            intake = crew.engines.queue.receive(asked.clone()).await?;
        }
    }
    drain(&crew, intake, jobs, &mut report).await;
    stop.cancel();
    tasks.close();
    let _ = timeout(Duration::from_secs(2), tasks.wait()).await;
    Ok(report)
}

/// No provider can be called for long: no job is taken, and none kept, until one can, or something changes. Whether work
/// goes on then; else the worker was told to stop.
async fn parked(
    crew: &Crew,
    until: Instant,
    jobs: &mut JoinSet<Settled>,
    report: &mut Report,
    shutdown: &CancellationToken,
) -> bool {
    let mut changes = crew.engines.limiter.changes();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return false,
            Some(ended) = jobs.join_next() => {
                report.count(ended);
                crew.board.metrics.in_hand.set(jobs.len() as i64);
            }
            () = sleep_until(until) => break,
            changed = changes.changed() => if changed.is_err() { return false } else { break },
        }
    }
    crew.parked.lock().unwrap_or_else(PoisonError::into_inner).clear();
    true
}

fn muster(
    config: Config,
    providers: Vec<Arc<Provider>>,
    engines: Engines,
    board: Arc<Board>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Crew, NoClient> {
    let mut serving = BTreeMap::new();
    for provider in providers {
        let name = provider.name().to_owned();
        serving.insert(name, Serving::new(provider, &config, &engines, tasks, stop)?);
    }
    Ok(Crew {
        name: config.resolved_name(),
        images: Images::new(&config.fetch)?,
        config,
        engines,
        providers: serving,
        board,
        recent: Recent::default(),
        spent: Spent::default(),
        flights: Flights::default(),
        suspects: Semaphore::new(1),
        in_turn: InTurn::default(),
        stopping: CancellationToken::new(),
        parked: std::sync::Mutex::default(),
    })
}

fn start(jobs: &mut JoinSet<Settled>, crew: &Arc<Crew>, delivery: Delivery) {
    let job = &delivery.job;
    let trace = job.traceparent.map(|trace| trace.trace_id()).unwrap_or_default();
    let span = info_span!(
        "job", id = %job.id, batch = %job.batch, image = job.image.id, provider = job.provider,
        attempt = job.attempt + 1, trace
    );
    jobs.spawn(step(crew.clone(), delivery).instrument(span));
}

/// Intake stops, what holds a slot is finished, what waits for one goes back, and the rest is reported.
async fn drain(crew: &Crew, mut intake: Box<dyn Intake>, mut jobs: JoinSet<Settled>, report: &mut Report) {
    let deadline = Instant::now() + Duration::from_millis(crew.config.drain_ms);
    info!(in_hand = jobs.len(), drain_ms = crew.config.drain_ms, "draining");
    crew.stopping.cancel();
    if timeout_at(deadline, intake.stop()).await.is_err() {
        warn!("prefetched jobs could not be given back in time, they are delivered again");
    }
    while let Ok(Some(ended)) = timeout_at(deadline, jobs.join_next()).await {
        report.count(ended);
    }
    report.left = jobs.len() as u64;
    // Each lets go of what it has in hand.
    jobs.shutdown().await;
    crew.engines.ledger.flush().await;
    let Report { completed, retried, released, dead, parked, lost, left } = *report;
    info!(completed, retried, released, dead, parked, lost, left, "drained");
}

fn prefetch_for(wanted: usize) -> u16 {
    u16::try_from(wanted + LOOKAHEAD).unwrap_or(u16::MAX)
}

/// Fits the jobs in hand to what the worker has seen.
struct Pacer {
    at: Instant,
    ended: u64,
    rate_per_s: f64,
}

impl Pacer {
    fn new() -> Self {
        Self { at: Instant::now(), ended: 0, rate_per_s: 0.0 }
    }

    fn fit(&mut self, crew: &Crew, ended: u64, now: usize, prefetch: &watch::Sender<u16>) -> usize {
        let seconds = self.at.elapsed().as_secs_f64();
        if seconds < 0.05 {
            return now;
        }
        let rate = (ended - self.ended) as f64 / seconds;
        (self.at, self.ended) = (Instant::now(), ended);
        self.rate_per_s += (rate - self.rate_per_s) * 0.5;
        let seen = Seen { rate_per_s: self.rate_per_s, busy: crew.recent.p95(), limited: crew.limited() };
        let wanted = pace::wanted(seen, now, crew.config.concurrency);
        if !pace::worth_a_change(now, wanted) {
            return now;
        }
        crew.board.metrics.prefetch.set(i64::from(prefetch_for(wanted)));
        prefetch.send_replace(prefetch_for(wanted));
        wanted
    }
}
