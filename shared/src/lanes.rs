//! Whose turn it is: stride scheduling over the lanes that have a job. Pure.
//!
//! A lane moves its pass by `STRIDE / w` when a job of weight w is taken from it, and the lane with the least pass is
//! next. One that had nothing for a while does not save up turns: it joins at the present pass. The weight is that of
//! the job at the lane's head, because batches of several weights may share a lane.

use std::collections::BTreeMap;

use crate::job::{Job, Priority};

const STRIDE: u64 = 1 << 20;

/// The turns of lanes, by their names.
#[derive(Clone, Debug)]
pub struct Turns<Lane> {
    /// Of lanes that are ahead of `now`; the others are at it.
    passes: BTreeMap<Lane, u64>,
    now: u64,
}

/// How often a lane is taken from with this job at its head: for each turn of a bulk job of weight 1, where all wait.
pub fn weight(job: &Job) -> u64 {
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

impl<Lane> Default for Turns<Lane> {
    fn default() -> Self {
        Self { passes: BTreeMap::new(), now: 0 }
    }
}

impl<Lane: Ord + Clone> Turns<Lane> {
    /// Takes the turn of one of the lanes that are `ready`, each with the weight of its head. Of equals the first one.
    pub fn take(&mut self, ready: impl Iterator<Item = (Lane, u64)>) -> Option<Lane> {
        let (next, weight) = ready.min_by_key(|(lane, _)| self.pass(lane))?;
        self.now = self.pass(&next);
        self.passes.retain(|_, pass| *pass > self.now);
        self.passes.insert(next.clone(), self.now + STRIDE / weight.max(1));
        Some(next)
    }

    fn pass(&self, lane: &Lane) -> u64 {
        self.passes.get(lane).copied().unwrap_or(self.now).max(self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shares(weights: &[u64], turns: usize) -> Vec<usize> {
        let (mut all, mut served) = (Turns::default(), vec![0; weights.len()]);
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
        let mut turns = Turns::default();
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
        let mut turns = Turns::default();
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
