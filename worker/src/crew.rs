//! What every job of one worker shares: the engines, the providers that it serves, and what it has seen.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use pixfleet_shared::{
    judge::{Lateness, lateness},
    ledger::Ledger,
    limiter::{RateLimiter, Stack},
    queue::Queue,
    telemetry::Metrics,
};
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::Condition,
    client::{Client, NoClient},
    config::Config,
    image::Images,
    provider::Provider,
    slots::Desk,
};

/// Jobs that the recent percentile looks back on.
const RECENT: usize = 256;

/// The three seams' engines.
#[derive(Clone)]
pub struct Engines {
    /// Where jobs come from and results go.
    pub queue: Arc<dyn Queue>,
    /// The one bound of the fleet.
    pub limiter: Arc<dyn RateLimiter>,
    /// What is settled already.
    pub ledger: Arc<dyn Ledger>,
}

/// What a worker shows to whoever runs it.
#[derive(Debug, Default)]
pub struct Board {
    /// Its metrics.
    pub metrics: Metrics,
    refusal: watch::Sender<Option<Refusal>>,
}

/// A provider refuses the account: no call will succeed until a person has mended that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The provider.
    pub provider: String,
    /// What it said.
    pub message: String,
    /// When.
    pub at: Instant,
}

impl Refusal {
    fn differs_from(&self, other: &Self) -> bool {
        (&self.provider, &self.message) != (&other.provider, &other.message)
    }
}

impl Board {
    /// The last refusal, when there is one.
    pub fn refusals(&self) -> watch::Receiver<Option<Refusal>> {
        self.refusal.subscribe()
    }

    /// Notes a refusal; answers whether it is news, and not the one of less than `again_after` ago.
    pub(crate) fn refused(&self, provider: &str, message: &str, again_after: Duration) -> bool {
        let refusal =
            Refusal { provider: provider.to_owned(), message: message.to_owned(), at: Instant::now() };
        let last = self.refusal.send_replace(Some(refusal.clone()));
        last.is_none_or(|last| last.differs_from(&refusal) || refusal.at - last.at >= again_after)
    }
}

/// What every job of one worker shares.
pub(crate) struct Crew {
    pub(crate) name: String,
    pub(crate) config: Config,
    pub(crate) engines: Engines,
    pub(crate) providers: BTreeMap<String, Serving>,
    pub(crate) images: Images,
    pub(crate) board: Arc<Board>,
    pub(crate) recent: Recent,
    /// No slot is asked for any more; what waits for one goes back.
    pub(crate) stopping: CancellationToken,
}

/// A provider with its client, its limit stack and its slot desk.
pub(crate) struct Serving {
    pub(crate) provider: Arc<Provider>,
    pub(crate) client: Client,
    pub(crate) stack: Stack,
    pub(crate) desk: Desk,
    /// How late after its slot a call may still leave.
    pub(crate) lateness: Lateness,
    /// Room for calls under way, where the provider has little of it.
    pub(crate) room: Option<Semaphore>,
}

impl Serving {
    pub(crate) fn new(
        provider: Arc<Provider>,
        engines: &Engines,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, NoClient> {
        let client = Client::new(provider.transport())?;
        let stack = provider.limits();
        let desk = Desk::open(stack.clone(), engines.limiter.clone(), tasks, stop);
        let lateness = lateness(&stack);
        let at_once = provider.definition().calls_at_once;
        let room = at_once.map(|calls| Semaphore::new(calls.get() as usize));
        Ok(Self { provider, client, stack, desk, lateness, room })
    }
}

impl Crew {
    /// Whether every provider of this worker has a limit.
    pub(crate) fn limited(&self) -> bool {
        self.providers.values().all(|serving| !serving.stack.limits.is_empty())
    }
}

impl Condition for Crew {
    fn ready(&self) -> Result<(), String> {
        if self.stopping.is_cancelled() {
            return Err("draining: no new jobs are taken".to_owned());
        }
        let health = [self.engines.queue.health(), self.engines.limiter.health()];
        let faults: Vec<String> = health.into_iter().filter_map(Result::err).collect();
        if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
    }

    fn metrics(&self) -> &Metrics {
        &self.board.metrics
    }
}

/// How long the last jobs kept the worker busy.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    busy: Mutex<VecDeque<Duration>>,
}

impl Recent {
    pub(crate) fn record(&self, busy: Duration) {
        // Nothing panics while it is held; a poisoned ring is as good as any.
        let mut ring = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() == RECENT {
            ring.pop_front();
        }
        ring.push_back(busy);
    }

    /// The 95th percentile; nothing seen is one second.
    pub(crate) fn p95(&self) -> Duration {
        let ring = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sorted: Vec<Duration> = ring.iter().copied().collect();
        drop(ring);
        sorted.sort_unstable();
        sorted.get(sorted.len() * 95 / 100).copied().unwrap_or(Duration::from_secs(1))
    }
}
