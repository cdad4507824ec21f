//! `pixfleet limits explain`: what each limit of the settings means, in numbers. [`explained`](super::explained) has the
//! words.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use pixfleet_shared::{
    foresight::{calls_per_s, slowest},
    judge::{best_utilisation, spacing},
    limiter::{Judge, Kind, Limit, Quota, Stack, Terms, Unit, Weight},
    outlook::Outlook,
};
use pixfleet_worker::provider::Provider;
use serde::Serialize;

use super::stacks::heaviest;

/// A provider and its stacks.
#[derive(Debug, Serialize)]
pub(super) struct Explained {
    pub(super) provider: String,
    pub(super) about: String,
    /// Models of the calls that the figures are for: the most that one call may ask.
    pub(super) models_per_call: u32,
    /// What such a call costs, in `currency`.
    pub(super) price: f64,
    pub(super) currency: String,
    /// One for each account.
    pub(super) stacks: Vec<ExplainedStack>,
}

/// A stack and its limits.
#[derive(Debug, Serialize)]
pub(super) struct ExplainedStack {
    pub(super) stack: String,
    /// Other providers whose calls pass it, too.
    pub(super) shared_with: Vec<String>,
    pub(super) limits: Vec<ExplainedLimit>,
    /// The limit that binds a steady stream of such calls; null where none says how long they take.
    pub(super) binds: Option<String>,
    /// What it lets through in the long run.
    pub(super) calls_per_s: Option<f64>,
    pub(super) calls_per_day: Option<f64>,
}

/// A limit with what it leads to.
#[derive(Debug, Serialize)]
pub(super) struct ExplainedLimit {
    /// As the settings have it.
    #[serde(flatten)]
    pub(super) limit: Limit,
    /// `rate`, `quota` or `in_flight`.
    pub(super) kind: &'static str,
    /// The margin J that is allowed for at first, in milliseconds.
    pub(super) margin_ms: f64,
    /// `settings`, `adaptive` (where adapting begins), or `default` (of a quota).
    pub(super) margin_from: &'static str,
    /// Of a rate: T, milliseconds between two units in the long run.
    pub(super) interval_ms: Option<f64>,
    /// Of a rate: how far ahead of that pace calls may run after a pause, in milliseconds.
    pub(super) ahead_ms: Option<f64>,
    /// The share of the limit that is reached at best, 0 to 1.
    pub(super) best_utilisation: f64,
    /// What a burst of 1 would make of it: of a `leaky` limit without burst, and of one whose burst costs.
    pub(super) with_burst_1: Option<f64>,
    /// Units that a call takes; null where its body decides.
    pub(super) call_takes: Option<f64>,
    /// Calls that it lets through in the long run.
    pub(super) calls_per_s: Option<f64>,
    pub(super) calls_per_day: Option<f64>,
    /// Of a quota: when its present window ends.
    pub(super) resets_at: Option<Timestamp>,
    /// Of a quota: seconds in which the stack's rates use all of it up, where that is before it resets.
    pub(super) used_up_in_s: Option<f64>,
}

/// Explains `provider`, whose stacks the providers in `all` may share.
pub(super) fn explain(
    provider: &Provider,
    all: &[Arc<Provider>],
    now: Timestamp,
) -> anyhow::Result<Explained> {
    let weight = heaviest(provider);
    let one = |stack: &Stack| -> anyhow::Result<ExplainedStack> {
        // As nothing was changed or adapted yet.
        let in_force = Terms::default().applied(stack);
        let binds = slowest(&in_force, &[weight]).map(str::to_owned);
        let rate = binds.as_ref().and_then(|name| calls_per_s(&in_force, name, &[weight]));
        let limits = stack.limits.iter().zip(&in_force.limits);
        let limits = limits.map(|(limit, adapted)| explain_limit(limit, adapted, &in_force, weight, now));
        let shares = |other: &&Arc<Provider>| {
            other.name() != provider.name() && other.stacks().any(|own| own.name == stack.name)
        };
        Ok(ExplainedStack {
            stack: stack.name.clone(),
            shared_with: all.iter().filter(shares).map(|other| other.name().to_owned()).collect(),
            limits: limits.collect::<anyhow::Result<_>>()?,
            binds,
            calls_per_s: rate,
            calls_per_day: rate.map(per_day),
        })
    };
    Ok(Explained {
        provider: provider.name().to_owned(),
        about: provider.definition().about.clone(),
        models_per_call: weight.models,
        price: provider.tariff().of_call(provider.models_per_call()),
        currency: provider.tariff().currency.clone(),
        stacks: provider.stacks().map(one).collect::<anyhow::Result<_>>()?,
    })
}

fn explain_limit(
    limit: &Limit,
    adapted: &Limit,
    in_force: &Stack,
    weight: Weight,
    now: Timestamp,
) -> anyhow::Result<ExplainedLimit> {
    let kind = adapted.kind();
    let paced = (kind == Kind::Rate).then(|| spacing(adapted));
    let rate = calls_per_s(in_force, &limit.name, &[weight]);
    let takes = (limit.unit != Unit::Megabyte).then(|| weight.micros(limit.unit) as f64 / 1e6);
    let resets_at = match kind {
        Kind::Quota(_) => resets_at(in_force, &limit.name, now)?,
        Kind::Rate | Kind::InFlight => None,
    };
    Ok(ExplainedLimit {
        limit: limit.clone(),
        kind: match kind {
            Kind::Rate => "rate",
            Kind::Quota(_) => "quota",
            Kind::InFlight => "in_flight",
        },
        margin_ms: adapted.jitter().as_secs_f64() * 1000.0,
        margin_from: match (limit.jitter_ms, kind) {
            (Some(_), _) => "settings",
            (None, Kind::Rate) => "adaptive",
            (None, _) => "default",
        },
        interval_ms: paced.map(|spacing| spacing.interval_us as f64 / 1000.0),
        ahead_ms: paced.map(|spacing| spacing.tolerance_us as f64 / 1000.0),
        best_utilisation: best_utilisation(adapted),
        with_burst_1: (kind == Kind::Rate && burst_matters(limit))
            .then(|| best_utilisation(&first_adapted(Limit { burst: 1, ..limit.clone() }))),
        call_takes: takes,
        calls_per_s: rate,
        calls_per_day: rate.map(per_day),
        resets_at,
        used_up_in_s: used_up_in_s(adapted, in_force, weight, resets_at, now),
    })
}

fn burst_matters(limit: &Limit) -> bool {
    match limit.judge {
        Judge::Leaky => limit.burst == 0,
        Judge::Sliding | Judge::Fixed => limit.burst > 1,
        Judge::Bucket | Judge::Concurrent => false,
    }
}

fn per_day(rate: f64) -> f64 {
    rate * 86_400.0
}

/// The limit with the margin that adapting begins with.
fn first_adapted(limit: Limit) -> Limit {
    let stack = Stack { name: String::new(), limits: vec![limit] };
    let mut applied = Terms::default().applied(&stack);
    applied.limits.swap_remove(0)
}

/// When the quota's present window ends.
fn resets_at(stack: &Stack, name: &str, now: Timestamp) -> anyhow::Result<Option<Timestamp>> {
    let now_us = u64::try_from(now.as_microsecond()).unwrap_or(0);
    let outlook = Outlook::new(stack, &BTreeMap::new(), now_us)?;
    let us = outlook.window_ends_us(name).and_then(|us| i64::try_from(us).ok());
    Ok(us.and_then(|us| Timestamp::from_microsecond(us).ok()))
}

/// How long the rates take to use the quota up, where that is before it resets.
fn used_up_in_s(
    limit: &Limit,
    stack: &Stack,
    weight: Weight,
    resets_at: Option<Timestamp>,
    now: Timestamp,
) -> Option<f64> {
    let Kind::Quota(quota) = limit.kind() else { return None };
    let rates = stack.limits.iter().filter(|limit| limit.kind() == Kind::Rate);
    let pace = rates.filter_map(|rate| calls_per_s(stack, &rate.name, &[weight])).min_by(f64::total_cmp)?;
    let takes = weight.micros(limit.unit) as f64 / 1e6;
    let seconds = f64::from(limit.calls) / takes / pace;
    let window_s = match (quota, resets_at) {
        (Quota::Total, _) | (_, None) => f64::INFINITY,
        (Quota::Minute, _) => 60.0,
        (Quota::Hour, _) => 3_600.0,
        (Quota::Day, _) => 86_400.0,
        (Quota::Month, Some(_)) => days_of_month(now) * 86_400.0,
    };
    (seconds < window_s).then_some(seconds)
}

fn days_of_month(now: Timestamp) -> f64 {
    f64::from(now.to_zoned(jiff::tz::TimeZone::UTC).days_in_month())
}
