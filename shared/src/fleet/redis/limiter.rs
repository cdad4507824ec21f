//! The limiter on Redis: one script, one round trip, one hash a stack.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

use super::{
    Background,
    hold_offs::Held,
    pool::Away,
    reply::{Decided, Reply},
    servers::Connection,
    wire::{Amended, Question, Shared, Wire},
};
use crate::{
    clock::Observed,
    gcra::Decision,
    judge,
    limiter::{
        Amendment, Change, HoldOff, InFlight, Kind, Limit, LimiterError, Order, RateLimiter, Reservation,
        Share, Slot, Stack, Standing, Terms, Used, Wait, Weight, Why,
    },
    quota::{Count, Windows, zone},
};

/// The most calls that one reservation books.
const MAX_CALLS: usize = 64;
/// Longer pauses are cut to this.
const MAX_PAUSE: Duration = Duration::from_secs(31 * 86_400);
/// A server that is reminded of a hold-off may be a little behind; see its use.
const REMINDER_MARGIN: Duration = Duration::from_millis(250);
/// Questions until terms and clock are agreed on: each answer but the last brought news.
const MOST_QUESTIONS: usize = 6;
/// A pause that somebody ordered has no end: whether it is over is asked this often, beside being told.
const PAUSED_ASK: Duration = Duration::from_secs(5);
/// Where no rate and no quota limits a stack, the server is asked this often all the same.
const ASKED_ANYWAY: Duration = Duration::from_secs(1);
/// A hold-off that is over for less than this may still want its probe.
const QUIET: Duration = Duration::from_secs(60);
/// An answer to `held_until` for a pause without end.
const LONG: Duration = Duration::from_secs(3_600);

/// The rate limiter on Redis.
pub struct RedisLimiter {
    wire: Arc<Wire>,
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
    pub(super) fn new(wire: Arc<Wire>, background: Background) -> Self {
        Self { wire, _background: background }
    }

    /// The key of a stack's hash: `{<namespace>:limit:<stack>}`, all of it hash tag, so a cluster keeps it whole.
    pub fn key(&self, stack: &str) -> String {
        self.wire.key(stack)
    }

    /// What this process remembers of the stack's quotas: what the server is told where it lost them.
    pub fn remembered(&self, stack: &str) -> BTreeMap<String, Count> {
        self.wire.knowledge.counts(stack)
    }

    /// [`reserve`](RateLimiter::reserve) on the server's clock, under the terms in force.
    ///
    /// # Errors
    /// As [`reserve`](RateLimiter::reserve).
    pub async fn book(&self, stack: &Stack, order: &Order) -> Result<Booking, LimiterError> {
        self.wire.hold_offs.watch(&stack.name);
        let mut doubt = false;
        for _ in 0..MOST_QUESTIONS {
            let (reply, observed, lead_us) = self.ask(stack, order, doubt).await?;
            match reply {
                Reply::OtherTerms(terms) => self.agree_on_terms(&stack.name, terms).await?,
                Reply::OtherWindow { .. } => {}
                // Those slots would crowd the ones that were booked before the jump: they stay unused.
                Reply::Decided(_) if observed == Observed::InDoubt && !doubt => doubt = true,
                Reply::Decided(decided) => return Ok(self.learn(stack, *decided, lead_us).await),
            }
        }
        Err(LimiterError::Away(format!(
            "the terms of stack `{}` change faster than they can be read",
            stack.name
        )))
    }

    async fn ask(
        &self,
        stack: &Stack,
        order: &Order,
        doubt: bool,
    ) -> Result<(Reply, Observed, u64), LimiterError> {
        let wire = &self.wire;
        // The terms that the stack is read under have to be those whose revision is said.
        let (terms, in_force) = loop {
            let terms = wire.knowledge.terms(&stack.name);
            let in_force = wire.knowledge.in_force(stack);
            if wire.knowledge.terms(&stack.name).rev == terms.rev {
                break (terms, in_force);
            }
        };
        let counts = wire.knowledge.counts(&stack.name);
        let now_us = wire.clock.server_us(Instant::now()).unwrap_or_else(system_us);
        let rules = judge::rules(&in_force, now_us, &counts)?;
        let calls =
            if terms.paused.is_some() { &[] } else { &order.calls[..order.calls.len().min(MAX_CALLS)] };
        calls.iter().try_for_each(|call| judge::fits(&in_force, *call))?;
        let calls: Vec<Vec<u64>> = calls.iter().map(|call| judge::costs(&in_force, *call)).collect();
        let lead_us = wire.clock.lead_us() + order.lead.as_micros() as u64;
        let jitter_us = order.jitter.map_or(0, |jitter| jitter.as_micros() as u64);
        let question = Question {
            stack: &stack.name,
            rules: &rules,
            calls: &calls,
            rev: terms.rev,
            lead_us,
            jitter_us,
            doubt,
        };
        let (reply, observed) = wire.reserve(&question).await?;
        Ok((reply, observed, lead_us))
    }

    /// Adopts later terms; where the server has earlier ones, it lost those that are known here.
    async fn agree_on_terms(&self, stack: &str, terms: Terms) -> Result<(), LimiterError> {
        if terms.rev < self.wire.knowledge.terms(stack).rev {
            return Ok(self.wire.remember(stack).await?);
        }
        self.wire.knowledge.adopt(stack, terms);
        Ok(())
    }

    /// Takes note of all that an answer tells, and adapts the jitter where that is due.
    async fn learn(&self, stack: &Stack, decided: Decided, lead_us: u64) -> Booking {
        let Decided { now_us, lost, held_until_us, decision, measured_us, counts } = decided;
        let in_force = self.wire.knowledge.in_force(stack);
        let quotas = in_force.limits.iter().filter(|limit| matches!(limit.kind(), Kind::Quota(_)));
        let named = quotas.map(|limit| limit.name.clone()).zip(counts);
        self.wire.knowledge.note(&stack.name, named, measured_us);
        let booking = Booking { now_us, lead_us, lost, held_until_us, decision };
        self.agree_on_hold_off(&stack.name, &booking).await;
        self.adapt(stack, now_us, false).await;
        booking
    }

    /// Adapts the fleet's jitter. Whoever is overtaken leaves it to the one who was faster.
    async fn adapt(&self, stack: &Stack, now_us: u64, throttled: bool) {
        let knowledge = &self.wire.knowledge;
        let Some((amended, amendment)) = knowledge.adaptation(stack, now_us, throttled) else { return };
        match self.wire.amend(&stack.name, &amended, &amendment, None).await {
            Ok(Amended::Done) => {
                tracing::debug!(limiter.stack = stack.name, change = %amendment.change, throttled, "adapted");
                knowledge.adopt(&stack.name, amended);
            }
            Ok(Amended::Overtaken(terms)) => {
                knowledge.adopt(&stack.name, terms);
            }
            Err(Away(why)) => {
                tracing::debug!(limiter.stack = stack.name, redis.why = %why, "jitter not adapted")
            }
        }
    }

    /// Learns the server's hold-off, or reminds it of one that it lost.
    async fn agree_on_hold_off(&self, stack: &str, booking: &Booking) {
        if booking.held_until_us > booking.now_us {
            self.wire.note_hold_off(stack, booking.held_until_us);
        }
        let Some(held) = self.wire.hold_offs.get(stack) else {
            return;
        };
        if held.server_us == 0 || held.server_us > booking.held_until_us {
            // Not later than it was: a fleet that reminds in turn must not push the end ahead of itself. The
            // margin makes up for this answer's way, within that bound.
            let margin = if held.server_us == 0 { Duration::ZERO } else { REMINDER_MARGIN };
            let left = held.until.saturating_duration_since(Instant::now()) + margin;
            if let Err(Away(why)) = self.wire.hold_off(stack, left, held.server_us, false).await {
                tracing::debug!(limiter.stack = stack, redis.why = %why, "hold-off not yet renewed");
            }
        }
    }

    /// Slots of now, where neither a rate nor a quota limits the stack, and nothing was held off lately: what the server
    /// would say is known. It is asked all the same from time to time, beside the calls.
    fn unlimited(&self, stack: &Stack, order: &Order) -> Option<Reservation> {
        let wire = &self.wire;
        let limited =
            wire.knowledge.in_force(stack).limits.iter().any(|limit| limit.kind() != Kind::InFlight);
        let certain = !limited
            && wire.link.health().is_ok()
            && !wire.knowledge.is_paused(&stack.name)
            && wire.hold_offs.is_quiet(&stack.name, QUIET);
        if !certain {
            return None;
        }
        if wire.knowledge.is_due(&stack.name, ASKED_ANYWAY) {
            let (wire, name) = (wire.clone(), stack.name.clone());
            tokio::spawn(async move { wire.catch_up_with(&name).await });
        }
        let slot = Slot { at: Instant::now(), probe: false };
        Some(Reservation::Slots(vec![slot; order.calls.len().min(MAX_CALLS)]))
    }

    /// The count that [`Change::Spent`] asks for.
    fn spent(&self, stack: &Stack, change: &Change) -> Result<Option<(Limit, Count)>, LimiterError> {
        let Change::Spent { limit, units } = change else { return Ok(None) };
        let impossible = |why: String| LimiterError::Impossible { stack: stack.name.clone(), why };
        let quota = stack.limits.iter().find_map(|known| match known.kind() {
            Kind::Quota(quota) if known.name == *limit => Some((known, quota)),
            _ => None,
        });
        let (limit, quota) =
            quota.ok_or_else(|| impossible(format!("`{limit}` is no quota, so nothing of it is counted")))?;
        let zone = zone(limit.zone.as_deref()).map_err(impossible)?;
        let now_us = self.wire.clock.server_us(Instant::now()).unwrap_or_else(system_us);
        let Windows { start_us, end_us, .. } = Windows::around(quota, &zone, now_us);
        let used = (units.max(0.0) * crate::limit::MICRO as f64) as u64;
        Ok(Some((limit.clone(), Count { start_us, end_us, used, next: 0 })))
    }
}

#[async_trait]
impl RateLimiter for RedisLimiter {
    async fn reserve(&self, stack: &Stack, order: &Order) -> Result<Reservation, LimiterError> {
        if let Some(slots) = self.unlimited(stack, order) {
            return Ok(slots);
        }
        let booking = self.book(stack, order).await?;
        let in_force = self.in_force(stack);
        let paused = self.wire.knowledge.terms(&stack.name).paused;
        // Asked while it was paused, and resumed in between: it is asked again at once.
        let nothing = matches!(&booking.decision, Decision::Slots { at, .. } if at.is_empty());
        if paused.is_some() || nothing {
            let now = Instant::now();
            let pause = if paused.is_some() { PAUSED_ASK } else { Duration::ZERO };
            let why = Why::Paused(paused.unwrap_or_default());
            return Ok(Reservation::ComeBack(Wait { ask_at: now + pause, free_at: now + LONG, why }));
        }
        Ok(self.wire.clock.reservation(&booking.decision, &in_force))
    }

    async fn late(&self, stack: &Stack, by: Duration) -> Result<(), LimiterError> {
        Ok(self.wire.late(&stack.name, by).await?)
    }

    async fn refund(&self, stack: &Stack, call: Weight) -> Result<(), LimiterError> {
        let quotas = stack.limits.iter().filter(|limit| matches!(limit.kind(), Kind::Quota(_)));
        let costs: Vec<(&str, u64)> = quotas
            .map(|limit| (limit.name.as_str(), call.micros(limit.unit)))
            .filter(|(_, cost)| *cost > 0)
            .collect();
        if costs.is_empty() {
            return Ok(());
        }
        Ok(self.wire.refund(&stack.name, &costs).await?)
    }

    async fn hold_off(&self, stack: &Stack, hold_off: HoldOff) -> Result<(), LimiterError> {
        let HoldOff { pause, probe, crowded } = hold_off;
        let pause = pause.min(MAX_PAUSE);
        // This process stops at once, also while the server is away; it is told when it is back.
        let held = Held { until: Instant::now() + pause, server_us: 0 };
        self.wire.hold_offs.note(&stack.name, held);
        self.wire.hold_off(&stack.name, pause, 0, probe).await?;
        if crowded && let Some(now_us) = self.wire.clock.server_us(Instant::now()) {
            self.adapt(stack, now_us, true).await;
        }
        Ok(())
    }

    async fn answered(&self, stack: &Stack) -> Result<(), LimiterError> {
        Ok(self.wire.open(&stack.name, false).await?)
    }

    fn held_until(&self, stack: &Stack) -> Option<Instant> {
        if self.wire.knowledge.is_paused(&stack.name) {
            return Some(Instant::now() + LONG);
        }
        self.wire.hold_offs.get(&stack.name).map(|held| held.until)
    }

    async fn share(
        &self,
        stack: &Stack,
        limit: &Limit,
        held: u32,
        wanted: u32,
        had: u32,
    ) -> Result<Share, LimiterError> {
        let Shared { calls, until, contended } =
            self.wire.share(&stack.name, limit, held, wanted, had).await?;
        Ok(Share { calls, until, contended })
    }

    fn in_force(&self, stack: &Stack) -> Arc<Stack> {
        self.wire.knowledge.in_force(stack)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.wire.knowledge.changes()
    }

    async fn terms(&self, stack: &str) -> Result<Terms, LimiterError> {
        let terms = self.wire.terms(stack).await?;
        self.wire.knowledge.adopt(stack, terms.clone());
        Ok(terms)
    }

    async fn amend(&self, stack: &Stack, amendment: &Amendment) -> Result<Terms, LimiterError> {
        let mut terms = self.terms(&stack.name).await?;
        for _ in 0..MOST_QUESTIONS {
            terms
                .check(stack, amendment)
                .map_err(|judge::Problem(why)| LimiterError::Impossible { stack: stack.name.clone(), why })?;
            let spent = self.spent(stack, &amendment.change)?;
            let amended = terms.amended(amendment);
            let spent = spent.as_ref().map(|(limit, count)| (limit, *count));
            match self.wire.amend(&stack.name, &amended, amendment, spent).await? {
                Amended::Done => {
                    self.wire.knowledge.adopt(&stack.name, amended.clone());
                    if amendment.change == Change::Resume {
                        self.wire.hold_offs.forget(&stack.name);
                        self.wire.open(&stack.name, true).await?;
                    }
                    return Ok(amended);
                }
                Amended::Overtaken(others) => terms = others,
            }
        }
        Err(LimiterError::Away(format!("others keep changing the terms of stack `{}`", stack.name)))
    }

    async fn history(&self, stack: &str) -> Result<Vec<Amendment>, LimiterError> {
        let mut ask = redis::cmd("LRANGE");
        ask.arg(self.wire.history_key(stack)).arg(0).arg(-1);
        let work = move |mut connection: Connection| async move {
            ask.query_async::<Vec<String>>(&mut connection).await
        };
        let lines = self.wire.link.exchange(work).await?;
        // One of a later release that can't be read is left out.
        Ok(lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    async fn standing(&self, stack: &Stack) -> Result<Standing, LimiterError> {
        let (now_us, fields) = self.wire.hash(&stack.name).await?;
        let number = |name: &str| fields.get(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let stored = Terms {
            rev: number("rev"),
            ..fields.get("terms").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
        };
        self.wire.knowledge.adopt(&stack.name, stored.clone());
        let in_force = stored.applied(stack);
        let used = |limit: &Limit| read_used(limit, fields.get(&format!("l:{}", limit.name))?, now_us);
        let mut in_flight = Vec::new();
        for limit in in_force.in_flight() {
            let (calls, processes) = self.wire.shares(&stack.name, &limit.name).await?;
            in_flight.push(InFlight { limit: limit.name.clone(), calls, processes });
        }
        let moment = |us: u64| i64::try_from(us).ok().and_then(|us| Timestamp::from_microsecond(us).ok());
        Ok(Standing {
            stack: stack.name.clone(),
            at: moment(now_us).unwrap_or_default(),
            paused: stored.paused.clone(),
            held_until: moment(number("nb")).filter(|_| number("nb") > now_us),
            probing: number("pb") > 0,
            calls: Some(number("n")),
            jitter_ms: stored.jitter_us.map(|us| us as f64 / 1000.0),
            measured_jitter_ms: (number("mj") > 0 && now_us.saturating_sub(number("mt")) < 60_000_000)
                .then(|| number("mj") as f64 / 1000.0),
            used: in_force.limits.iter().filter_map(used).collect(),
            in_flight,
        })
    }

    fn health(&self) -> Result<(), String> {
        self.wire.link.health()
    }
}

/// What a limit's field says of its use.
fn read_used(limit: &Limit, field: &str, now_us: u64) -> Option<Used> {
    let numbers: Vec<u64> = field.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
    match (limit.kind(), numbers.as_slice()) {
        (Kind::Rate, [tat_us, _]) => Some(Used::of_rate(&limit.name, *tat_us, now_us)),
        (Kind::Quota(quota), [start_us, end_us, used, next]) => {
            let count = Count { start_us: *start_us, end_us: *end_us, used: *used, next: *next };
            Some(Used::of_quota(limit, quota, count, now_us))
        }
        _ => None,
    }
}

impl From<Away> for LimiterError {
    fn from(Away(why): Away) -> Self {
        Self::Away(why)
    }
}

fn system_us() -> u64 {
    u64::try_from(Timestamp::now().as_microsecond()).unwrap_or(0)
}
