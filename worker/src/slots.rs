//! The slot desk: jobs that are ready to leave queue here, and one task asks the limiter for them.
//!
//! One asker a provider and process, not one a job: past the horizon a whole process waits for one moment, and the
//! limiter is not asked by a herd. Several waiting jobs are booked in one round trip, batches by turns (`waiting`). Where a provider has several
//! accounts, a call goes by the one that is free first.

use std::{sync::Arc, time::Duration};

use pixfleet_shared::{
    gcra,
    job::Job,
    judge,
    limiter::{LimiterError, Order, RateLimiter, Reservation, Slot, Stack, Wait, Weight, Why},
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use crate::{
    room::{Permit, Room},
    waiting::{Ask, Waiting},
};

/// Slots booked in one round trip: at a usual rate few, so that workers take turns; at a high one as many as are due in
/// ten milliseconds.
const FEWEST_AT_ONCE: usize = 4;
const MOST_AT_ONCE: usize = 32;
const DUE_WITHIN_S: f64 = 0.01;
/// From this rate on (calls a second) calls are gathered before the limiter is asked, for so long at most: its round trips
/// would else be as many as the calls.
const GATHERED_FROM: f64 = 800.0;
const GATHERED_FOR: Duration = Duration::from_millis(40);
/// So many calls are worth a round trip then.
const GATHERED: usize = 6;
/// The longest sleep before the limiter is asked again, whatever it said: limits can change meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
/// Bound of one request; the limiter's own timeouts are shorter.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Where nothing can leave for longer than this, jobs are not kept waiting: they go back, and come again then.
const PARKED_FROM: Duration = Duration::from_secs(60);
/// So long the limiter has to be away before a safe rate begins: by then every slot that was booked is over.
const SAFE_AFTER: Duration = Duration::from_micros(gcra::HORIZON_US + gcra::CLOCK_STEP_US);
/// After a change everybody asks at once, but not in the same moment.
const SPREAD: Duration = Duration::from_millis(5);

/// One account's way out: its limit stack, and its room among the calls under way.
pub(crate) struct Exit {
    pub(crate) stack: Stack,
    pub(crate) rooms: Vec<Room>,
    /// How long before its slot a call has to leave, and how far arrivals stray.
    pub(crate) aim: Aim,
    /// Calls a second that this process may make while the limiter is away.
    pub(crate) safe_rate: Option<f64>,
}

/// What is known of the way to an account's endpoint: the lead, and the jitter where it is measured.
pub(crate) type Aim = Arc<dyn Fn() -> (Duration, Option<Duration>) + Send + Sync>;

/// What a job gets.
pub(crate) enum Granted {
    /// It may leave.
    Leave(Leave),
    /// Nothing leaves before this moment: it has to come again.
    Parked { until: Instant, why: Why },
}

/// The right to leave.
pub(crate) struct Leave {
    /// By which of the accounts.
    pub(crate) account: usize,
    /// When.
    pub(crate) slot: Slot,
    /// Among the calls under way, until it is dropped.
    pub(crate) room: Vec<Permit>,
}

/// A handle on one provider's desk.
#[derive(Clone)]
pub(crate) struct Desk {
    exits: Arc<Vec<Exit>>,
    asks: mpsc::Sender<Ask>,
}

impl Desk {
    /// Opens the desk of a provider with these exits. `free` is told when a room may have become free.
    pub(crate) fn open(
        exits: Vec<Exit>,
        free: Arc<Notify>,
        limiter: Arc<dyn RateLimiter>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (asks, inbox) = mpsc::channel(1024);
        let exits = Arc::new(exits);
        let now = Instant::now();
        let outlooks = exits.iter().map(|_| Outlook { ask_at: now, free_at: now, why: None }).collect();
        let changes = limiter.changes();
        let clerk = Clerk {
            exits: exits.clone(),
            outlooks,
            limiter,
            changes,
            free,
            inbox,
            waiting: Waiting::default(),
            failures: 0,
            away: None,
        };
        tasks.spawn(async move {
            tokio::select! {
                () = clerk.run() => {}
                () = stop.cancelled() => {}
            }
        });
        Self { exits, asks }
    }

    /// The right to leave for the call of `job`, of this weight; waits until there is one. `None` when the desk has closed.
    ///
    /// # Errors
    /// [`LimiterError::Impossible`], at once, for a call that no stack could ever let go: it does not get in
    /// the way of those that wait.
    pub(crate) async fn leave(&self, job: &Job, weight: Weight) -> Result<Option<Granted>, LimiterError> {
        for exit in self.exits.iter() {
            judge::fits(&exit.stack, weight)?;
        }
        let (granted, booked) = oneshot::channel();
        if self.asks.send(Ask::of(job, weight, granted)).await.is_err() {
            return Ok(None);
        }
        Ok(booked.await.ok())
    }
}

/// What is known of an exit since it was last asked.
struct Outlook {
    /// There is no use in asking before.
    ask_at: Instant,
    /// When the next call could leave, as far as is known.
    free_at: Instant,
    /// What keeps it, where nothing can leave.
    why: Option<Why>,
}

struct Clerk {
    exits: Arc<Vec<Exit>>,
    outlooks: Vec<Outlook>,
    limiter: Arc<dyn RateLimiter>,
    changes: watch::Receiver<u64>,
    free: Arc<Notify>,
    inbox: mpsc::Receiver<Ask>,
    waiting: Waiting,
    failures: u32,
    /// Since when the limiter is away, and when the next call may leave without it.
    away: Option<Away>,
}

struct Away {
    since: Instant,
    next: Instant,
}

impl Clerk {
    async fn run(mut self) {
        while self.gather().await {
            if self.changes.has_changed().unwrap_or(false) {
                self.changes.mark_unchanged();
                self.look_again();
            }
            self.gather_more().await;
            match self.earliest() {
                Some((exit, room)) => self.ask(exit, room).await,
                None if self.park() => {}
                None => self.rest().await,
            }
        }
    }

    /// Waits for an ask, and takes in all that are there. Jobs that gave up waiting book nothing.
    async fn gather(&mut self) -> bool {
        self.waiting.sweep();
        if self.waiting.is_empty() {
            // Nobody waits for room any more.
            self.exits.iter().flat_map(|exit| &exit.rooms).for_each(|room| drop(room.take(0, 0)));
            match self.inbox.recv().await {
                Some(ask) => self.waiting.push(ask),
                None => return false,
            }
        }
        while let Ok(ask) = self.inbox.try_recv() {
            self.waiting.push(ask);
        }
        self.waiting.sweep();
        true
    }

    /// At a high rate: waits for as many as are worth a round trip.
    async fn gather_more(&mut self) {
        let fast = |exit: &Exit| {
            let rate = self.limiter.in_force(&exit.stack).rate_per_s(Weight::of_models(1));
            rate.is_some_and(|rate| rate >= GATHERED_FROM)
        };
        if self.waiting.len() >= GATHERED || !self.exits.iter().any(fast) {
            return;
        }
        let until = Instant::now() + GATHERED_FOR;
        while self.waiting.len() < GATHERED
            && let Ok(Some(ask)) = timeout_at(until, self.inbox.recv()).await
        {
            self.waiting.push(ask);
        }
    }

    /// The exit to ask now, with the room that was taken there for as many of the waiting calls as may be booked.
    fn earliest(&self) -> Option<(usize, Vec<Vec<Permit>>)> {
        let now = Instant::now();
        let mut open: Vec<usize> =
            (0..self.exits.len()).filter(|exit| self.outlooks[*exit].ask_at <= now).collect();
        open.sort_by_key(|exit| self.outlooks[*exit].free_at);
        open.into_iter().find_map(|exit| {
            let wanted = self.waiting.len().min(self.at_once(&self.exits[exit]));
            let rooms = &self.exits[exit].rooms;
            let mut room: Vec<Vec<Permit>> = (0..wanted).map(|_| Vec::new()).collect();
            for one in rooms {
                // Wanted by all that wait, so that the share is what they need; taken by those that are booked now.
                let permits = one.take(room.len() as u32, self.waiting.len() as u32);
                room.truncate(permits.len());
                room.iter_mut().zip(permits).for_each(|(call, permit)| call.push(permit));
            }
            (!room.is_empty()).then_some((exit, room))
        })
    }

    fn at_once(&self, exit: &Exit) -> usize {
        let weight = self.waiting.peek(1).pop().unwrap_or(Weight::of_models(1));
        let rate = self.limiter.in_force(&exit.stack).rate_per_s(weight);
        let due = rate.map_or(MOST_AT_ONCE, |rate| (rate * DUE_WITHIN_S) as usize);
        due.clamp(FEWEST_AT_ONCE, MOST_AT_ONCE)
    }

    async fn ask(&mut self, exit: usize, room: Vec<Vec<Permit>>) {
        let Exit { stack, aim, .. } = &self.exits[exit];
        let calls = self.waiting.peek(room.len());
        let (lead, jitter) = aim();
        let order = Order { calls, lead, jitter };
        match timeout(REQUEST_TIMEOUT, self.limiter.reserve(stack, &order)).await {
            Ok(Ok(reservation)) => {
                if self.failures > 0 {
                    info!(stack = stack.name, "the rate limiter is back");
                }
                self.failures = 0;
                self.away = None;
                self.hand_out(exit, reservation, room);
            }
            Ok(Err(error)) => self.refused(exit, error, room).await,
            Err(_) => {
                let error = LimiterError::Away("no answer in time".to_owned());
                self.refused(exit, error, room).await;
            }
        }
    }

    fn hand_out(&mut self, exit: usize, reservation: Reservation, room: Vec<Vec<Permit>>) {
        let now = Instant::now();
        self.outlooks[exit] = match reservation {
            Reservation::ComeBack(Wait { ask_at, free_at, why }) => {
                Outlook { ask_at: ask_at.min(now + LONGEST_SLEEP), free_at, why: Some(why) }
            }
            Reservation::Slots(slots) => {
                let last = slots.last().map_or(now, |slot| slot.at);
                for (slot, room) in slots.into_iter().zip(room) {
                    let Some(ask) = self.waiting.pop() else { break };
                    // A job that gave up in this moment leaves its slot unused: the limit is kept, one slot idle.
                    let _ = ask.granted.send(Granted::Leave(Leave { account: exit, slot, room }));
                }
                Outlook { ask_at: now, free_at: last, why: None }
            }
        };
    }

    /// Where nothing can leave for long, by any exit, whoever waits is told so. Whether that is the case.
    fn park(&mut self) -> bool {
        let Some(first) = self.outlooks.iter().min_by_key(|outlook| outlook.free_at) else { return false };
        let (Some(why), until) = (first.why.clone(), first.free_at) else { return false };
        if until < Instant::now() + PARKED_FROM || self.waiting.is_empty() {
            return false;
        }
        while let Some(ask) = self.waiting.pop() {
            let _ = ask.granted.send(Granted::Parked { until, why: why.clone() });
        }
        true
    }

    /// Until an exit may be asked again, a room becomes free, or something changes.
    async fn rest(&mut self) {
        let now = Instant::now();
        let next = self.outlooks.iter().map(|outlook| outlook.ask_at).filter(|at| *at > now).min();
        let until = next.unwrap_or(now + LONGEST_SLEEP).min(now + LONGEST_SLEEP);
        tokio::select! {
            () = sleep_until(until) => {}
            () = self.free.notified() => {}
            Ok(()) = self.changes.changed() => {
                sleep(SPREAD.mul_f64(rand::random())).await;
                self.look_again();
            }
        }
    }

    /// What was said of the exits may not hold any more.
    fn look_again(&mut self) {
        let now = Instant::now();
        for outlook in &mut self.outlooks {
            outlook.ask_at = now;
        }
    }

    /// Fail closed: nothing leaves without a slot, and the jobs keep waiting. With a safe rate some do.
    async fn refused(&mut self, exit: usize, error: LimiterError, room: Vec<Vec<Permit>>) {
        self.failures += 1;
        let stack = &self.exits[exit].stack.name;
        match &error {
            // Of the stack itself: asks that don't fit it were refused at the desk.
            LimiterError::Impossible { .. } if self.failures == 1 => error!(%error, "no call can ever leave"),
            LimiterError::Impossible { .. } => {}
            LimiterError::Away(_) if self.failures == 1 => warn!(%error, stack, "waiting"),
            LimiterError::Away(_) => {}
        }
        if matches!(error, LimiterError::Away(_)) && self.leave_safely(exit, room).await {
            return;
        }
        // At most 400 ms: whoever waits longer than the outage gives away calls after it.
        let pause = Duration::from_millis(50).saturating_mul(1 << self.failures.min(3));
        sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
    }

    /// One call leaves at the safe rate, once every slot that the limiter booked is over. Whether one may.
    async fn leave_safely(&mut self, exit: usize, room: Vec<Vec<Permit>>) -> bool {
        let now = Instant::now();
        let away = self.away.get_or_insert(Away { since: now, next: now });
        let Exit { stack, safe_rate: Some(rate), .. } = &self.exits[exit] else { return false };
        if away.since.elapsed() < SAFE_AFTER || self.limiter.held_until(stack).is_some() {
            return false;
        }
        let at = away.next.max(now);
        away.next = at + Duration::from_secs_f64(1.0 / rate);
        self.hand_out(exit, Reservation::Slots(vec![Slot { at, probe: false }]), room);
        sleep_until(at).await;
        true
    }
}
