//! The limiter on the state file. Slots come out of an [`Allowance`], and the disk is asked where that is used up.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::Connection;
use tokio::{sync::watch, time::Instant};

use super::{
    allowance::{self, Allowance, Booked},
    limits,
    process::now_us,
    store::Store,
    trouble::StoreError,
};
use crate::{
    clock::{Clock, Observed},
    gcra::{Decision, Known, LEAD_US, Moment, Probe},
    judge,
    knowledge::Knowledge,
    limiter::{
        Amendment, Change, HoldOff, InFlight, Kind, Limit, LimiterError, MICRO, Order, RateLimiter,
        Reservation, Share, Slot, Stack, Standing, Terms, Used, Wait, Weight, Why,
    },
    quota::{Count, Windows, zone},
};

/// The most calls that one reservation books.
const MAX_CALLS: usize = 64;
/// Longer pauses are cut to this.
const MAX_PAUSE: Duration = Duration::from_secs(31 * 86_400);
/// The longest lead, however slow the disk was lately.
const MAX_LEAD_US: u64 = 100_000;
/// How long a share of calls in flight is taken for granted without a word: a dead process is noticed by itself.
const SHARE: Duration = Duration::from_secs(5);
/// A pause that somebody ordered has no end: whether it is over is asked this often, beside being told.
const PAUSED_ASK: Duration = Duration::from_secs(5);
/// So long after a hold-off the file is asked, also of a stack without limits: a probe may have to go first.
const QUIET: Duration = Duration::from_secs(60);
/// An answer to `held_until` for a pause without end.
const LONG: Duration = Duration::from_secs(3_600);

/// The rate limiter on the state file.
pub struct EmbeddedLimiter {
    store: Arc<Store>,
    clock: Arc<Clock>,
    books: Arc<Mutex<Books>>,
    knowledge: Arc<Knowledge>,
    /// Held while an allowance is in the writer's hands: nobody gives anything out of it meanwhile.
    pen: tokio::sync::Mutex<()>,
    /// Ends the task that hears of other processes' hold-offs.
    _ears: tokio_util::sync::DropGuard,
}

/// What this process knows.
#[derive(Default)]
struct Books {
    allowances: HashMap<String, Allowance>,
    /// On this process's clock.
    held: HashMap<String, Instant>,
    /// How long a booking lately took on its way to the disk and back.
    travel_us: u64,
}

impl EmbeddedLimiter {
    pub(super) async fn open(store: Arc<Store>) -> Result<Arc<Self>, StoreError> {
        let (clock, books) = (Arc::new(Clock::new()), Arc::new(Mutex::new(Books::default())));
        let knowledge = Arc::new(Knowledge::default());
        look(&clock);
        let stop = tokio_util::sync::CancellationToken::new();
        let ears = Ears { clock: clock.clone(), books: books.clone(), knowledge: knowledge.clone() };
        ears.note(store.read(news).await?);
        tokio::spawn(ears.listen(Arc::downgrade(&store), store.news().foreign.subscribe(), stop.clone()));
        let pen = tokio::sync::Mutex::new(());
        Ok(Arc::new(Self { store, clock, books, knowledge, pen, _ears: stop.drop_guard() }))
    }

    /// Gives back what is unused: the next run need not wait for it.
    pub(super) async fn give_back(&self) {
        let _pen = self.pen.lock().await;
        let allowances = std::mem::take(&mut books(&self.books).allowances);
        let given = move |db: &Connection| {
            allowances.iter().try_for_each(|(stack, allowance)| allowance.give_back(db, stack))
        };
        // At worst the next run waits for what nobody used.
        let _ = self.store.write(given).await;
    }

    /// Slots out of the allowance, as many of them as it has left.
    fn at_hand(&self, stack: &Stack, order: &Order, now_us: u64) -> Option<Decision> {
        let in_force = self.knowledge.in_force(stack);
        if self.knowledge.is_paused(&stack.name) {
            return None;
        }
        let mut books = books(&self.books);
        let allowance = books.allowances.get_mut(&stack.name)?;
        let rules = judge::rules(&in_force, now_us, &BTreeMap::new()).ok()?;
        let calls = order.calls.iter().map(|call| judge::costs(&in_force, *call)).collect::<Vec<_>>();
        order.calls.iter().try_for_each(|call| judge::fits(&in_force, *call)).ok()?;
        allowance.give_out(&rules, &calls, now_us)
    }

    /// Slots from the disk, and an allowance behind them.
    async fn booked(&self, stack: &Stack, order: &Order, doubt: bool) -> Result<Decision, LimiterError> {
        let _pen = self.pen.lock().await;
        // Whoever had the pen may have brought enough for this one.
        let at_hand = if doubt { None } else { self.at_hand(stack, order, now_us()) };
        if let Some(decision) = at_hand {
            return Ok(decision);
        }
        let (own, lead_us) = {
            let mut books = books(&self.books);
            // What stood still or jumped with the clock is not given out any more.
            let own = books.allowances.remove(&stack.name).filter(|_| !doubt);
            let lead_us = (LEAD_US + 2 * books.travel_us).min(MAX_LEAD_US);
            (own, lead_us + order.lead.as_micros() as u64)
        };
        let (task, wanted) = (stack.clone(), order.calls.clone());
        let jitter_us = order.jitter.map_or(0, |jitter| jitter.as_micros() as u64);
        let sent = Instant::now();
        let booking = move |db: &Connection| {
            let moment = Moment { now_us: now_us(), lead_us, lost: doubt };
            let booked = allowance::book(db, &task, &wanted, own, moment)?;
            if let Ok(booked) = &booked
                && jitter_us.abs_diff(booked.measured_us) * 4 > booked.measured_us
            {
                limits::measured(db, &task.name, jitter_us)?;
            }
            Ok((booked, moment.now_us))
        };
        let (booked, at_us) = self.store.write(booking).await?;
        let Booked { decision, allowance, terms, measured_us } = booked?;
        self.knowledge.adopt(&stack.name, terms);
        self.knowledge.note(&stack.name, [], measured_us);
        if allowance.given.held_until_us > now_us() {
            self.hold(&stack.name, self.clock.at(allowance.given.held_until_us));
        }
        {
            let mut books = books(&self.books);
            // Smoothed as a round trip is, and quick to grow: the next slots have to be ahead of it.
            let took = sent.elapsed().as_micros() as u64;
            books.travel_us = if took > books.travel_us { took } else { (7 * books.travel_us + took) / 8 };
            books.allowances.insert(stack.name.clone(), allowance);
        }
        self.adapt(stack, at_us, false).await?;
        Ok(decision)
    }

    /// Adapts the jitter that is allowed for.
    async fn adapt(&self, stack: &Stack, now_us: u64, throttled: bool) -> Result<(), LimiterError> {
        if let Some((_, amendment)) = self.knowledge.adaptation(stack, now_us, throttled) {
            let name = stack.name.clone();
            let terms = self.store.write(move |db| limits::amend(db, &name, &amendment)).await?;
            self.knowledge.adopt(&stack.name, terms);
        }
        Ok(())
    }

    /// Whether nothing is to be heard of a hold-off, not even of one that ended lately.
    fn is_quiet(&self, stack: &str) -> bool {
        let held = books(&self.books).held.get(stack).copied();
        held.is_none_or(|until| until + QUIET < Instant::now())
    }

    fn hold(&self, stack: &str, until: Instant) {
        note_held(&mut books(&self.books).held, stack, until);
    }
}

#[async_trait]
impl RateLimiter for EmbeddedLimiter {
    async fn reserve(&self, stack: &Stack, order: &Order) -> Result<Reservation, LimiterError> {
        let order = &Order { calls: order.calls.iter().copied().take(MAX_CALLS).collect(), ..order.clone() };
        let in_force = self.in_force(stack);
        if in_force.limits.iter().all(|limit| limit.kind() == Kind::InFlight)
            && !self.knowledge.is_paused(&stack.name)
            && self.is_quiet(&stack.name)
        {
            let now = Instant::now();
            return Ok(Reservation::Slots(vec![Slot { at: now, probe: false }; order.calls.len()]));
        }
        let (now_us, observed) = look(&self.clock);
        let doubt = observed == Observed::InDoubt;
        let at_hand = if doubt { None } else { self.at_hand(stack, order, now_us) };
        let decision = match at_hand {
            Some(decision) => decision,
            None => self.booked(stack, order, doubt).await?,
        };
        let paused = self.knowledge.terms(&stack.name).paused;
        // Asked while it was paused, and resumed in between: it is asked again at once.
        let nothing = matches!(&decision, Decision::Slots { at, .. } if at.is_empty());
        if paused.is_some() || nothing {
            let now = Instant::now();
            let pause = if paused.is_some() { PAUSED_ASK } else { Duration::ZERO };
            let why = Why::Paused(paused.unwrap_or_default());
            return Ok(Reservation::ComeBack(Wait { ask_at: now + pause, free_at: now + LONG, why }));
        }
        Ok(self.clock.reservation(&decision, &self.in_force(stack)))
    }

    async fn late(&self, stack: &Stack, by: Duration) -> Result<(), LimiterError> {
        let (name, by_us) = (stack.name.clone(), by.as_micros() as u64);
        let _pen = self.pen.lock().await;
        let own = books(&self.books).allowances.remove(&name);
        let moved = self.store.write(move |db| allowance::move_back(db, &name, own, by_us)).await?;
        if let Some(allowance) = moved {
            books(&self.books).allowances.insert(stack.name.clone(), allowance);
        }
        Ok(())
    }

    async fn refund(&self, stack: &Stack, call: Weight) -> Result<(), LimiterError> {
        let quotas = stack.limits.iter().filter(|limit| matches!(limit.kind(), Kind::Quota(_)));
        let costs: Vec<(String, u64)> = quotas
            .map(|limit| (limit.name.clone(), call.micros(limit.unit)))
            .filter(|(_, cost)| *cost > 0)
            .collect();
        if costs.is_empty() {
            return Ok(());
        }
        let name = stack.name.clone();
        let _pen = self.pen.lock().await;
        Ok(self.store.write(move |db| allowance::refund(db, &name, &costs)).await?)
    }

    async fn hold_off(&self, stack: &Stack, hold_off: HoldOff) -> Result<(), LimiterError> {
        let HoldOff { pause, probe, crowded } = hold_off;
        let pause = pause.min(MAX_PAUSE);
        let until = Instant::now() + pause;
        // This process stops at once, also while the file is busy.
        self.hold(&stack.name, until);
        let until_us = now_us() + pause.as_micros() as u64;
        {
            let _pen = self.pen.lock().await;
            if let Some(allowance) = books(&self.books).allowances.get_mut(&stack.name) {
                allowance.given.held_until_us = allowance.given.held_until_us.max(until_us);
                if probe {
                    allowance.given.probe = Probe::Due;
                }
            }
            let name = stack.name.clone();
            // Another process may have called for a longer one.
            let held_until_us =
                self.store.write(move |db| limits::hold_off(db, &name, until_us, probe)).await?;
            self.hold(&stack.name, self.clock.at(held_until_us));
        }
        if crowded {
            self.adapt(stack, now_us(), true).await?;
        }
        Ok(())
    }

    async fn answered(&self, stack: &Stack) -> Result<(), LimiterError> {
        let name = stack.name.clone();
        self.store.write(move |db| limits::open(db, &name, false)).await?;
        self.knowledge.announce();
        Ok(())
    }

    fn held_until(&self, stack: &Stack) -> Option<Instant> {
        if self.knowledge.is_paused(&stack.name) {
            return Some(Instant::now() + LONG);
        }
        let until = *books(&self.books).held.get(&stack.name)?;
        (until > Instant::now()).then_some(until)
    }

    async fn share(
        &self,
        stack: &Stack,
        limit: &Limit,
        held: u32,
        wanted: u32,
        _had: u32,
    ) -> Result<Share, LimiterError> {
        let (stack, limit) = (stack.name.clone(), limit.clone());
        let shared = self.store.shared();
        let until = Instant::now() + SHARE;
        let (calls, contended) = self
            .store
            .write(move |db| {
                let own = shared.membership.join(db)?;
                limits::share(db, &stack, &limit, own, held, wanted)
            })
            .await?;
        Ok(Share { calls, until, contended })
    }

    fn in_force(&self, stack: &Stack) -> Arc<Stack> {
        self.knowledge.in_force(stack)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.knowledge.changes()
    }

    async fn terms(&self, stack: &str) -> Result<Terms, LimiterError> {
        let name = stack.to_owned();
        let row = self.store.read(move |db| limits::granted(db, &name)).await?;
        let terms = row.map(|row| row.terms).unwrap_or_default();
        self.knowledge.adopt(stack, terms.clone());
        Ok(terms)
    }

    async fn amend(&self, stack: &Stack, amendment: &Amendment) -> Result<Terms, LimiterError> {
        let impossible = |why: String| LimiterError::Impossible { stack: stack.name.clone(), why };
        self.terms(&stack.name)
            .await?
            .check(stack, amendment)
            .map_err(|judge::Problem(why)| impossible(why))?;
        let spent = quota_of(stack, &amendment.change, now_us()).map_err(impossible)?;
        let (name, task) = (stack.name.clone(), amendment.clone());
        let _pen = self.pen.lock().await;
        let terms = self
            .store
            .write(move |db| {
                let terms = limits::amend(db, &name, &task)?;
                if task.change == Change::Resume {
                    limits::open(db, &name, true)?;
                }
                if let Some((limit, count)) = spent
                    && let Some(mut row) = limits::granted(db, &name)?
                {
                    row.state.known.insert(limit, Known::Count(count));
                    limits::grant(db, &name, row.version, &row.state)?;
                }
                Ok(terms)
            })
            .await?;
        if amendment.change == Change::Resume {
            books(&self.books).held.remove(&stack.name);
        }
        self.knowledge.adopt(&stack.name, terms.clone());
        Ok(terms)
    }

    async fn history(&self, stack: &str) -> Result<Vec<Amendment>, LimiterError> {
        let stack = stack.to_owned();
        Ok(self.store.read(move |db| limits::history(db, &stack)).await?)
    }

    async fn standing(&self, stack: &Stack) -> Result<Standing, LimiterError> {
        let stack = stack.clone();
        Ok(self.store.read(move |db| standing(db, &stack)).await?)
    }

    fn health(&self) -> Result<(), String> {
        self.store.failure().map_or(Ok(()), |failure| Err(failure.to_string()))
    }
}

/// The quota that [`Change::Spent`] names, and its count.
fn quota_of(stack: &Stack, change: &Change, now_us: u64) -> Result<Option<(String, Count)>, String> {
    let Change::Spent { limit, units } = change else { return Ok(None) };
    let known = stack.limits.iter().find(|known| known.name == *limit);
    let Some((Kind::Quota(quota), known)) = known.map(|known| (known.kind(), known)) else {
        return Err(format!("`{limit}` is no quota, so nothing of it is counted"));
    };
    let Windows { start_us, end_us, .. } = Windows::around(quota, &zone(known.zone.as_deref())?, now_us);
    let used = (units.max(0.0) * MICRO as f64) as u64;
    Ok(Some((limit.clone(), Count { start_us, end_us, used, next: 0 })))
}

fn standing(db: &Connection, stack: &Stack) -> rusqlite::Result<Standing> {
    let now_us = now_us();
    let row = limits::granted(db, &stack.name)?;
    let moment = |us: u64| i64::try_from(us).ok().and_then(|us| Timestamp::from_microsecond(us).ok());
    let terms = row.as_ref().map(|row| row.terms.clone()).unwrap_or_default();
    let state = row.as_ref().map(|row| row.state.clone()).unwrap_or_default();
    let in_force = terms.applied(stack);
    let used = |limit: &Limit| match (limit.kind(), state.known.get(&limit.name)?) {
        (Kind::Rate, Known::Pace(pace)) => Some(Used::of_rate(&limit.name, pace.tat_us, now_us)),
        (Kind::Quota(quota), Known::Count(count)) => Some(Used::of_quota(limit, quota, *count, now_us)),
        _ => None,
    };
    let in_flight = in_force.in_flight().map(|limit| {
        let (calls, processes) = limits::shares(db, &stack.name, &limit.name)?;
        Ok(InFlight { limit: limit.name.clone(), calls, processes })
    });
    let measured_us = row.map_or(0, |row| row.measured_us);
    Ok(Standing {
        stack: stack.name.clone(),
        at: moment(now_us).unwrap_or_default(),
        paused: terms.paused.clone(),
        held_until: moment(state.held_until_us).filter(|_| state.held_until_us > now_us),
        probing: state.probe != Probe::None,
        calls: None,
        jitter_ms: terms.jitter_us.map(|us| us as f64 / 1000.0),
        measured_jitter_ms: (measured_us > 0).then(|| measured_us as f64 / 1000.0),
        used: in_force.limits.iter().filter_map(used).collect(),
        in_flight: in_flight.collect::<rusqlite::Result<_>>()?,
    })
}

/// One look at both clocks.
fn look(clock: &Clock) -> (u64, Observed) {
    let before = Instant::now();
    let now_us = now_us();
    (now_us, clock.observe(before, Instant::now(), now_us))
}

fn books(books: &Mutex<Books>) -> MutexGuard<'_, Books> {
    books.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A shorter hold-off never ends a longer one.
fn note_held(held: &mut HashMap<String, Instant>, stack: &str, until: Instant) {
    let known = held.entry(stack.to_owned()).or_insert(until);
    *known = (*known).max(until);
}

/// What other processes may have changed: hold-offs, terms, and whether a probe is to go ahead.
type News = (Vec<(String, u64)>, Vec<(String, Terms)>);

fn news(db: &Connection) -> rusqlite::Result<News> {
    Ok((limits::held(db)?, limits::terms(db)?))
}

/// Hears of what other processes wrote.
struct Ears {
    clock: Arc<Clock>,
    books: Arc<Mutex<Books>>,
    knowledge: Arc<Knowledge>,
}

impl Ears {
    async fn listen(
        self,
        store: std::sync::Weak<Store>,
        mut foreign: watch::Receiver<u64>,
        stop: tokio_util::sync::CancellationToken,
    ) {
        loop {
            tokio::select! {
                changed = foreign.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
            let Some(store) = store.upgrade() else { return };
            if let Ok(news) = store.read(news).await {
                self.note(news);
            }
        }
    }

    fn note(&self, (held, terms): News) {
        for (stack, terms) in terms {
            if terms.paused.is_none() && self.knowledge.is_paused(&stack) {
                // Resuming ends hold-offs, too.
                books(&self.books).held.remove(&stack);
            }
            self.knowledge.adopt(&stack, terms);
        }
        {
            let mut books = books(&self.books);
            for (stack, until_us) in &held {
                note_held(&mut books.held, stack, self.clock.at(*until_us));
                if let Some(allowance) = books.allowances.get_mut(stack) {
                    allowance.given.held_until_us = allowance.given.held_until_us.max(*until_us);
                }
            }
        }
        // A probe's answer, or a share that was given back, shows in what is asked next.
        self.knowledge.announce();
    }
}
