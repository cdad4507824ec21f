//! Waiting to a moment, finer than the runtime's timer.
//!
//! Tokio's timer counts in whole milliseconds and rounds up, so that whoever sleeps with it leaves up to a
//! millisecond late. Here it sleeps to shortly before the moment, and one thread of the process does the rest: it
//! waits on a condition variable, which Linux ends within a tenth of a millisecond. It does not spin before the moment:
//! that takes 60 us off the median, and on a busy machine, where it matters, nothing off the spread.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant as StdInstant},
};

use tokio::{
    sync::oneshot,
    time::{self, Instant},
};

/// So long before its moment a waiter goes over to the thread: what the runtime's timer may be late by, twice.
const HANDOVER: Duration = Duration::from_millis(2);

/// Waits until `at`. Dropping the future gives up the wait.
///
/// Late by the operating system's scheduling, and never early.
pub async fn sleep_until(at: Instant) {
    if at <= Instant::now() {
        // The runtime's timer would round it up to its next millisecond.
        return;
    }
    if let Some(before) = at.checked_sub(HANDOVER) {
        time::sleep_until(before).await;
    }
    let left = at.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return;
    }
    // What is left, and not the moment itself: under a paused clock of the runtime the two clocks differ.
    if let Some(alarm) = Alarm::of_the_process()
        && alarm.after(left).await.is_ok()
        && at <= Instant::now()
    {
        return;
    }
    // No thread could be started, or the moment was not reached: the runtime's timer is the one that is left.
    time::sleep_until(at).await;
}

struct Alarm {
    due: Mutex<BinaryHeap<Reverse<Due>>>,
    /// Told when a waiter came that is due before all others.
    sooner: Condvar,
}

/// A waiter. Given up, it stays until its moment: [`HANDOVER`] at most, so that there are never many.
struct Due {
    at: StdInstant,
    ring: oneshot::Sender<()>,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

impl Alarm {
    /// The one of this process, with its thread. `None` where no thread can be started.
    fn of_the_process() -> Option<&'static Self> {
        static ALARM: Alarm = Alarm { due: Mutex::new(BinaryHeap::new()), sooner: Condvar::new() };
        static STARTED: OnceLock<bool> = OnceLock::new();
        let started = STARTED.get_or_init(|| {
            let thread = thread::Builder::new().name("alarm".to_owned()).spawn(|| ALARM.ring());
            thread.inspect_err(|error| tracing::warn!(%error, "no thread for precise waiting")).is_ok()
        });
        started.then_some(&ALARM)
    }

    /// Rings after `left`.
    fn after(&self, left: Duration) -> oneshot::Receiver<()> {
        let (ring, rung) = oneshot::channel();
        let at = StdInstant::now() + left;
        let mut due = self.due();
        let first = due.peek().is_none_or(|Reverse(next)| at < next.at);
        due.push(Reverse(Due { at, ring }));
        drop(due);
        if first {
            self.sooner.notify_one();
        }
        rung
    }

    /// The thread: rings for whoever is due, and waits for the next.
    fn ring(&self) {
        let mut due = self.due();
        loop {
            let now = StdInstant::now();
            let next = due.peek().map(|Reverse(next)| next.at);
            due = match next {
                None => self.sooner.wait(due).unwrap_or_else(PoisonError::into_inner),
                Some(at) if at > now => {
                    self.sooner.wait_timeout(due, at - now).unwrap_or_else(PoisonError::into_inner).0
                }
                Some(_) => {
                    let rung = due.pop();
                    drop(due);
                    if let Some(Reverse(Due { ring, .. })) = rung {
                        let _ = ring.send(());
                    }
                    self.due()
                }
            };
        }
    }

    fn due(&self) -> MutexGuard<'_, BinaryHeap<Reverse<Due>>> {
        // Nothing panics while it is held.
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream::FuturesUnordered};

    use super::*;

    #[tokio::test]
    async fn nobody_is_woken_before_the_moment_and_everybody_is_woken() {
        let start = Instant::now();
        let moments = [900, 5, 300, 2_500, 2_500, 1, 4_000, 1_999, 2_001].map(Duration::from_micros);
        let mut waiting: FuturesUnordered<_> = moments
            .into_iter()
            .map(|after| async move {
                sleep_until(start + after).await;
                (after, start.elapsed())
            })
            .collect();
        let mut woken = Vec::new();
        while let Some((after, elapsed)) = waiting.next().await {
            assert!(elapsed >= after, "{elapsed:?} for {after:?}");
            woken.push(after);
        }
        assert_eq!(woken.len(), moments.len());
    }

    #[tokio::test]
    async fn a_moment_that_is_over_is_not_waited_for() {
        let past = Instant::now() - Duration::from_secs(1);
        sleep_until(past).await;
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_holds_no_other_up() {
        let start = Instant::now();
        for _ in 0..100 {
            let moment = start + Duration::from_millis(1);
            let mut given_up = Box::pin(sleep_until(moment));
            assert!(futures_util::poll!(&mut given_up).is_pending() || Instant::now() >= moment);
        }
        sleep_until(start + Duration::from_millis(3)).await;
        assert!(start.elapsed() >= Duration::from_millis(3));
    }
}
