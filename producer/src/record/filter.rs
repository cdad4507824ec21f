//! A Bloom filter of fixed size: most ids were never seen, and it says so without a look at the table.

use std::fmt;

use pixfleet_shared::id::Id;

/// 4 MiB: below one false alarm in a hundred up to three million ids; beyond, more looks at the table.
const BITS: usize = 32 * 1024 * 1024;
/// Bits set for each id.
const PROBES: usize = 5;

/// The ids that the table may hold.
pub(super) struct Filter(Box<[u64]>);

impl Filter {
    pub(super) fn new() -> Self {
        Self(vec![0; BITS / 64].into_boxed_slice())
    }

    pub(super) fn insert(&mut self, id: Id) {
        for bit in bits(id) {
            self.0[bit / 64] |= 1 << (bit % 64);
        }
    }

    pub(super) fn may_contain(&self, id: Id) -> bool {
        bits(id).all(|bit| self.0[bit / 64] & (1 << (bit % 64)) != 0)
    }
}

/// An id is a hash already: its own bits are the probes, 25 apart and 25 long.
fn bits(id: Id) -> impl Iterator<Item = usize> {
    let hash = u128::from_be_bytes(id.to_bytes());
    (0..PROBES).map(move |probe| (hash >> (probe * 25)) as usize % BITS)
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Filter")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> Id {
        Id::of(&[b"test", &n.to_be_bytes()])
    }

    #[test]
    fn every_id_put_in_is_found_and_few_others_are() {
        let mut filter = Filter::new();
        (0..200_000).for_each(|n| filter.insert(id(n)));
        assert!((0..200_000).all(|n| filter.may_contain(id(n))));
        let mistaken = (200_000..300_000).filter(|n| filter.may_contain(id(*n))).count();
        assert!(mistaken < 100, "{mistaken} of 100000");
    }
}
