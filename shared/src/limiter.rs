//! The rate limiter seam: a worker with a call ready to leave asks for a slot, a moment at which it may.

use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// One limit of a provider: so many units in so much time, and how the provider counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// The limit's name, unique in its stack: `rate`, `day`. Shown in metrics and errors.
    pub name: String,
    /// Units allowed in `per_ms`. At least 1.
    pub calls: u32,
    /// The window in milliseconds. Default: 1000.
    #[serde(default = "one_second_ms")]
    pub per_ms: u64,
    /// How the provider decides. Default: `sliding`, which is safe for every judge.
    #[serde(default)]
    pub judge: Judge,
    /// What one call takes from it. Default: `call`.
    #[serde(default)]
    pub unit: Unit,
    /// Calls that may leave at once after a pause: the provider's bucket size for `bucket` and `leaky`, or, for
    /// `sliding` and `fixed`, how many of `calls` may be spent in one go. Default: 1.
    #[serde(default = "one")]
    pub burst: u32,
    /// How far arrivals may stray from their slots, in milliseconds: the margin that keeps a judge content.
    /// A wider margin costs `jitter / per` of the quota. Default: 8.
    #[serde(default = "jitter_ms")]
    pub jitter_ms: f64,
}

/// How a provider decides that a caller is over its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Judge {
    /// At most `calls` in any window: the plain reading, and a sliding log.
    #[default]
    Sliding,
    /// At most `calls` in each aligned window.
    Fixed,
    /// A token bucket of size `burst`, refilled with `calls` each window.
    Bucket,
    /// nginx `limit_req rate=calls/per burst=burst nodelay`.
    Leaky,
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
}

fn one_second_ms() -> u64 {
    1000
}

fn one() -> u32 {
    1
}

fn jitter_ms() -> f64 {
    8.0
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
    /// The tightest limit, in calls of `models` models per second.
    pub fn rate_per_s(&self, models: u32) -> Option<f64> {
        let rate = |limit: &Limit| {
            let units = if limit.unit == Unit::Model { models.max(1) } else { 1 };
            f64::from(limit.calls) * 1000.0 / limit.per_ms as f64 / f64::from(units)
        };
        self.limits.iter().map(rate).min_by(f64::total_cmp)
    }
}

/// A moment at which one call may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// On this process's clock. Reached later than [`lateness`](crate::judge::lateness) allows, it is
    /// forfeited, not used: the call would crowd a window.
    pub at: Instant,
}

/// What a reservation got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// Slots for the first calls asked for, in order; at least one, perhaps fewer than asked.
    Slots(Vec<Slot>),
    /// Nothing was booked: nothing is free before the horizon. Ask again at this moment.
    ComeBack(Instant),
}

/// One bound for the whole fleet.
#[async_trait]
pub trait RateLimiter: Send + Sync + 'static {
    /// Books the next moments that satisfy every limit of the stack at once, one for each call of `calls` (its
    /// number of models), at most a horizon ahead.
    async fn reserve(&self, stack: &Stack, calls: &[u32]) -> Result<Reservation, LimiterError>;

    /// Moves every later slot of the stack back by `by`: a call is about to leave that much later than its slot
    /// allows. Once this is answered it may.
    async fn late(&self, stack: &Stack, by: Duration) -> Result<(), LimiterError>;

    /// Pauses the stack for the whole fleet, from now for `pause`. A shorter one never ends a longer one.
    async fn hold_off(&self, stack: &Stack, pause: Duration) -> Result<(), LimiterError>;

    /// Until when the stack is paused, as far as this process knows without asking. Looked at right before a call.
    fn held_until(&self, stack: &Stack) -> Option<Instant>;

    /// Whether the limiter can be reached now; the text says why not.
    fn health(&self) -> Result<(), String>;
}

/// No slot can be had. Nothing may leave: jobs wait in the queue.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LimiterError {
    /// Ask again: the server is away, read-only or out of memory.
    #[error("the rate limiter is away, so nothing is sent: {0}")]
    Away(String),
    /// Mend the settings: this stack can never be satisfied.
    #[error("the limit stack `{stack}` can never be satisfied: {why}")]
    Impossible {
        /// The stack's name.
        stack: String,
        /// What is wrong with it.
        why: String,
    },
}
