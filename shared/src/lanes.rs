//! Which lane is next: stride scheduling over those that have a job. Pure.
//!
//! A lane moves its pass by `STRIDE / w` when a job of weight w is taken from it, and the lane with the least pass is
//! next. One that had nothing for a while does not save up turns: it joins at the present pass. The weight is that of
//! the job at the lane's head, because batches of several weights may share a lane.

use crate::job::{Job, Priority};

const STRIDE: u64 = 1 << 20;

/// The turns of every lane.
#[derive(Debug)]
pub(crate) struct Turns {
    passes: Vec<u64>,
    now: u64,
}

/// How often a lane is taken from with this job at its head: for each turn of a bulk job of weight 1, where all wait.
pub(crate) fn weight(job: &Job) -> u64 {
    weight_of(job.priority, job.weight())
}

/// [`weight`] of a job of this class, and of this weight among its own.
pub(crate) fn weight_of(priority: Priority, weight: u8) -> u64 {
    let class = match priority {
        Priority::High => 8,
        Priority::Normal => 4,
        Priority::Bulk => 1,
    };
    class * u64::from(weight)
}

impl Turns {
    /// Turns for so many lanes.
    pub(crate) fn new(lanes: usize) -> Self {
        Self { passes: vec![0; lanes], now: 0 }
    }

    /// Takes the turn of one of the lanes that are `ready`, each with the weight of its head.
    pub(crate) fn take(&mut self, ready: impl Iterator<Item = (usize, u64)>) -> Option<usize> {
        let (next, weight) = ready.min_by_key(|(lane, _)| self.passes[*lane].max(self.now))?;
        self.now = self.passes[next].max(self.now);
        self.passes[next] = self.now + STRIDE / weight.max(1);
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shares(weights: &[u64], turns: usize) -> Vec<usize> {
        let (mut all, mut served) = (Turns::new(weights.len()), vec![0; weights.len()]);
        for _ in 0..turns {
            served[all.take(weights.iter().copied().enumerate()).unwrap()] += 1;
        }
        served
    }

    #[test]
    fn lanes_that_always_have_jobs_are_served_by_weight() {
        let classes = [Priority::High, Priority::Normal, Priority::Bulk].map(|class| weight_of(class, 1));
        for (served, fair) in shares(&classes, 1300).into_iter().zip([800_usize, 400, 100]) {
            assert!(served.abs_diff(fair) <= 2, "{served} of {fair}");
        }
    }

    #[test]
    fn a_batch_of_weight_three_has_three_turns_for_each_of_one_of_its_class() {
        let weights = [3, 1].map(|weight| weight_of(Priority::Normal, weight));
        assert_eq!(shares(&weights, 400), [300, 100]);
    }

    #[test]
    fn a_lane_is_served_by_the_weight_of_the_job_at_its_head() {
        let mut turns = Turns::new(2);
        let mut served = [0; 2];
        // The first hundred jobs of lane 0 are of a batch of weight 9, the others of one of weight 1.
        while served[0] < 100 {
            served[turns.take([(0, 9), (1, 1)].into_iter()).unwrap()] += 1;
        }
        assert!(served[1] <= 12, "{served:?}");
        let before = served;
        for _ in 0..100 {
            served[turns.take([(0, 1), (1, 1)].into_iter()).unwrap()] += 1;
        }
        assert!((49..=51).contains(&(served[0] - before[0])), "{before:?} {served:?}");
    }

    #[test]
    fn a_lane_that_was_idle_gets_its_share_not_its_arrears() {
        let mut turns = Turns::new(2);
        for _ in 0..1000 {
            turns.take(std::iter::once((0, 1)));
        }
        let served = (0..100).filter(|_| turns.take([(0, 1), (1, 1)].into_iter()) == Some(1)).count();
        assert!((49..=51).contains(&served), "{served}");
    }

    proptest! {
        #[test]
        fn whoever_is_ready_is_served_within_one_round(weights in proptest::collection::vec(1u64..10, 1..12)) {
            let round = usize::try_from(weights.iter().sum::<u64>()).unwrap() * 2 + weights.len();
            prop_assert!(shares(&weights, round).into_iter().all(|served| served > 0));
        }
    }
}
