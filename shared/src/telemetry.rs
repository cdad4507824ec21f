//! The log, and every metric's name, unit and meaning.

mod batches;

use std::{io::IsTerminal, sync::atomic::AtomicU64};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

pub use batches::{BatchLabel, CallsByBatch};

/// How log lines are written.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts the log on stderr. `filter` is an `EnvFilter` directive list such as `info,pixfleet_worker=debug`.
///
/// # Errors
/// When the filter can't be read, or a log was started before.
pub fn start_log(filter: &str, format: LogFormat) -> Result<(), String> {
    start_log_to(std::io::stderr, filter, format)
}

fn start_log_to<W>(writer: W, filter: &str, format: LogFormat) -> Result<(), String>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("log filter `{filter}`: {error}"))?;
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(colour);
    let started = match format {
        LogFormat::Text => log.with_target(false).try_init(),
        LogFormat::Json => {
            log.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
        }
    };
    started.map_err(|error| error.to_string())
}

/// The provider of a series.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ProviderLabel {
    /// Its name.
    pub provider: String,
}

/// The limit stack of a series.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct StackLabel {
    /// Its name.
    pub stack: String,
}

/// A limit of a stack.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct LimitLabels {
    /// The stack.
    pub stack: String,
    /// The limit's name in it.
    pub limit: String,
}

/// Provider and class of a call.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct CallLabels {
    /// The provider.
    pub provider: String,
    /// `ok`, `throttled`, `transient`, `rejected`, `unauthorized` or `ambiguous`.
    pub class: &'static str,
}

/// Provider of a call, and when the connection that it left on was opened.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ConnectionLabels {
    /// The provider.
    pub provider: String,
    /// `before` (by an earlier call), `ahead` (for this call, before its slot) or `late` (at its slot).
    pub opened: &'static str,
}

/// Provider, model and outcome of a result.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ResultLabels {
    /// The provider.
    pub provider: String,
    /// The model.
    pub model: String,
    /// `ok`, `rejected` or `dead`.
    pub outcome: &'static str,
}

/// How a delivery ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct SettleLabel {
    /// `complete`, `retry`, `release`, `dead_letter` or `lost`.
    pub verb: &'static str,
}

/// Every metric of a worker. Names carry the prefix `pixfleet_`; durations are in seconds.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Calls by provider and class: `pixfleet_calls_total`.
    pub calls: Family<CallLabels, Counter>,
    /// Calls by batch: `pixfleet_calls_by_batch_total`.
    pub calls_by_batch: CallsByBatch,
    /// From a request's leaving to its last byte: `pixfleet_call_duration_seconds`.
    pub call_duration: Family<ProviderLabel, Histogram>,
    /// Results by provider, model and outcome: `pixfleet_results_total`.
    pub results: Family<ResultLabels, Counter>,
    /// Settled deliveries by verb: `pixfleet_settled_total`.
    pub settled: Family<SettleLabel, Counter>,
    /// From asking for a slot to its moment: `pixfleet_slot_wait_seconds`.
    pub slot_wait: Family<ProviderLabel, Histogram>,
    /// Calls by when their connection was opened: `pixfleet_call_connections_total`.
    pub connections: Family<ConnectionLabels, Counter>,
    /// From the moment that a call aimed at until its connection took it up: `pixfleet_departure_lateness_seconds`.
    pub departure_lateness: Family<ProviderLabel, Histogram>,
    /// How far arrivals at the API are spread: `pixfleet_arrival_jitter_seconds`. Not there until enough was seen.
    pub arrival_jitter: Family<ProviderLabel, Gauge<f64, AtomicU64>>,
    /// The time that a call is thought to take to the API: `pixfleet_one_way_seconds`.
    pub one_way: Family<ProviderLabel, Gauge<f64, AtomicU64>>,
    /// Slots reached too late and not used: `pixfleet_slots_forfeited_total`.
    pub slots_forfeited: Family<ProviderLabel, Counter>,
    /// Slots reached late and used, once the later ones were moved back: `pixfleet_slots_mended_total`.
    pub slots_mended: Family<ProviderLabel, Counter>,
    /// Hold-offs that this worker called for: `pixfleet_hold_offs_total`.
    pub hold_offs: Family<StackLabel, Counter>,
    /// Calls of this worker that were answered "too much": `pixfleet_throttled_total`.
    pub throttled: Family<StackLabel, Counter>,
    /// Units that this worker's calls took when they left: `pixfleet_limit_units_total`.
    pub limit_units: Family<LimitLabels, Counter<f64, AtomicU64>>,
    /// Units a second that the limit in force allows the whole fleet; none for credits and calls in flight:
    /// `pixfleet_limit_units_per_second`.
    pub limit_allowed: Family<LimitLabels, Gauge<f64, AtomicU64>>,
    /// What this worker took of that in the last ten seconds, 0 to 1: `pixfleet_worker_limit_utilisation_ratio`. The
    /// fleet's is the sum over its workers.
    pub limit_utilisation: Family<LimitLabels, Gauge<f64, AtomicU64>>,
    /// The margin J in force of a rate: `pixfleet_limit_jitter_seconds`.
    pub limit_jitter: Family<LimitLabels, Gauge<f64, AtomicU64>>,
    /// 1 where nothing can leave to the provider for long, so that its jobs wait in the queue: `pixfleet_parked`.
    pub parked: Family<ProviderLabel, Gauge>,
    /// What the calls cost, in the provider's units: `pixfleet_cost_total`.
    pub cost: Family<ProviderLabel, Counter<f64, AtomicU64>>,
    /// Jobs in hand now: `pixfleet_jobs_in_hand`.
    pub in_hand: Gauge,
    /// Calls under way now: `pixfleet_calls_in_flight`.
    pub in_flight: Gauge,
    /// Jobs asked of each lane ahead of their turn: `pixfleet_prefetch`.
    pub prefetch: Gauge,
    /// Deliveries that the ledger knew as settled, so that nothing was paid: `pixfleet_already_settled_total`.
    pub already_settled: Counter,
    /// Attempts of a job when it ended: `pixfleet_attempts`.
    pub attempts: Histogram,
    /// Models that were answered by an answer of before, so that no call asked them: `pixfleet_cache_hits_total`.
    pub cache_hits: Family<ProviderLabel, Counter>,
    /// Times that this worker found an API down, and had the fleet leave it alone: `pixfleet_breaker_opened_total`. A probe
    /// that fails counts again.
    pub breaker_opened: Family<StackLabel, Counter>,
    /// 1 while a hold-off, or a pause that somebody ordered, keeps every call of the stack: `pixfleet_held_off`.
    pub held_off: Family<StackLabel, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// The metrics of one worker, all at zero.
    pub fn new() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let mut metrics = Self {
            registry: Registry::with_prefix("pixfleet"),
            calls: Family::default(),
            calls_by_batch: CallsByBatch::default(),
            call_duration: Family::new_with_constructor(seconds),
            results: Family::default(),
            settled: Family::default(),
            slot_wait: Family::new_with_constructor(seconds),
            connections: Family::default(),
            departure_lateness: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.000_05, 2.0, 16))
            }),
            arrival_jitter: Family::default(),
            one_way: Family::default(),
            slots_forfeited: Family::default(),
            slots_mended: Family::default(),
            hold_offs: Family::default(),
            throttled: Family::default(),
            limit_units: Family::default(),
            limit_allowed: Family::default(),
            limit_utilisation: Family::default(),
            limit_jitter: Family::default(),
            parked: Family::default(),
            cost: Family::default(),
            in_hand: Gauge::default(),
            in_flight: Gauge::default(),
            prefetch: Gauge::default(),
            already_settled: Counter::default(),
            attempts: Histogram::new([1.0, 2.0, 3.0, 4.0, 5.0, 8.0, 13.0]),
            cache_hits: Family::default(),
            breaker_opened: Family::default(),
            held_off: Family::default(),
        };
        metrics.register();
        metrics.register_limits();
        metrics
    }

    fn register(&mut self) {
        let seconds = || Unit::Seconds;
        let r = &mut self.registry;
        r.register("calls", "Calls by provider and class", self.calls.clone());
        r.register(
            "calls_by_batch",
            "Calls by batch, of the first hundred batches",
            self.calls_by_batch.family.clone(),
        );
        r.register_with_unit("call_duration", "Leaving to last byte", seconds(), self.call_duration.clone());
        r.register("results", "Results by provider, model and outcome", self.results.clone());
        r.register("settled", "Settled deliveries by verb", self.settled.clone());
        r.register_with_unit(
            "slot_wait",
            "Asking for a slot to its moment",
            seconds(),
            self.slot_wait.clone(),
        );
        r.register(
            "call_connections",
            "Calls by when their connection was opened: before, ahead of the slot, or late",
            self.connections.clone(),
        );
        r.register_with_unit(
            "departure_lateness",
            "The moment aimed at to the connection's taking the call up",
            seconds(),
            self.departure_lateness.clone(),
        );
        r.register_with_unit(
            "arrival_jitter",
            "Spread of the arrivals at the API",
            seconds(),
            self.arrival_jitter.clone(),
        );
        r.register_with_unit(
            "one_way",
            "Least recent time to the API, one way",
            seconds(),
            self.one_way.clone(),
        );
        r.register("slots_forfeited", "Slots reached too late", self.slots_forfeited.clone());
        r.register(
            "slots_mended",
            "Slots reached late and used, the later ones moved",
            self.slots_mended.clone(),
        );
        r.register("cost", "Cost of calls in the provider's units", self.cost.clone());
        r.register("jobs_in_hand", "Jobs in hand now", self.in_hand.clone());
        r.register("calls_in_flight", "Calls under way now", self.in_flight.clone());
        r.register("prefetch", "Jobs asked of each lane ahead", self.prefetch.clone());
        r.register("already_settled", "Redelivered jobs that cost nothing", self.already_settled.clone());
        r.register("attempts", "Attempts of a job when it ended", self.attempts.clone());
        r.register("cache_hits", "Models answered by an answer of before", self.cache_hits.clone());
    }

    fn register_limits(&mut self) {
        let r = &mut self.registry;
        r.register("hold_offs", "Hold-offs called for", self.hold_offs.clone());
        r.register("breaker_opened", "Times that an API was found down", self.breaker_opened.clone());
        r.register("held_off", "1 while a hold-off keeps every call", self.held_off.clone());
        r.register("throttled", "Calls answered \"too much\"", self.throttled.clone());
        r.register("limit_units", "Units that this worker's calls took", self.limit_units.clone());
        r.register(
            "limit_units_per_second",
            "Units a second that the limit in force allows the fleet",
            self.limit_allowed.clone(),
        );
        r.register(
            "worker_limit_utilisation_ratio",
            "What this worker took of the fleet's limit in the last ten seconds",
            self.limit_utilisation.clone(),
        );
        let seconds = Unit::Seconds;
        r.register_with_unit("limit_jitter", "The margin in force", seconds, self.limit_jitter.clone());
        r.register("parked", "1 where nothing can leave for long", self.parked.clone());
    }

    /// The metrics in the OpenMetrics text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_shown_with_its_prefix_and_unit() {
        let metrics = Metrics::new();
        metrics.calls.get_or_create(&CallLabels { provider: "restb".into(), class: "ok" }).inc();
        metrics.slot_wait.get_or_create(&ProviderLabel { provider: "restb".into() }).observe(0.25);
        let text = metrics.render();
        assert!(text.contains("pixfleet_calls_total{provider=\"restb\",class=\"ok\"} 1"), "{text}");
        assert!(text.contains("pixfleet_slot_wait_seconds_sum{provider=\"restb\"} 0.25"), "{text}");
    }
}
