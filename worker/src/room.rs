//! Room among the calls under way, where a limit bounds them for the whole fleet.
//!
//! A process has a share of such a limit, and passes it from call to call without asking anybody: between two calls no time
//! is lost. A keeper says how much of it is in use and how much more could be, and learns what the share is.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pixfleet_shared::limiter::{Limit, RateLimiter, Share, Stack};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::alarm;

/// A share is said again this often: several times within its lease.
const RENEW_EVERY: Duration = Duration::from_millis(1_200);
/// Two exchanges are at least so far apart.
const EXCHANGE_EVERY: Duration = Duration::from_millis(20);
/// Who waits for room asks this often, beside being told.
const HUNGRY_EVERY: Duration = Duration::from_millis(100);
/// Bound of one exchange; the limiter's own timeouts are shorter.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(2);

/// This process's share of one limit on calls in flight.
#[derive(Clone)]
pub(crate) struct Room(Arc<Inner>);

struct Inner {
    stack: Stack,
    limit: String,
    limiter: Arc<dyn RateLimiter>,
    state: Mutex<State>,
    /// Somebody wants more, or gave something back.
    stir: Notify,
    /// There may be room now.
    free: Arc<Notify>,
}

#[derive(Default)]
struct State {
    share: Option<Share>,
    used: u32,
    /// Calls that wait for room.
    wanted: u32,
    /// What was last said.
    said: (u32, u32),
    /// What was said to be in use, while its answer is awaited: no more may be until then.
    asked: Option<u32>,
}

/// The right to have one call under way. Dropped, it is the next call's.
pub(crate) struct Permit(Arc<Inner>);

impl Room {
    /// Opens the room of `limit`; `free` is told when there may be some.
    pub(crate) fn open(
        stack: &Stack,
        limit: &Limit,
        limiter: Arc<dyn RateLimiter>,
        free: Arc<Notify>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let inner = Arc::new(Inner {
            stack: stack.clone(),
            limit: limit.name.clone(),
            limiter,
            state: Mutex::default(),
            stir: Notify::new(),
            free,
        });
        let keeper = inner.clone();
        tasks.spawn(async move {
            stop.run_until_cancelled(keeper.keep()).await;
            keeper.leave().await;
        });
        Self(inner)
    }

    /// Room for up to `now` calls, as much of it as there is; `wanted` calls wait for some, those among them.
    pub(crate) fn take(&self, now: u32, wanted: u32) -> Vec<Permit> {
        let mut state = self.0.lock();
        let free = state.allowed().saturating_sub(state.used);
        let taken = now.min(free);
        state.used += taken;
        state.wanted = wanted.saturating_sub(taken);
        let differs = state.said != (state.used, state.used + state.wanted);
        drop(state);
        if differs {
            self.0.stir.notify_one();
        }
        (0..taken).map(|_| Permit(self.0.clone())).collect()
    }
}

impl State {
    /// Calls that may be under way: none when the share's lease is over.
    fn allowed(&self) -> u32 {
        let share = self.share.filter(|share| share.until > Instant::now()).map_or(0, |share| share.calls);
        self.asked.map_or(share, |asked| share.min(asked))
    }

    fn is_contended(&self) -> bool {
        self.share.is_some_and(|share| share.contended)
    }
}

impl Inner {
    /// Exchanges with the limiter whenever there is news, and often enough to keep the share.
    async fn keep(&self) {
        let mut changes = self.limiter.changes();
        loop {
            let (hungry, changed) = {
                let state = self.lock();
                let hungry = state.wanted > 0 && state.used >= state.allowed();
                (hungry, changes.has_changed().unwrap_or(false))
            };
            if !changed {
                let rest = if hungry { HUNGRY_EVERY } else { RENEW_EVERY };
                tokio::select! {
                    () = self.stir.notified() => {}
                    () = sleep(rest) => {}
                    changed = changes.changed() => if changed.is_err() { return },
                }
            }
            changes.mark_unchanged();
            if self.has_something_to_say() {
                self.exchange().await;
                sleep(EXCHANGE_EVERY).await;
            }
        }
    }

    /// Without calls, and without a share to give back or to keep, there is nothing to say.
    fn has_something_to_say(&self) -> bool {
        let state = self.lock();
        state.used + state.wanted > 0 || state.share.is_some_and(|share| share.calls > 0)
    }

    async fn exchange(&self) {
        let in_force = self.limiter.in_force(&self.stack);
        let Some(limit) = in_force.limits.iter().find(|limit| limit.name == self.limit) else { return };
        let (held, wanted, had, contended) = {
            let mut state = self.lock();
            let (wanted, had) = (state.used + state.wanted, state.allowed());
            // What others want and is not in use is given up; else what could be used is kept, so that nothing has to wait
            // for the answer.
            let held = if state.is_contended() { state.used } else { state.used.max(wanted.min(had)) };
            state.said = (state.used, wanted);
            state.asked = Some(held);
            (held, wanted, had, state.is_contended())
        };
        let answer =
            timeout(EXCHANGE_TIMEOUT, self.limiter.share(&self.stack, limit, held, wanted, had)).await;
        let (more, again) = {
            let mut state = self.lock();
            state.asked = None;
            match (&answer, &mut state.share) {
                (Ok(Ok(share)), known) => *known = Some(*share),
                // It may have been heard, and only its answer lost: what was given up is gone.
                (_, Some(known)) => known.calls = known.calls.min(held),
                (_, None) => {}
            }
            (state.allowed() > state.used, !contended && state.is_contended())
        };
        if more {
            self.free.notify_one();
        }
        if again {
            // It was asked as if nobody else wanted any.
            self.stir.notify_one();
        }
        match answer {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => debug!(%error, limit = self.limit, "no share of the calls in flight"),
            Err(_) => warn!(limit = self.limit, "no share of the calls in flight: no answer in time"),
        }
    }

    /// What is not in use goes back; a call that still ends keeps its own.
    async fn leave(&self) {
        let held = {
            let mut state = self.lock();
            state.wanted = 0;
            state.used
        };
        let in_force = self.limiter.in_force(&self.stack);
        if let Some(limit) = in_force.limits.iter().find(|limit| limit.name == self.limit) {
            let _ = timeout(EXCHANGE_TIMEOUT, self.limiter.share(&self.stack, limit, held, held, held)).await;
        }
    }

    fn end_one(&self) {
        let mut state = self.lock();
        state.used = state.used.saturating_sub(1);
        // A share that became smaller, or that others want, is given back at once.
        let give_back =
            state.used >= state.allowed() || (state.wanted == 0 && state.share.is_some_and(|s| s.contended));
        let free = state.used < state.allowed();
        drop(state);
        if free {
            self.free.notify_one();
        }
        if give_back {
            self.stir.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let in_force = self.0.limiter.in_force(&self.0.stack);
        let limit = in_force.limits.iter().find(|limit| limit.name == self.0.limit);
        // An API that counts a call for a while after its answer wants a rest before the next one.
        let rest = limit.map(Limit::jitter).unwrap_or_default();
        if rest.is_zero() {
            return self.0.end_one();
        }
        let inner = self.0.clone();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                alarm::sleep_until(Instant::now() + rest).await;
                inner.end_one();
            })),
            Err(_) => inner.end_one(),
        }
    }
}
