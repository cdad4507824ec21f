//! The slot desk: jobs that are ready to leave queue here, and one task asks the limiter for them.
//!
//! One asker a stack and process, not one a job: past the horizon a whole process waits for one moment, and the
//! limiter is not asked by a herd. Several waiting jobs are booked in one round trip.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use pixfleet_shared::{
    judge,
    limiter::{LimiterError, RateLimiter, Reservation, Slot, Stack},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

/// Slots booked in one round trip: few, so that workers take turns.
const MOST_AT_ONCE: usize = 4;
/// The longest sleep before the limiter is asked again, whatever it said: limits can change meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
/// Bound of one request; the limiter's own timeouts are shorter.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A handle on one stack's desk.
#[derive(Clone)]
pub(crate) struct Desk {
    stack: Arc<Stack>,
    asks: mpsc::Sender<Ask>,
}

struct Ask {
    models: u32,
    slot: oneshot::Sender<Slot>,
}

impl Desk {
    /// Opens the desk of `stack`.
    pub(crate) fn open(
        stack: Stack,
        limiter: Arc<dyn RateLimiter>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (asks, inbox) = mpsc::channel(1024);
        let stack = Arc::new(stack);
        let clerk = Clerk { stack: stack.clone(), limiter, inbox, waiting: VecDeque::new() };
        tasks.spawn(async move {
            tokio::select! {
                () = clerk.run() => {}
                () = stop.cancelled() => {}
            }
        });
        Self { stack, asks }
    }

    /// A slot for a call of `models` models; waits until one is booked. `None` when the desk has closed.
    ///
    /// # Errors
    /// [`LimiterError::Impossible`], at once, for a call that the stack could never let go: it does not get in
    /// the way of those that wait.
    pub(crate) async fn slot(&self, models: u32) -> Result<Option<Slot>, LimiterError> {
        judge::fits(&self.stack, models)?;
        let (slot, booked) = oneshot::channel();
        if self.asks.send(Ask { models, slot }).await.is_err() {
            return Ok(None);
        }
        Ok(booked.await.ok())
    }
}

struct Clerk {
    stack: Arc<Stack>,
    limiter: Arc<dyn RateLimiter>,
    inbox: mpsc::Receiver<Ask>,
    waiting: VecDeque<Ask>,
}

impl Clerk {
    async fn run(mut self) {
        let mut failures = 0u32;
        while self.gather().await {
            let calls: Vec<u32> = self.waiting.iter().take(MOST_AT_ONCE).map(|ask| ask.models).collect();
            match timeout(REQUEST_TIMEOUT, self.limiter.reserve(&self.stack, &calls)).await {
                Ok(Ok(reservation)) => {
                    if failures > 0 {
                        info!(stack = self.stack.name, "the rate limiter is back");
                    }
                    failures = 0;
                    self.hand_out(reservation).await;
                }
                Ok(Err(error)) => self.refused(error, &mut failures).await,
                Err(_) => {
                    self.refused(LimiterError::Away("no answer in time".to_owned()), &mut failures).await
                }
            }
        }
    }

    /// Waits for an ask, and takes in all that are there. Jobs that gave up waiting book nothing.
    async fn gather(&mut self) -> bool {
        self.waiting.retain(|ask| !ask.slot.is_closed());
        if self.waiting.is_empty() {
            match self.inbox.recv().await {
                Some(ask) => self.waiting.push_back(ask),
                None => return false,
            }
        }
        while let Ok(ask) = self.inbox.try_recv() {
            self.waiting.push_back(ask);
        }
        self.waiting.retain(|ask| !ask.slot.is_closed());
        true
    }

    async fn hand_out(&mut self, reservation: Reservation) {
        match reservation {
            Reservation::Slots(slots) => {
                for slot in slots {
                    let Some(ask) = self.waiting.pop_front() else { break };
                    // A job that gave up in this moment leaves its slot unused: the limit is kept, one slot idle.
                    let _ = ask.slot.send(slot);
                }
            }
            Reservation::ComeBack(at) => sleep_until(at.min(Instant::now() + LONGEST_SLEEP)).await,
        }
    }

    /// Fail closed: nothing leaves without a slot, and the jobs keep waiting.
    async fn refused(&self, error: LimiterError, failures: &mut u32) {
        *failures += 1;
        match &error {
            // Of the stack itself: asks that don't fit it were refused at the desk.
            LimiterError::Impossible { .. } if *failures == 1 => error!(%error, "no call can ever leave"),
            LimiterError::Impossible { .. } => {}
            LimiterError::Away(_) if *failures == 1 => warn!(%error, stack = self.stack.name, "waiting"),
            LimiterError::Away(_) => {}
        }
        // At most 400 ms: whoever waits longer than the outage gives away calls after it.
        let pause = Duration::from_millis(50).saturating_mul(1 << (*failures).min(3));
        sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
    }
}
