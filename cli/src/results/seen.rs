//! Which results were seen, and how they ended: 17 bytes each, and never more of them than a bound.

use std::collections::HashMap;

use pixfleet_shared::{id::Id, result::Outcome};

/// The ids of the newest results, in two generations: when the young one is full it becomes the old one, and the
/// old one is forgotten. A repetition is noticed as long as fewer than half of the bound came in between.
///
/// Measured: 20 to 40 bytes an id, as the tables double.
pub(crate) struct Seen {
    young: HashMap<[u8; 16], Outcome>,
    old: HashMap<[u8; 16], Outcome>,
    half: usize,
}

/// What an arrival is, compared with what was seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// Never seen.
    New,
    /// Seen with a worse outcome, or another one of no answer: a dead letter was sent again, and this came of it.
    Better(Outcome),
    /// Seen, as good or better: a redelivery.
    Repeated,
}

impl Seen {
    /// Remembers at least half of `bound` and at most `bound` ids.
    pub(crate) fn bounded(bound: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: bound.div_ceil(2).max(1) }
    }

    /// Whether `id` was seen, as far as memory goes.
    pub(crate) fn knows(&self, id: Id) -> bool {
        let key = id.to_bytes();
        self.young.contains_key(&key) || self.old.contains_key(&key)
    }

    /// Notes an arrival. The best outcome of an id wins, whatever the order: ok, then rejected, then the others; of those
    /// the last one.
    pub(crate) fn see(&mut self, id: Id, outcome: Outcome) -> Sight {
        let key = id.to_bytes();
        let known = self.young.get(&key).or_else(|| self.old.get(&key)).copied();
        // Young again with each arrival: what is repeated now is the likeliest to be repeated soon.
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        let better = known.is_none_or(|known| outcome != known && rank(outcome) <= rank(known));
        self.young.insert(key, if better { outcome } else { known.unwrap_or(outcome) });
        match known {
            None => Sight::New,
            Some(known) if better => Sight::Better(known),
            Some(_) => Sight::Repeated,
        }
    }
}

/// As the databases of `--into` have it.
fn rank(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Ok => 0,
        Outcome::Rejected => 1,
        Outcome::Dead | Outcome::Cancelled | Outcome::Ambiguous => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u32) -> Id {
        Id::of(&[b"test", &n.to_be_bytes()])
    }

    #[test]
    fn a_redelivery_is_noticed_and_a_replayed_dead_letter_is_news() {
        let mut seen = Seen::bounded(10);
        assert_eq!(seen.see(id(1), Outcome::Dead), Sight::New);
        assert_eq!(seen.see(id(1), Outcome::Dead), Sight::Repeated);
        assert_eq!(seen.see(id(1), Outcome::Ok), Sight::Better(Outcome::Dead));
        assert_eq!(seen.see(id(1), Outcome::Dead), Sight::Repeated, "an old message does not undo it");
    }

    proptest! {
        #[test]
        fn memory_is_bounded_and_the_newest_half_is_always_known(ids in proptest::collection::vec(0u32..60, 1..400)) {
            let mut seen = Seen::bounded(20);
            for (at, n) in ids.iter().enumerate() {
                let sight = seen.see(id(*n), Outcome::Ok);
                prop_assert!(seen.young.len() + seen.old.len() <= 20);
                let mut between = std::collections::HashSet::new();
                let known = ids[..at].iter().rev().take_while(|m| { between.insert(**m); between.len() <= 10 }).any(|m| m == n);
                prop_assert!(!known || sight == Sight::Repeated, "{n} came again after fewer than 10 others");
            }
        }
    }
}
