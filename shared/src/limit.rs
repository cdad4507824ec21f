//! Limits and stacks of them: what a call must pass, and what it weighs.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::jitter;

/// One limit of a provider: so many units in so much time, and how the provider counts.
///
/// There are three kinds. A *rate* lets `calls` go every `per_ms`, evenly, as its judge demands. A *quota*
/// (`quota = "day"`) is counted in windows of the calendar and spent as fast as the other limits allow. A limit *in
/// flight* (`judge = "concurrent"`) bounds the calls that are under way at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// The limit's name, unique in its stack: `rate`, `day`. Shown in metrics and errors.
    pub name: String,
    /// Units allowed in a window, or in flight at once under `concurrent`. At least 1.
    pub calls: u32,
    /// The window of a rate, in milliseconds. Default: 1000.
    #[serde(default = "one_second_ms")]
    pub per_ms: u64,
    /// Makes it a quota, counted in windows of the calendar: `minute`, `hour`, `day`, `month`, or `total` for credits that
    /// never come back. Default: none, so it is a rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,
    /// The time zone in which a quota's windows begin: `UTC`, `America/Los_Angeles`. Default: `UTC`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// How the provider decides. Default: `sliding`, the plain reading of "n a second".
    #[serde(default)]
    pub judge: Judge,
    /// What one call takes from it. Default: `call`.
    #[serde(default)]
    pub unit: Unit,
    /// Units that may leave at once after a pause: the provider's bucket size for `bucket` and `leaky`, or, for
    /// `sliding` and `fixed`, how many of `calls` may be spent in one go. A quota has no burst. Default: 1.
    #[serde(default = "one")]
    pub burst: u32,
    /// How far arrivals may stray from their slots, in milliseconds: the margin that keeps a judge content.
    /// A wider margin costs `jitter / per` of the quota. Default: measured and adapted, from 8 ms on (2 ms for `leaky`
    /// without burst, and at most what a burst forgives); 1000 ms at the edges of a quota's windows; no rest after a call
    /// under `concurrent`: give one where an API counts a call until shortly after its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_ms: Option<f64>,
}

/// How a provider decides that a caller is over its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Judge {
    /// At most `calls` in any window: the plain reading, and a sliding log.
    #[default]
    Sliding,
    /// At most `calls` in each window, wherever those begin.
    Fixed,
    /// A token bucket of size `burst`, refilled with `calls` each window.
    Bucket,
    /// nginx `limit_req rate=calls/per burst=burst nodelay`.
    Leaky,
    /// At most `calls` in flight.
    Concurrent,
}

/// What one call takes from a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// One unit a call.
    #[default]
    Call,
    /// One unit a model of the call.
    Model,
    /// One unit a million bytes of the request's body.
    Megabyte,
    /// What the call costs, in the currency of the provider's `cost`.
    Money,
}

/// The calendar's windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Quota {
    /// A minute of the clock.
    Minute,
    /// An hour of the clock.
    Hour,
    /// From midnight to midnight.
    Day,
    /// From the first of a month to the next one's.
    Month,
    /// For ever: credits.
    Total,
}

fn one_second_ms() -> u64 {
    1000
}

fn one() -> u32 {
    1
}

/// Millionths of a unit: what limits count in, so that megabytes and prices are whole numbers.
pub const MICRO: u64 = 1_000_000;

/// What a call weighs, in every unit that a limit may count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Models that it asks. Zero is taken as one.
    pub models: u32,
    /// Bytes of its body.
    pub bytes: u64,
    /// Its price, in millionths of the provider's currency.
    pub price_micros: u64,
}

impl Weight {
    /// A call of so many models, without a body and free.
    pub const fn of_models(models: u32) -> Self {
        Self { models, bytes: 0, price_micros: 0 }
    }

    /// What it takes from a limit of this unit, in millionths of a unit.
    pub fn micros(self, unit: Unit) -> u64 {
        match unit {
            Unit::Call => MICRO,
            Unit::Model => u64::from(self.models.max(1)) * MICRO,
            // A unit is a million bytes, so its millionth is one.
            Unit::Megabyte => self.bytes,
            Unit::Money => self.price_micros,
        }
    }
}

impl Unit {
    /// The unit's word for `amount` of it.
    pub fn noun(self, amount: f64) -> &'static str {
        match (self, amount == 1.0) {
            (Self::Call, true) => "call",
            (Self::Call, false) => "calls",
            (Self::Model, true) => "model",
            (Self::Model, false) => "models",
            (Self::Megabyte, _) => "MB",
            (Self::Money, _) => "of money",
        }
    }
}

impl Limit {
    /// A limit of `calls` calls a second under the sliding judge: what the others are made from, by `..`.
    pub fn per_second(name: &str, calls: u32) -> Self {
        Self {
            name: name.to_owned(),
            calls,
            per_ms: one_second_ms(),
            quota: None,
            zone: None,
            judge: Judge::default(),
            unit: Unit::default(),
            burst: one(),
            jitter_ms: None,
        }
    }

    /// Which of the three kinds it is.
    pub fn kind(&self) -> Kind {
        match (self.judge, self.quota) {
            (Judge::Concurrent, _) => Kind::InFlight,
            (_, Some(quota)) => Kind::Quota(quota),
            (_, None) => Kind::Rate,
        }
    }

    /// The arrival jitter that it allows for.
    pub fn jitter(&self) -> Duration {
        let ms = self.jitter_ms.unwrap_or_else(|| match self.kind() {
            Kind::Quota(_) => 1000.0,
            Kind::InFlight => 0.0,
            Kind::Rate => jitter::of(self, None),
        });
        Duration::try_from_secs_f64(ms / 1000.0).unwrap_or_default()
    }

    /// Whether its jitter is the limiter's to measure and adapt.
    pub fn is_adaptive(&self) -> bool {
        self.jitter_ms.is_none() && self.kind() == Kind::Rate
    }

    /// Units a second in the long run; none for credits and for calls in flight.
    pub fn units_per_s(&self) -> Option<f64> {
        let seconds = match self.kind() {
            Kind::InFlight | Kind::Quota(Quota::Total) => return None,
            Kind::Rate => self.per_ms as f64 / 1000.0,
            Kind::Quota(Quota::Minute) => 60.0,
            Kind::Quota(Quota::Hour) => 3_600.0,
            Kind::Quota(Quota::Day) => 86_400.0,
            Kind::Quota(Quota::Month) => 30.44 * 86_400.0,
        };
        Some(f64::from(self.calls) / seconds)
    }
}

/// The three kinds of limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// So many units every so often, evenly.
    Rate,
    /// So many units in each window of the calendar.
    Quota(Quota),
    /// So many calls under way at once.
    InFlight,
}

/// All the limits that one call must pass together, under one name for the whole fleet.
#[derive(Clone, Debug, PartialEq)]
pub struct Stack {
    /// The stack's name: whoever uses it shares its limits.
    pub name: String,
    /// The limits. None at all means that every call may leave now.
    pub limits: Vec<Limit>,
}

impl Stack {
    /// The tightest rate, in calls of this weight per second. Quotas, which are spent freely, are none.
    pub fn rate_per_s(&self, weight: Weight) -> Option<f64> {
        let rate = |limit: &Limit| {
            let units = weight.micros(limit.unit).max(1) as f64 / MICRO as f64;
            (limit.kind() == Kind::Rate).then(|| limit.units_per_s().map(|rate| rate / units)).flatten()
        };
        self.limits.iter().filter_map(rate).min_by(f64::total_cmp)
    }

    /// Whether it says how long calls take at least: credits and calls in flight leave that to the API.
    pub fn is_timed(&self) -> bool {
        self.limits.iter().any(|limit| limit.units_per_s().is_some())
    }

    /// The limits on calls in flight.
    pub fn in_flight(&self) -> impl Iterator<Item = &Limit> {
        self.limits.iter().filter(|limit| limit.kind() == Kind::InFlight)
    }
}
