//! Which connections are of no more use: all that are as old as one that failed.

use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers the connections, and knows which of them are of no more use.
#[derive(Default)]
pub(super) struct Ages {
    next: AtomicU64,
    condemned_below: AtomicU64,
}

impl Ages {
    /// The number of a connection that is begun now.
    pub(super) fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Condemns a connection and all others that were begun by now. What is heard of one that is condemned already is
    /// old news, and condemns no more.
    pub(super) fn condemn(&self, age: u64) {
        if !self.is_condemned(age) {
            self.condemned_below.fetch_max(self.next.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Whether it is of no more use.
    pub(super) fn is_condemned(&self, age: u64) -> bool {
        age < self.condemned_below.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_fails_condemns_all_that_are_as_old_once() {
        let ages = Ages::default();
        let (one, other) = (ages.next(), ages.next());
        ages.condemn(one);
        assert!(ages.is_condemned(one) && ages.is_condemned(other));
        let new = ages.next();
        ages.condemn(other);
        assert!(!ages.is_condemned(new), "old news");
        ages.condemn(new);
        assert!(ages.is_condemned(new));
    }
}
