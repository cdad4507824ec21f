//! What this worker's calls take of the limits, as metrics.
//!
//! The fleet's use is the sum over its workers: what one of them can tell without asking the limiter.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, PoisonError},
    time::Duration,
};

use pixfleet_shared::{
    limiter::{Kind, Limit, Stack, Weight},
    telemetry::{LimitLabels, ProviderLabel, StackLabel},
};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::crew::Crew;

/// How often the gauges are set.
const EVERY: Duration = Duration::from_secs(1);
/// Looks that a utilisation goes back: ten seconds.
const LOOKS: usize = 10;

/// Units that were taken of each limit, by its stack and name, up to some moment.
struct Look {
    at: Instant,
    units: BTreeMap<(String, String), f64>,
}

/// A call leaves.
pub(crate) fn took(crew: &Crew, stack: &Stack, weight: Weight) {
    for limit in booked(stack) {
        let units = weight.micros(limit.unit) as f64 / 1e6;
        crew.board.metrics.limit_units.get_or_create(&labels(stack, limit)).inc_by(units);
    }
}

/// Sets the gauges until `stop`.
pub(crate) async fn keep(crew: Arc<Crew>, stop: CancellationToken) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks: VecDeque<Look> = VecDeque::new();
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        set_parked(&crew);
        let mut seen = BTreeMap::new();
        for account in crew.providers.values().flat_map(|serving| &serving.accounts) {
            let in_force = crew.engines.limiter.in_force(&account.stack);
            let held = crew.engines.limiter.held_until(&account.stack).is_some();
            crew.board.metrics.held_off.get_or_create(&account.label()).set(i64::from(held));
            begin_counters(&crew, &in_force);
            for limit in booked(&in_force) {
                let labels = labels(&in_force, limit);
                set_in_force(&crew, limit, &labels);
                let units = crew.board.metrics.limit_units.get_or_create(&labels).get();
                let name = (in_force.name.clone(), limit.name.clone());
                if let (Some(allowed), Some(first)) = (limit.units_per_s(), looks.front()) {
                    let took = units - first.units.get(&name).copied().unwrap_or(0.0);
                    let share = took / first.at.elapsed().as_secs_f64().max(0.001) / allowed;
                    crew.board.metrics.limit_utilisation.get_or_create(&labels).set(share);
                }
                seen.insert(name, units);
            }
        }
        looks.push_back(Look { at: Instant::now(), units: seen });
        if looks.len() > LOOKS {
            looks.pop_front();
        }
    }
}

/// What is in force of a limit.
fn set_in_force(crew: &Crew, limit: &Limit, labels: &LimitLabels) {
    let metrics = &crew.board.metrics;
    if let Some(allowed) = limit.units_per_s() {
        metrics.limit_allowed.get_or_create(labels).set(allowed);
    }
    if limit.kind() == Kind::Rate {
        metrics.limit_jitter.get_or_create(labels).set(limit.jitter().as_secs_f64());
    }
}

/// Counters that are there before the first 429: a rate of one that begins at 1 is not seen.
fn begin_counters(crew: &Crew, stack: &Stack) {
    let label = StackLabel { stack: stack.name.clone() };
    drop(crew.board.metrics.throttled.get_or_create(&label));
    drop(crew.board.metrics.hold_offs.get_or_create(&label));
    drop(crew.board.metrics.breaker_opened.get_or_create(&label));
}

fn set_parked(crew: &Crew) {
    let parked = crew.parked.lock().unwrap_or_else(PoisonError::into_inner);
    for provider in crew.providers.keys() {
        let label = ProviderLabel { provider: provider.clone() };
        crew.board.metrics.parked.get_or_create(&label).set(i64::from(parked.contains_key(provider)));
    }
}

/// The limits that a call takes units of.
fn booked(stack: &Stack) -> impl Iterator<Item = &Limit> {
    stack.limits.iter().filter(|limit| limit.kind() != Kind::InFlight)
}

fn labels(stack: &Stack, limit: &Limit) -> LimitLabels {
    LimitLabels { stack: stack.name.clone(), limit: limit.name.clone() }
}
