//! Which lane is next: stride scheduling over those that have a job. Pure.
//!
//! A lane of weight w moves its pass by `STRIDE / w` when it is taken from, and the lane with the least pass is
//! next. One that had nothing for a while does not save up turns: it joins at the present pass.

use crate::job::Priority;

const STRIDE: u64 = 1 << 20;

/// The turns of every lane.
#[derive(Debug)]
pub(crate) struct Turns {
    passes: Vec<u64>,
    strides: Vec<u64>,
    now: u64,
}

/// Jobs of this priority that are taken for each bulk job, where all wait.
pub(crate) fn weight(priority: Priority) -> u64 {
    match priority {
        Priority::High => 8,
        Priority::Normal => 4,
        Priority::Bulk => 1,
    }
}

impl Turns {
    /// Turns for lanes of these weights.
    pub(crate) fn new(weights: impl IntoIterator<Item = u64>) -> Self {
        let strides: Vec<u64> = weights.into_iter().map(|weight| STRIDE / weight.max(1)).collect();
        Self { passes: vec![0; strides.len()], strides, now: 0 }
    }

    /// Takes the turn of one of the lanes that are `ready`.
    pub(crate) fn take(&mut self, ready: impl Iterator<Item = usize>) -> Option<usize> {
        let next = ready.min_by_key(|lane| self.passes[*lane].max(self.now))?;
        self.now = self.passes[next].max(self.now);
        self.passes[next] = self.now + self.strides[next];
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lanes_that_always_have_jobs_are_served_by_weight() {
        let mut turns = Turns::new([8, 4, 1]);
        let mut served = [0; 3];
        for _ in 0..1300 {
            served[turns.take(0..3).unwrap()] += 1;
        }
        for (served, fair) in served.into_iter().zip([800_i32, 400, 100]) {
            assert!((served - fair).abs() <= 2, "{served} of {fair}");
        }
    }

    #[test]
    fn a_lane_that_was_idle_gets_its_share_not_its_arrears() {
        let mut turns = Turns::new([1, 1]);
        for _ in 0..1000 {
            turns.take(std::iter::once(0));
        }
        let served = (0..100).filter(|_| turns.take(0..2) == Some(1)).count();
        assert!((49..=51).contains(&served), "{served}");
    }

    proptest! {
        #[test]
        fn whoever_is_ready_is_served_within_one_round(weights in proptest::collection::vec(1u64..10, 1..12)) {
            let mut turns = Turns::new(weights.iter().copied());
            let round: u64 = weights.iter().sum::<u64>() * 2 + weights.len() as u64;
            let served: std::collections::BTreeSet<usize> =
                (0..round).filter_map(|_| turns.take(0..weights.len())).collect();
            prop_assert_eq!(served.len(), weights.len());
        }
    }
}
