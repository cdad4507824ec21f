//! Who waits for a slot, and who is next: batches by turns, so that one of which few jobs are in hand does not wait behind
//! another one's many.

use std::collections::{BTreeMap, VecDeque};

use pixfleet_shared::{
    batch::BatchName,
    job::{Job, Priority},
    lanes::{self, Turns},
    limiter::Weight,
};
use tokio::sync::oneshot;

use crate::slots::Granted;

/// The line in which a job waits.
type Line = (Priority, BatchName);

/// A call that is ready to leave.
pub(crate) struct Ask {
    line: Line,
    turn: u64,
    /// What it takes from the limits.
    pub(crate) weight: Weight,
    /// Told when it may leave.
    pub(crate) granted: oneshot::Sender<Granted>,
}

impl Ask {
    /// The call of `job`.
    pub(crate) fn of(job: &Job, weight: Weight, granted: oneshot::Sender<Granted>) -> Self {
        Self { line: (job.priority, job.batch.clone()), turn: lanes::weight(job), weight, granted }
    }
}

/// Calls that wait, each batch's in their order.
#[derive(Default)]
pub(crate) struct Waiting {
    lines: BTreeMap<Line, VecDeque<Ask>>,
    turns: Turns<Line>,
    calls: usize,
}

impl Waiting {
    pub(crate) fn len(&self) -> usize {
        self.calls
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.calls == 0
    }

    pub(crate) fn push(&mut self, ask: Ask) {
        self.lines.entry(ask.line.clone()).or_default().push_back(ask);
        self.calls += 1;
    }

    /// Forgets those that gave up.
    pub(crate) fn sweep(&mut self) {
        self.lines.retain(|_, line| {
            line.retain(|ask| !ask.granted.is_closed());
            !line.is_empty()
        });
        self.calls = self.lines.values().map(VecDeque::len).sum();
    }

    /// The weights of the next `n` calls, in the order in which [`pop`](Self::pop) gives them.
    pub(crate) fn peek(&self, n: usize) -> Vec<Weight> {
        let (mut turns, mut taken) = (self.turns.clone(), BTreeMap::<&Line, usize>::new());
        let mut weights = Vec::with_capacity(n.min(self.calls));
        while weights.len() < n {
            let heads = self.lines.iter().filter_map(|(line, asks)| {
                let ask = asks.get(taken.get(line).copied().unwrap_or(0))?;
                Some((line.clone(), ask.turn))
            });
            let Some((line, asks)) = turns.take(heads).and_then(|line| self.lines.get_key_value(&line))
            else {
                break;
            };
            let at = taken.entry(line).or_default();
            weights.push(asks[*at].weight);
            *at += 1;
        }
        weights
    }

    /// The next call.
    pub(crate) fn pop(&mut self) -> Option<Ask> {
        let heads = self.lines.iter().filter_map(|(line, asks)| Some((line.clone(), asks.front()?.turn)));
        let next = self.turns.take(heads)?;
        let line = self.lines.get_mut(&next)?;
        let ask = line.pop_front();
        if line.is_empty() {
            self.lines.remove(&next);
        }
        self.calls -= usize::from(ask.is_some());
        ask
    }
}

#[cfg(test)]
mod tests {
    use pixfleet_shared::job::{Image, Source};
    use proptest::prelude::*;

    use super::*;

    /// A call that is known by its bytes, and whoever waits for its slot.
    fn ask(batch: &str, weight: u8, bytes: u64) -> (Ask, oneshot::Receiver<Granted>) {
        let image = Image { id: "i".into(), source: Source::Url("https://example.com/".into()) };
        let mut job = Job::new(batch.parse().unwrap(), image, "p".into(), vec!["m".into()]);
        job.weight = weight;
        let (granted, booked) = oneshot::channel();
        (Ask::of(&job, Weight { bytes, ..Weight::of_models(1) }, granted), booked)
    }

    #[test]
    fn a_call_of_another_batch_does_not_wait_behind_all_that_are_in_hand() {
        let (mut waiting, mut booked) = (Waiting::default(), Vec::new());
        for n in 0..20 {
            let (ask, told) = ask("big", 1, n);
            waiting.push(ask);
            booked.push(told);
        }
        let (small, told) = ask("small", 1, 100);
        waiting.push(small);
        booked.push(told);
        let order: Vec<u64> = waiting.peek(3).iter().map(|weight| weight.bytes).collect();
        assert_eq!(order, [0, 100, 1]);
    }

    #[test]
    fn who_gave_up_is_forgotten() {
        let mut waiting = Waiting::default();
        let (one, told) = ask("b", 1, 1);
        let (other, gone) = ask("b", 1, 2);
        waiting.push(one);
        waiting.push(other);
        drop(gone);
        waiting.sweep();
        assert_eq!((waiting.len(), waiting.pop().map(|ask| ask.weight.bytes)), (1, Some(1)));
        assert!(waiting.is_empty());
        drop(told);
    }

    proptest! {
        /// Slots are booked for the calls that `peek` names, so those have to be the ones that get them.
        #[test]
        fn calls_leave_in_the_order_in_which_they_were_announced(
            asks in proptest::collection::vec((0usize..4, 1u8..5), 1..40), pops in 1usize..8,
        ) {
            let (mut waiting, mut booked) = (Waiting::default(), Vec::new());
            for (n, (batch, weight)) in asks.iter().enumerate() {
                let (ask, told) = ask(["a", "b", "c", "d"][*batch], *weight, n as u64);
                waiting.push(ask);
                booked.push(told);
            }
            let mut seen = Vec::new();
            while !waiting.is_empty() {
                let announced: Vec<u64> = waiting.peek(pops).iter().map(|weight| weight.bytes).collect();
                let got: Vec<u64> =
                    (0..announced.len()).filter_map(|_| waiting.pop()).map(|ask| ask.weight.bytes).collect();
                prop_assert_eq!(&announced, &got);
                seen.extend(got);
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..asks.len() as u64).collect::<Vec<_>>());
        }
    }
}
