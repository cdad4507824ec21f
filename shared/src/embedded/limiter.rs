//! The limiter on the state file: an allowance is taken ahead, and given out without the disk.
//!
//! The file holds, of each stack, an upper bound of what is granted. A process that needs slots books them and, where
//! the rate is high, an allowance of a few more; the bound behind all of them is on the disk before the first
//! call leaves. Slots within the allowance need no further write. Whoever reads the bound next, another process or the
//! next run after a crash, begins behind it: at worst an allowance is unused, and never is a call too many.
//!
//! An allowance ends within the horizon, like every slot: [`gcra`](crate::gcra)'s reasoning about late calls holds.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rusqlite::Connection;
use tokio::time::Instant;

use super::{
    limits::{self, Granted},
    process::now_us,
    store::Store,
    trouble::StoreError,
};
use crate::{
    clock::{Clock, Observed},
    gcra::{Decision, HORIZON_US, LEAD_US, Moment, State, decide_at},
    judge::{self, Spacing},
    limiter::{LimiterError, RateLimiter, Reservation, Slot, Stack},
};

/// An allowance holds what may leave within this time.
const ALLOWANCE_US: u64 = 200_000;
/// The most calls of an allowance.
const ALLOWANCE_CALLS: usize = 64;
/// Of a limit with a longer window nothing is taken ahead: it is a quota or a budget, and a crash would spend it.
const LONGEST_WINDOW_MS: u64 = 60_000;
/// The most calls that one reservation books.
const MAX_CALLS: usize = 64;
/// Longer pauses are cut to this.
const MAX_PAUSE: Duration = Duration::from_secs(31 * 86_400);
/// Asked back this long before the moment that is free, so that it is booked before it comes.
const COME_BACK_AHEAD: Duration = Duration::from_micros(HORIZON_US / 2);
/// The longest lead, however slow the disk was lately.
const MAX_LEAD_US: u64 = 100_000;

/// The rate limiter on the state file.
pub struct EmbeddedLimiter {
    store: Arc<Store>,
    clock: Arc<Clock>,
    books: Arc<Mutex<Books>>,
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

/// What this process may still give out of a stack.
#[derive(Clone, Debug)]
struct Allowance {
    /// The version of the row that granted it.
    version: i64,
    /// What is given out.
    given: State,
    /// What the file says is given out.
    bound: State,
}

/// What a booking on the disk came to.
struct Booked {
    decision: Decision,
    allowance: Allowance,
}

impl EmbeddedLimiter {
    pub(super) async fn open(store: Arc<Store>) -> Result<Arc<Self>, StoreError> {
        let (clock, books) = (Arc::new(Clock::new()), Arc::new(Mutex::new(Books::default())));
        look(&clock);
        let stop = tokio_util::sync::CancellationToken::new();
        let ears = Ears { clock: clock.clone(), books: books.clone() };
        ears.note(&store.read(limits::held).await?);
        tokio::spawn(ears.listen(Arc::downgrade(&store), store.news().foreign.subscribe(), stop.clone()));
        Ok(Arc::new(Self { store, clock, books, pen: tokio::sync::Mutex::new(()), _ears: stop.drop_guard() }))
    }

    /// Gives back what is unused: the next run need not wait for it.
    pub(super) async fn give_back(&self) {
        let _pen = self.pen.lock().await;
        let allowances = std::mem::take(&mut books(&self.books).allowances);
        let given = move |db: &Connection| {
            for (stack, allowance) in allowances {
                if let Some(row) = limits::granted(db, &stack)?.filter(|row| row.version == allowance.version)
                {
                    let held_until_us = row.state.held_until_us.max(allowance.given.held_until_us);
                    limits::grant(db, &stack, row.version, &State { held_until_us, ..allowance.given })?;
                }
            }
            Ok(())
        };
        // At worst the next run waits for what nobody used.
        let _ = self.store.write(given).await;
    }

    /// Slots out of the allowance, where it holds all of them; or when to come back, which needs no grant.
    fn at_hand(
        &self,
        stack: &Stack,
        spacings: &[Spacing<'_>],
        calls: &[u32],
        now_us: u64,
    ) -> Option<Decision> {
        let mut books = books(&self.books);
        let allowance = books.allowances.get_mut(&stack.name)?;
        if allowance.given.at_us > now_us {
            // The clock was set back: the bound has to follow, too.
            return None;
        }
        let mut given = allowance.given.clone();
        let moment = Moment { now_us, lead_us: LEAD_US, lost: false };
        let decision = decide_at(moment, &mut given, spacings, calls);
        match &decision {
            Decision::Slots(slots) if slots.len() == calls.len() && within(&given, &allowance.bound) => {
                allowance.given = given;
                Some(decision)
            }
            _ => None,
        }
    }

    /// Slots from the disk, and an allowance behind them.
    async fn from_disk(
        &self,
        stack: &Stack,
        spacings: &[Spacing<'_>],
        calls: &[u32],
        doubt: bool,
    ) -> Result<Decision, LimiterError> {
        let _pen = self.pen.lock().await;
        // Whoever had the pen may have brought enough for this one.
        let at_hand = if doubt { None } else { self.at_hand(stack, spacings, calls, now_us()) };
        if let Some(decision) = at_hand {
            return Ok(decision);
        }
        let (own, lead_us) = {
            let mut books = books(&self.books);
            // What stood still or jumped with the clock is not given out any more.
            let own = books.allowances.remove(&stack.name).filter(|_| !doubt);
            (own, (LEAD_US + 2 * books.travel_us).min(MAX_LEAD_US))
        };
        let (task, wanted) = (stack.clone(), calls.to_vec());
        let sent = Instant::now();
        let booked = self.store.write(move |db| book(db, &task, &wanted, own, lead_us, doubt)).await?;
        let mut books = books(&self.books);
        // Smoothed as a round trip is, and quick to grow: the next slots have to be ahead of it.
        let took = sent.elapsed().as_micros() as u64;
        books.travel_us = if took > books.travel_us { took } else { (7 * books.travel_us + took) / 8 };
        books.allowances.insert(stack.name.clone(), booked.allowance);
        Ok(booked.decision)
    }

    fn hold(&self, stack: &str, until: Instant) {
        note_held(&mut books(&self.books).held, stack, until);
    }
}

#[async_trait]
impl RateLimiter for EmbeddedLimiter {
    async fn reserve(&self, stack: &Stack, calls: &[u32]) -> Result<Reservation, LimiterError> {
        let calls = &calls[..calls.len().min(MAX_CALLS)];
        let spacings = judge::spacings(stack)?;
        judge::fits(stack, calls.iter().copied().max().unwrap_or(0))?;
        if spacings.is_empty() {
            return Ok(unlimited(self.held_until(stack), calls.len()));
        }
        let (now_us, observed) = look(&self.clock);
        let doubt = observed == Observed::InDoubt;
        let at_hand = if doubt { None } else { self.at_hand(stack, &spacings, calls, now_us) };
        let decision = match at_hand {
            Some(decision) => decision,
            None => self.from_disk(stack, &spacings, calls, doubt).await?,
        };
        Ok(match decision {
            Decision::Slots(slots) => {
                Reservation::Slots(slots.iter().map(|slot| Slot { at: self.clock.at(*slot) }).collect())
            }
            Decision::ComeBack(at) => {
                let at = self.clock.at(at);
                Reservation::ComeBack(at.checked_sub(COME_BACK_AHEAD).unwrap_or(at))
            }
        })
    }

    async fn late(&self, stack: &Stack, by: Duration) -> Result<(), LimiterError> {
        let (name, by_us) = (stack.name.clone(), by.as_micros() as u64);
        let _pen = self.pen.lock().await;
        let own = books(&self.books).allowances.remove(&name);
        let moved = self.store.write(move |db| move_back(db, &name, own, by_us)).await?;
        if let Some(allowance) = moved {
            books(&self.books).allowances.insert(stack.name.clone(), allowance);
        }
        Ok(())
    }

    async fn hold_off(&self, stack: &Stack, pause: Duration) -> Result<(), LimiterError> {
        let pause = pause.min(MAX_PAUSE);
        let until = Instant::now() + pause;
        // This process stops at once, also while the file is busy.
        self.hold(&stack.name, until);
        let until_us = now_us() + pause.as_micros() as u64;
        let _pen = self.pen.lock().await;
        if let Some(allowance) = books(&self.books).allowances.get_mut(&stack.name) {
            allowance.given.held_until_us = allowance.given.held_until_us.max(until_us);
        }
        let name = stack.name.clone();
        self.store.write(move |db| limits::hold_off(db, &name, until_us)).await?;
        Ok(())
    }

    fn held_until(&self, stack: &Stack) -> Option<Instant> {
        let until = *books(&self.books).held.get(&stack.name)?;
        (until > Instant::now()).then_some(until)
    }

    fn health(&self) -> Result<(), String> {
        self.store.failure().map_or(Ok(()), |failure| Err(failure.to_string()))
    }
}

/// Books slots on the state file, and an allowance where that is worth it.
fn book(
    db: &Connection,
    stack: &Stack,
    calls: &[u32],
    own: Option<Allowance>,
    lead_us: u64,
    doubt: bool,
) -> rusqlite::Result<Booked> {
    let spacings: Vec<Spacing<'_>> = stack.limits.iter().map(judge::spacing).collect();
    let row = limits::granted(db, &stack.name)?;
    let version = row.as_ref().map_or(0, |row| row.version);
    let mut given = beginning(row, own, &spacings);
    let now_us = now_us();
    let decision = decide_at(Moment { now_us, lead_us, lost: doubt }, &mut given, &spacings, calls);
    let bound = match decision {
        Decision::Slots(_) => ahead(&given, stack, &spacings, calls, now_us),
        Decision::ComeBack(_) => given.clone(),
    };
    let version = limits::grant(db, &stack.name, version, &bound)?;
    Ok(Booked { decision, allowance: Allowance { version, given, bound } })
}

/// From where to go on: behind what this process gave out, where nobody else was granted anything since; else behind
/// the bound.
///
/// A file that does not know the stack never granted anything: a grant is on the disk before its first call leaves.
fn beginning(row: Option<Granted>, own: Option<Allowance>, spacings: &[Spacing<'_>]) -> State {
    match (row, own) {
        (Some(row), Some(own)) if own.version == row.version => {
            State { held_until_us: row.state.held_until_us.max(own.given.held_until_us), ..own.given }
        }
        // Known by a hold-off alone.
        (Some(row), _) if row.version == 0 => {
            State { held_until_us: row.state.held_until_us, ..State::idle(spacings) }
        }
        (Some(row), _) => row.state,
        (None, _) => State::idle(spacings),
    }
}

/// The state once everything was given out that may leave soon.
fn ahead(given: &State, stack: &Stack, spacings: &[Spacing<'_>], calls: &[u32], now_us: u64) -> State {
    let mut bound = given.clone();
    if stack.limits.iter().any(|limit| limit.per_ms > LONGEST_WINDOW_MS) {
        return bound;
    }
    let models = [calls.iter().copied().max().unwrap_or(1)];
    let moment = Moment { now_us, lead_us: LEAD_US, lost: false };
    for _ in 0..ALLOWANCE_CALLS {
        let mut next = bound.clone();
        match decide_at(moment, &mut next, spacings, &models) {
            Decision::Slots(slots) if slots.iter().all(|slot| *slot <= now_us + ALLOWANCE_US) => bound = next,
            _ => break,
        }
    }
    bound
}

/// Moves every later slot back. What other processes were granted is booked: it lies within the horizon.
fn move_back(
    db: &Connection,
    stack: &str,
    own: Option<Allowance>,
    by_us: u64,
) -> rusqlite::Result<Option<Allowance>> {
    let Some(row) = limits::granted(db, stack)? else {
        return Ok(None);
    };
    let mut allowance = own.filter(|own| own.version == row.version);
    let mut bound = row.state;
    bound.late(by_us);
    let version = limits::grant(db, stack, row.version, &bound)?;
    if let Some(allowance) = &mut allowance {
        allowance.given.late(by_us);
        (allowance.bound, allowance.version) = (bound, version);
    }
    Ok(allowance)
}

/// Whether nothing was given out beyond the bound.
fn within(given: &State, bound: &State) -> bool {
    given.pace.len() == bound.pace.len()
        && given.pace.iter().all(|(name, pace)| {
            bound
                .pace
                .get(name)
                .is_some_and(|bound| bound.interval_us == pace.interval_us && pace.tat_us <= bound.tat_us)
        })
}

fn unlimited(held: Option<Instant>, calls: usize) -> Reservation {
    match held {
        Some(until) => Reservation::ComeBack(until),
        None => Reservation::Slots(vec![Slot { at: Instant::now() }; calls]),
    }
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

/// Hears of the hold-offs that other processes wrote.
struct Ears {
    clock: Arc<Clock>,
    books: Arc<Mutex<Books>>,
}

impl Ears {
    async fn listen(
        self,
        store: std::sync::Weak<Store>,
        mut foreign: tokio::sync::watch::Receiver<u64>,
        stop: tokio_util::sync::CancellationToken,
    ) {
        loop {
            tokio::select! {
                changed = foreign.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
            let Some(store) = store.upgrade() else { return };
            if let Ok(held) = store.read(limits::held).await {
                self.note(&held);
            }
        }
    }

    fn note(&self, held: &[(String, u64)]) {
        let mut books = books(&self.books);
        for (stack, until_us) in held {
            note_held(&mut books.held, stack, self.clock.at(*until_us));
            if let Some(allowance) = books.allowances.get_mut(stack) {
                allowance.given.held_until_us = allowance.given.held_until_us.max(*until_us);
            }
        }
    }
}

#[cfg(test)]
mod tests;
