//! Where a stack stands, with what is in force: the JSON of `limits show`, and of every command that changes something.

use jiff::Timestamp;
use pixfleet_shared::{
    foresight::{Foresight, foresee},
    judge::{best_utilisation, spacing},
    limiter::{Amendment, Kind, Limit, LimiterError, Numbers, RateLimiter, Stack, Standing, Terms, Unit},
    outlook::Outlook,
};
use serde::Serialize;

use super::stacks::{Owned, heaviest};

/// A stack.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    pub(super) stack: String,
    /// Whose calls pass it.
    pub(super) providers: Vec<String>,
    /// The limiter's clock.
    pub(super) at: Timestamp,
    /// Who paused it, if somebody did.
    pub(super) paused: Option<String>,
    pub(super) held_until: Option<Timestamp>,
    /// Whether the call after a hold-off is still awaited.
    pub(super) probing: bool,
    /// Calls granted since the limiter knows the stack; null where it does not count them.
    pub(super) calls: Option<u64>,
    /// The largest jitter that a worker measured in the last minute, in milliseconds.
    pub(super) measured_jitter_ms: Option<f64>,
    pub(super) limits: Vec<ShownLimit>,
    /// The currency of limits on money.
    #[serde(skip)]
    pub(super) currency: String,
    /// What was changed, the newest first; only where it is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) history: Option<Vec<Amendment>>,
}

/// A limit.
#[derive(Debug, Serialize)]
pub(super) struct ShownLimit {
    pub(super) limit: String,
    pub(super) kind: &'static str,
    pub(super) unit: Unit,
    /// As it is in force.
    pub(super) calls: u32,
    pub(super) burst: u32,
    /// The margin J in force, in milliseconds.
    pub(super) jitter_ms: f64,
    /// What the settings say, where something was changed at run time.
    pub(super) settings: Option<Settings>,
    /// Of a rate: units a second that leave at best.
    pub(super) units_per_s: Option<f64>,
    pub(super) best_utilisation: f64,
    /// Of a rate: T, in milliseconds.
    pub(super) interval_ms: Option<f64>,
    /// Of a rate: slots are booked up to this moment; null where none is.
    pub(super) booked_until: Option<Timestamp>,
    /// Of a quota: units used in the present window, and those that are left.
    pub(super) used: Option<f64>,
    pub(super) left: Option<f64>,
    pub(super) resets_at: Option<Timestamp>,
    /// Of calls in flight: calls that processes may have under way now, and how many processes have a share.
    pub(super) in_flight: Option<u32>,
    pub(super) processes: Option<u32>,
    /// Which of the numbers were changed.
    #[serde(skip)]
    pub(super) changed: Numbers,
    #[serde(skip)]
    pub(super) in_force: Limit,
}

/// A limit's numbers in the settings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Settings {
    pub(super) calls: u32,
    pub(super) burst: u32,
    /// Null where it is measured and adapted.
    pub(super) jitter_ms: Option<f64>,
}

/// When a number of calls would be done.
#[derive(Debug, Serialize)]
pub(super) struct ShownTime {
    pub(super) provider: String,
    pub(super) calls: u64,
    /// Models of each: the most that one may ask.
    pub(super) models_per_call: u32,
    #[serde(flatten)]
    pub(super) time: Foresight,
}

/// Asks the limiter where a stack stands.
///
/// # Errors
/// When the limiter is away, or the stack can never let a call go.
pub(super) async fn look(
    limiter: &dyn RateLimiter,
    owned: &Owned,
    history: bool,
) -> Result<Shown, LimiterError> {
    let stack = &owned.stack;
    let standing = limiter.standing(stack).await?;
    let terms = limiter.terms(&stack.name).await?;
    let history = if history { Some(limiter.history(&stack.name).await?) } else { None };
    // What no one used yet stands at nothing: with the moment at which it resets.
    let now_us = u64::try_from(standing.at.as_microsecond()).unwrap_or(0);
    let in_force = terms.applied(stack);
    let outlook = Outlook::new(&in_force, &Default::default(), now_us)?;
    let limits = stack.limits.iter().zip(&in_force.limits);
    let limits = limits.map(|(set, limit)| shown_limit(set, limit, &standing, &terms, &outlook)).collect();
    Ok(Shown {
        stack: stack.name.clone(),
        providers: owned.provider_names(),
        at: standing.at,
        paused: standing.paused,
        held_until: standing.held_until,
        probing: standing.probing,
        calls: standing.calls,
        measured_jitter_ms: standing.measured_jitter_ms,
        limits,
        currency: owned.providers.first().map(|first| first.tariff().currency.clone()).unwrap_or_default(),
        history,
    })
}

fn shown_limit(
    set: &Limit,
    limit: &Limit,
    standing: &Standing,
    terms: &Terms,
    outlook: &Outlook<'_>,
) -> ShownLimit {
    let used = standing.used.iter().find(|used| used.limit == limit.name);
    let share = standing.in_flight.iter().find(|share| share.limit == limit.name);
    let rate = (limit.kind() == Kind::Rate).then(|| spacing(limit));
    let counted = matches!(limit.kind(), Kind::Quota(_));
    let units = counted.then(|| used.and_then(|used| used.units).unwrap_or(0.0));
    let ends = outlook.window_ends_us(&limit.name).and_then(|us| i64::try_from(us).ok());
    let changed = terms.limits.get(&limit.name).copied();
    let utilisation = best_utilisation(limit);
    ShownLimit {
        limit: limit.name.clone(),
        kind: match limit.kind() {
            Kind::Rate => "rate",
            Kind::Quota(_) => "quota",
            Kind::InFlight => "in_flight",
        },
        unit: limit.unit,
        calls: limit.calls,
        burst: limit.burst,
        jitter_ms: limit.jitter().as_secs_f64() * 1000.0,
        settings: changed.map(|_| Settings { calls: set.calls, burst: set.burst, jitter_ms: set.jitter_ms }),
        changed: changed.unwrap_or_default(),
        units_per_s: rate.and(limit.units_per_s()).map(|per_s| per_s * utilisation),
        best_utilisation: utilisation,
        interval_ms: rate.map(|rate| rate.interval_us as f64 / 1000.0),
        booked_until: used.and_then(|used| used.booked_until),
        used: units,
        left: units.map(|units| (f64::from(limit.calls) - units).max(0.0)),
        resets_at: ends.and_then(|us| Timestamp::from_microsecond(us).ok()),
        in_flight: share.map(|share| share.calls),
        processes: share.map(|share| share.processes),
        in_force: limit.clone(),
    }
}

/// When `calls` calls of a provider would be done from where its stacks stand, and who paused one of them.
///
/// # Errors
/// When the limiter is away, or a stack can never let such a call go.
pub(crate) async fn foresight(
    limiter: &dyn RateLimiter,
    provider: &pixfleet_worker::provider::Provider,
    weight: pixfleet_shared::limiter::Weight,
    calls: u64,
) -> Result<(Foresight, Timestamp, Option<String>), LimiterError> {
    let (mut stacks, mut standings): (Vec<Stack>, Vec<Standing>) = (Vec::new(), Vec::new());
    for stack in provider.stacks() {
        let standing = limiter.standing(stack).await?;
        stacks.push(limiter.terms(&stack.name).await?.applied(stack));
        standings.push(standing);
    }
    let outlooks = stacks.iter().zip(&standings).map(|(stack, standing)| Outlook::from(stack, standing));
    let time = foresee(outlooks.collect::<Result<_, _>>()?, &[weight], calls)?;
    let now = standings.first().map_or_else(Timestamp::now, |standing| standing.at);
    Ok((time, now, standings.into_iter().find_map(|standing| standing.paused)))
}

/// When `calls` of the heaviest calls of a provider would be done.
///
/// # Errors
/// As [`foresight`].
pub(super) async fn look_ahead(
    limiter: &dyn RateLimiter,
    provider: &pixfleet_worker::provider::Provider,
    calls: u64,
) -> Result<ShownTime, LimiterError> {
    let weight = heaviest(provider);
    let (time, ..) = foresight(limiter, provider, weight, calls).await?;
    Ok(ShownTime { provider: provider.name().to_owned(), calls, models_per_call: weight.models, time })
}
