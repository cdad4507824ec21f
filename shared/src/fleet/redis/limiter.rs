//! The limiter on Redis: one script, one round trip, one hash a stack.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use redis::ScriptInvocation;
use tokio::time::Instant;

use super::{
    Background,
    hold_offs::{Held, HoldOffs},
    pool::{Away, Link},
    servers::Connection,
};
use crate::{
    clock::{Clock, Observed},
    gcra::{CLOCK_STEP_US, Decision, HORIZON_US},
    judge::{self, Spacing},
    limiter::{LimiterError, RateLimiter, Reservation, Stack, Unit},
};

/// The most calls that one reservation books.
const MAX_CALLS: usize = 64;
/// An idle stack's key goes after this time. A missing key is lost state, so any time is safe; this one is rare.
const KEEP_IDLE: Duration = Duration::from_secs(86_400);
/// Longer pauses are cut to this.
const MAX_PAUSE: Duration = Duration::from_secs(31 * 86_400);
/// A server that is reminded of a hold-off may be a little behind; see its use.
const REMINDER_MARGIN: Duration = Duration::from_millis(250);

/// The rate limiter on Redis.
pub struct RedisLimiter {
    link: Arc<Link>,
    namespace: Arc<str>,
    hold_offs: Arc<HoldOffs>,
    clock: Arc<Clock>,
    _background: Background,
}

/// What the server decided, on its own clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booking {
    /// The server's clock when it decided, in microseconds since 1970.
    pub now_us: u64,
    /// How near to that a slot could be.
    pub lead_us: u64,
    /// The state was lost, or in doubt, and was rebuilt as the upper bound of what it may have been.
    pub lost: bool,
    /// Nothing leaves before this moment.
    pub held_until_us: u64,
    /// The slots, or when to come back.
    pub decision: Decision,
}

impl RedisLimiter {
    pub(super) fn new(
        link: Arc<Link>,
        namespace: Arc<str>,
        hold_offs: Arc<HoldOffs>,
        clock: Arc<Clock>,
        background: Background,
    ) -> Self {
        Self { link, namespace, hold_offs, clock, _background: background }
    }

    /// The key of a stack's hash: `{<namespace>:limit:<stack>}`, all of it hash tag, so a cluster keeps it whole.
    pub fn key(&self, stack: &str) -> String {
        key(&self.namespace, stack)
    }

    /// [`reserve`](RateLimiter::reserve) on the server's clock.
    ///
    /// # Errors
    /// As [`reserve`](RateLimiter::reserve).
    pub async fn book(&self, stack: &Stack, calls: &[u32]) -> Result<Booking, LimiterError> {
        let calls = &calls[..calls.len().min(MAX_CALLS)];
        let spacings = judge::spacings(stack)?;
        judge::fits(stack, calls.iter().copied().max().unwrap_or(0))?;
        self.hold_offs.watch(&stack.name);
        let (mut booking, observed) = self.ask(&stack.name, &spacings, calls, false).await?;
        if observed == Observed::InDoubt {
            // Those slots would crowd the ones that were booked before the jump: they stay unused.
            (booking, _) = self.ask(&stack.name, &spacings, calls, true).await?;
        }
        self.agree_on_hold_off(&stack.name, &booking).await;
        Ok(booking)
    }

    async fn ask(
        &self,
        stack: &str,
        spacings: &[Spacing<'_>],
        calls: &[u32],
        doubt: bool,
    ) -> Result<(Booking, Observed), Away> {
        let lead_us = self.clock.lead_us();
        let script = self.invocation(stack, spacings, calls, lead_us, doubt);
        let work = move |mut connection: Connection| async move {
            let sent = Instant::now();
            let reply: Vec<u64> = script.invoke_async(&mut connection).await?;
            Ok((sent, Instant::now(), reply))
        };
        let (sent, received, reply) = self.link.exchange(work).await?;
        let [now_us, lost, held_until_us, come_back, slots @ ..] = reply.as_slice() else {
            return Err(Away(format!("the limiter's script answered {reply:?}")));
        };
        let booking = Booking {
            now_us: *now_us,
            lead_us,
            lost: *lost == 1,
            held_until_us: *held_until_us,
            decision: match come_back {
                0 => Decision::Slots(slots.to_vec()),
                at => Decision::ComeBack(*at),
            },
        };
        Ok((booking, self.clock.observe(sent, received, *now_us)))
    }

    fn invocation(
        &self,
        stack: &str,
        spacings: &[Spacing<'_>],
        calls: &[u32],
        lead_us: u64,
        doubt: bool,
    ) -> ScriptInvocation<'_> {
        let mut script = self.link.reserve.key(self.key(stack));
        script
            .arg(HORIZON_US)
            .arg(CLOCK_STEP_US)
            .arg(lead_us)
            .arg(u8::from(doubt))
            .arg(KEEP_IDLE.as_millis() as u64)
            .arg(spacings.len());
        for limit in spacings {
            script
                .arg(limit.name)
                .arg(limit.interval_us)
                .arg(limit.tolerance_us)
                .arg(limit.heaviest)
                .arg(u8::from(limit.unit == Unit::Model));
        }
        script.arg(calls);
        script
    }

    /// Learns the server's hold-off, or reminds it of one that it lost.
    async fn agree_on_hold_off(&self, stack: &str, booking: &Booking) {
        if booking.held_until_us > booking.now_us {
            self.note(stack, booking.held_until_us);
        }
        let Some(held) = self.hold_offs.get(stack) else {
            return;
        };
        if held.server_us == 0 || held.server_us > booking.held_until_us {
            // Not later than it was: a fleet that reminds in turn must not push the end ahead of itself. The
            // margin makes up for this answer's way, within that bound.
            let margin = if held.server_us == 0 { Duration::ZERO } else { REMINDER_MARGIN };
            let left = held.until.saturating_duration_since(Instant::now()) + margin;
            if let Err(Away(why)) = self.push_hold_off(stack, left, held.server_us).await {
                tracing::debug!(limiter.stack = stack, redis.why = %why, "hold-off not yet renewed");
            }
        }
    }

    async fn push_hold_off(&self, stack: &str, pause: Duration, bound_us: u64) -> Result<(), Away> {
        let mut script = self.link.hold_off.key(self.key(stack));
        script
            .arg(pause.as_micros() as u64)
            .arg(bound_us)
            .arg(KEEP_IDLE.as_millis() as u64)
            .arg(channel(&self.namespace))
            .arg(stack);
        let work = move |mut connection: Connection| async move {
            let sent = Instant::now();
            let reply: (u64, u64) = script.invoke_async(&mut connection).await?;
            Ok((sent, Instant::now(), reply))
        };
        let (sent, received, (now_us, held_until_us)) = self.link.exchange(work).await?;
        // A step is left for the next reservation to notice: only it can act on one.
        if !self.clock.is_set() {
            self.clock.observe(sent, received, now_us);
        }
        self.note(stack, held_until_us);
        Ok(())
    }

    fn note(&self, stack: &str, held_until_us: u64) {
        let held = Held { until: self.clock.at(held_until_us), server_us: held_until_us };
        self.hold_offs.note(stack, held);
    }
}

#[async_trait]
impl RateLimiter for RedisLimiter {
    async fn reserve(&self, stack: &Stack, calls: &[u32]) -> Result<Reservation, LimiterError> {
        let booking = self.book(stack, calls).await?;
        Ok(self.clock.reservation(&booking.decision))
    }

    async fn late(&self, stack: &Stack, by: Duration) -> Result<(), LimiterError> {
        let mut script = self.link.late.key(self.key(&stack.name));
        script.arg(by.as_micros() as u64);
        let work = move |mut connection: Connection| async move {
            script.invoke_async::<u64>(&mut connection).await
        };
        self.link.exchange(work).await?;
        Ok(())
    }

    async fn hold_off(&self, stack: &Stack, pause: Duration) -> Result<(), LimiterError> {
        let pause = pause.min(MAX_PAUSE);
        // This process stops at once, also while the server is away; it is told when it is back.
        let held = Held { until: Instant::now() + pause, server_us: 0 };
        self.hold_offs.note(&stack.name, held);
        Ok(self.push_hold_off(&stack.name, pause, 0).await?)
    }

    fn held_until(&self, stack: &Stack) -> Option<Instant> {
        self.hold_offs.get(&stack.name).map(|held| held.until)
    }

    fn health(&self) -> Result<(), String> {
        self.link.health()
    }
}

impl From<Away> for LimiterError {
    fn from(Away(why): Away) -> Self {
        Self::Away(why)
    }
}

pub(super) fn key(namespace: &str, stack: &str) -> String {
    format!("{{{namespace}:limit:{stack}}}")
}

pub(super) fn channel(namespace: &str) -> String {
    format!("{namespace}:hold-off")
}
