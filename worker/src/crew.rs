//! What every job of one worker shares: the engines, the providers that it serves, and what it has seen.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU32},
    time::Duration,
};

use pixfleet_shared::{
    answers::Answers,
    batches::Batches,
    ledger::Ledger,
    limiter::{RateLimiter, Stack, Weight, Why},
    outlook,
    queue::Queue,
    telemetry::{Metrics, StackLabel},
};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    admin::Condition,
    breaker::{self, Breaker},
    budget::Spent,
    client::{Client, NoClient},
    config::Config,
    copies::InHand,
    image::Images,
    pace,
    provider::Provider,
    recalled::Flights,
    retry,
    room::Room,
    slots::{Aim, Desk, Exit},
};

const A_YEAR: Duration = Duration::from_secs(366 * 86_400);
/// Jobs that the recent percentile looks back on.
const RECENT: usize = 256;

/// The three seams' engines.
#[derive(Clone)]
pub struct Engines {
    /// Where jobs come from and results go.
    pub queue: Arc<dyn Queue>,
    /// The one bound of the fleet.
    pub limiter: Arc<dyn RateLimiter>,
    /// What is known of each call.
    pub ledger: Arc<dyn Ledger>,
    /// What was answered before.
    pub answers: Arc<dyn Answers>,
    /// What is known of each batch.
    pub batches: Arc<dyn Batches>,
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
    pub(crate) spent: Spent,
    /// What its jobs ask at this moment, where answers are kept.
    pub(crate) flights: Flights,
    /// Its jobs, each once.
    pub(crate) in_hand: InHand,
    /// One job at a time of those that may have killed a worker.
    pub(crate) suspects: Semaphore,
    /// No slot is asked for any more; what waits for one goes back.
    pub(crate) stopping: CancellationToken,
    /// Providers to which nothing can leave for long, and until when.
    pub(crate) parked: Mutex<BTreeMap<String, Instant>>,
}

/// A provider with its accounts and its slot desk.
pub(crate) struct Serving {
    pub(crate) provider: Arc<Provider>,
    /// The worker's, with what the provider says of its own.
    pub(crate) retry: retry::Policy,
    /// One for each account.
    pub(crate) accounts: Vec<AccountState>,
    pub(crate) desk: Desk,
    /// Room for calls under way, where the provider has little of it.
    pub(crate) room: Option<Semaphore>,
}

/// What is known of an account's limits while the worker works.
pub(crate) struct AccountState {
    pub(crate) stack: Stack,
    pub(crate) client: Client,
    /// Calls in a row that were answered "too much".
    pub(crate) throttled: AtomicU32,
    /// Failures in a row.
    pub(crate) breaker: Arc<Breaker>,
}

impl AccountState {
    pub(crate) fn label(&self) -> StackLabel {
        StackLabel { stack: self.stack.name.clone() }
    }
}

impl Serving {
    pub(crate) fn new(
        provider: Arc<Provider>,
        config: &Config,
        engines: &Engines,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, NoClient> {
        let free = Arc::new(Notify::new());
        let (mut exits, mut accounts) = (Vec::new(), Vec::new());
        for stack in provider.stacks() {
            let client = Client::new(provider.transport())?;
            let room =
                |limit| Room::open(stack, limit, engines.limiter.clone(), free.clone(), tasks, stop.clone());
            let rooms = stack.in_flight().map(room).collect();
            let arrival = client.arrival().clone();
            let aim: Aim = Arc::new(move || (arrival.one_way(), arrival.jitter()));
            let safe_rate = provider.definition().safe_rate;
            exits.push(Exit { stack: stack.clone(), rooms, aim, safe_rate });
            let (throttled, breaker) = (AtomicU32::new(0), Arc::new(Breaker::default()));
            let settings = provider.definition().breaker.clone();
            let limiter = engines.limiter.clone();
            tasks.spawn(breaker::listen(breaker.clone(), settings, limiter, stack.clone(), stop.clone()));
            accounts.push(AccountState { stack: stack.clone(), client, throttled, breaker });
        }
        let desk = Desk::open(exits, free, engines.limiter.clone(), tasks, stop.clone());
        let at_once = provider.definition().calls_at_once;
        let room = at_once.map(|calls| Semaphore::new(calls.get() as usize));
        let retry = config.retry.with(&provider.definition().retry);
        Ok(Self { provider, retry, accounts, desk, room })
    }
}

impl Crew {
    /// Whether every provider of this worker has a limit.
    pub(crate) fn limited(&self) -> bool {
        let limited = |stack: &Stack| !stack.limits.is_empty();
        self.providers.values().all(|serving| serving.provider.stacks().all(limited))
    }

    /// The jobs to begin with: for the provider that needs most of them.
    pub(crate) fn first(&self) -> usize {
        let first = |serving: &Serving| {
            let provider = &serving.provider;
            let in_flight = provider.stacks().map(outlook::most_in_flight).sum();
            pace::first(provider.rate_per_s(Weight::of_models(1)), in_flight, self.config.concurrency)
        };
        self.providers.values().map(first).max().unwrap_or(1)
    }

    /// Takes note that nothing leaves to `provider` before `until`. Whether that is news.
    pub(crate) fn park(&self, provider: &str, until: Instant, why: &Why) -> bool {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        let news = parked.insert(provider.to_owned(), until).is_none();
        if news {
            let left = until.saturating_duration_since(Instant::now());
            // Credits come back never, and that is no date.
            let until = (left < A_YEAR).then(|| jiff::Timestamp::now() + left);
            let until =
                until.map_or_else(|| "somebody changes that".to_owned(), |until| format!("{until:.0}"));
            warn!(provider, "no call may leave because of {why}: the jobs wait in the queue until {until}");
        }
        news
    }

    /// A call leaves to `provider`.
    pub(crate) fn unpark(&self, provider: &str) {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        if parked.remove(provider).is_some() {
            info!(provider, "calls leave again");
        }
    }

    /// When the first of the providers may be called again, where none may now.
    pub(crate) fn parked_until(&self) -> Option<Instant> {
        let parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.providers.keys().all(|provider| parked.contains_key(provider));
        if all { parked.values().min().copied() } else { None }
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
