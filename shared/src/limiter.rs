//! The rate limiter seam: a worker with a call ready to leave asks for a slot, a moment at which it may.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{sync::watch, time::Instant};

use crate::gcra::Keeper;
pub use crate::{
    limit::{Judge, Kind, Limit, MICRO, Quota, Stack, Unit, Weight},
    standing::{InFlight, Standing, Used},
    terms::{Amendment, Change, Numbers, Terms},
};

/// What a process asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// The calls that are ready, in their order, each by its weight.
    pub calls: Vec<Weight>,
    /// How long before its slot a call has to leave, so that it arrives in it: no slot is nearer than this and the
    /// limiter's own round trip.
    pub lead: Duration,
    /// How far this process' arrivals stray, where it has measured that: the fleet's margin follows the largest.
    pub jitter: Option<Duration>,
}

impl Order {
    /// An order of calls with these numbers of models.
    pub fn of_models(models: &[u32]) -> Self {
        Self { calls: models.iter().map(|models| Weight::of_models(*models)).collect(), ..Self::default() }
    }
}

/// A moment at which one call may arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// On this process's clock. Reached later than [`lateness`](crate::judge::lateness) allows, it is
    /// forfeited, not used: the call would crowd a window.
    pub at: Instant,
    /// The first call after a hold-off: until it is answered no other may leave. Its answer is told by
    /// [`answered`](RateLimiter::answered).
    pub probe: bool,
}

/// What a reservation got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// Slots for the first calls asked for, in order; at least one, perhaps fewer than asked.
    Slots(Vec<Slot>),
    /// Nothing was booked: nothing is free before the horizon. Ask again at this moment, or at the next change.
    ComeBack(Wait),
}

/// Why nothing can leave now, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// When to ask again: a little before something is free.
    pub ask_at: Instant,
    /// When the first call could leave, as far as is known.
    pub free_at: Instant,
    /// What keeps it.
    pub why: Why,
}

/// What keeps a call from leaving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The limit of this name.
    Limit(String),
    /// A hold-off, after the provider said that it is too much.
    HoldOff,
    /// The probe after a hold-off is not answered yet.
    Probe,
    /// Somebody paused the stack.
    Paused(String),
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Limit(name) => write!(f, "limit `{name}`"),
            Self::HoldOff => f.write_str("a hold-off"),
            Self::Probe => f.write_str("the probe after a hold-off"),
            Self::Paused(by) => write!(f, "a pause by {by}"),
        }
    }
}

impl Why {
    /// What keeps a call, in the words of the stack whose rules were decided by.
    pub(crate) fn of(keeper: Keeper, in_force: &Stack) -> Self {
        match keeper {
            Keeper::HoldOff => Self::HoldOff,
            Keeper::Probe => Self::Probe,
            Keeper::Rule(i) => {
                let mut booked = in_force.limits.iter().filter(|limit| limit.kind() != Kind::InFlight);
                Self::Limit(booked.nth(i).map(|limit| limit.name.clone()).unwrap_or_default())
            }
        }
    }
}

/// A pause of a stack for the whole fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldOff {
    /// From now on.
    pub pause: Duration,
    /// At its end one call is let through, and the others when that one was answered.
    pub probe: bool,
    /// A call was answered "too much" although it kept the limits: calls may arrive too near to each other.
    pub crowded: bool,
}

impl HoldOff {
    /// A pause, and nothing else.
    pub const fn of(pause: Duration) -> Self {
        Self { pause, probe: false, crowded: false }
    }
}

/// A process's part of a limit on calls in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Calls that it may have under way.
    pub calls: u32,
    /// Until when, unless it asks again.
    pub until: Instant,
    /// Whether others want more than is left: what is not needed is best given back at once.
    pub contended: bool,
}

/// One bound for the whole fleet.
#[async_trait]
pub trait RateLimiter: Send + Sync + 'static {
    /// Books the next moments that satisfy every limit of the stack at once, one for each call of the order, at most
    /// a horizon ahead.
    async fn reserve(&self, stack: &Stack, order: &Order) -> Result<Reservation, LimiterError>;

    /// Moves every later slot of the stack back by `by`: a call is about to leave that much later than its slot
    /// allows. Once this is answered it may.
    async fn late(&self, stack: &Stack, by: Duration) -> Result<(), LimiterError>;

    /// Gives back what a call took from the quotas of the stack: it did not leave, or was not charged. Its moment of a
    /// rate is gone.
    async fn refund(&self, stack: &Stack, call: Weight) -> Result<(), LimiterError>;

    /// Pauses the stack for the whole fleet. A shorter pause never ends a longer one.
    async fn hold_off(&self, stack: &Stack, hold_off: HoldOff) -> Result<(), LimiterError>;

    /// A probe was answered, and not by another "too much": the others may follow.
    async fn answered(&self, stack: &Stack) -> Result<(), LimiterError>;

    /// Until when the stack is paused, as far as this process knows without asking. Looked at right before a call.
    fn held_until(&self, stack: &Stack) -> Option<Instant>;

    /// Says how many calls are under way in this process (`held`) under the stack's limit `limit` on calls in flight, how
    /// many it could use (`wanted`), and how many it had by the last answer, if that holds still (`had`); answers how many
    /// it may have. That part is its own until then, also when it is killed.
    async fn share(
        &self,
        stack: &Stack,
        limit: &Limit,
        held: u32,
        wanted: u32,
        had: u32,
    ) -> Result<Share, LimiterError>;

    /// The stack with its limits as they are in force: with what was changed at run time, and the fleet's jitter. As
    /// far as this process knows without asking.
    fn in_force(&self, stack: &Stack) -> Arc<Stack>;

    /// Moves when something changed that may let a call go earlier, or later, than was said.
    fn changes(&self) -> watch::Receiver<u64>;

    /// What was changed at run time.
    async fn terms(&self, stack: &str) -> Result<Terms, LimiterError>;

    /// Changes something for the whole fleet, and keeps who did it. Answers what is in force then.
    async fn amend(&self, stack: &Stack, amendment: &Amendment) -> Result<Terms, LimiterError>;

    /// The last changes of the stack, the newest first.
    async fn history(&self, stack: &str) -> Result<Vec<Amendment>, LimiterError>;

    /// Where the stack stands: what is used of each limit, and what holds it.
    async fn standing(&self, stack: &Stack) -> Result<Standing, LimiterError>;

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
