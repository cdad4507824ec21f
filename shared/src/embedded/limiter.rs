//! The limiter on the state file. Slots come out of an [`Allowance`], and the disk is asked where that is used up.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rusqlite::Connection;
use tokio::time::Instant;

use super::{
    allowance::{self, Allowance},
    limits,
    process::now_us,
    store::Store,
    trouble::StoreError,
};
use crate::{
    clock::{Clock, Observed},
    gcra::{Decision, LEAD_US, Moment},
    judge::{self, Spacing},
    limiter::{LimiterError, RateLimiter, Reservation, Slot, Stack},
};

/// The most calls that one reservation books.
const MAX_CALLS: usize = 64;
/// Longer pauses are cut to this.
const MAX_PAUSE: Duration = Duration::from_secs(31 * 86_400);
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
            allowances.iter().try_for_each(|(stack, allowance)| allowance.give_back(db, stack))
        };
        // At worst the next run waits for what nobody used.
        let _ = self.store.write(given).await;
    }

    /// Slots out of the allowance, as many of them as it has left.
    fn at_hand(
        &self,
        stack: &Stack,
        spacings: &[Spacing<'_>],
        calls: &[u32],
        now_us: u64,
    ) -> Option<Decision> {
        let mut books = books(&self.books);
        let allowance = books.allowances.get_mut(&stack.name)?;
        allowance.give_out(spacings, calls, now_us)
    }

    /// Slots from the disk, and an allowance behind them.
    async fn booked(
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
        let booking = move |db: &Connection| {
            let moment = Moment { now_us: now_us(), lead_us, lost: doubt };
            allowance::book(db, &task, &wanted, own, moment)
        };
        let (decision, allowance) = self.store.write(booking).await?;
        if allowance.given.held_until_us > now_us() {
            self.hold(&stack.name, self.clock.at(allowance.given.held_until_us));
        }
        let mut books = books(&self.books);
        // Smoothed as a round trip is, and quick to grow: the next slots have to be ahead of it.
        let took = sent.elapsed().as_micros() as u64;
        books.travel_us = if took > books.travel_us { took } else { (7 * books.travel_us + took) / 8 };
        books.allowances.insert(stack.name.clone(), allowance);
        Ok(decision)
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
            None => self.booked(stack, &spacings, calls, doubt).await?,
        };
        Ok(self.clock.reservation(&decision))
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
        // Another process may have called for a longer one.
        let held_until_us = self.store.write(move |db| limits::hold_off(db, &name, until_us)).await?;
        self.hold(&stack.name, self.clock.at(held_until_us));
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
