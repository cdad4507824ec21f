//! Copies of one message: an enqueue, or a move between queues, that was killed may leave two. The ledger keeps processes apart;
//! within this one, whichever copy comes second waits until the first is settled, and the ledger knows it then.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pixfleet_shared::id::Id;

/// The second copy of a job that is in hand comes back after this time.
pub(crate) const COPY_PAUSE: Duration = Duration::from_secs(1);

/// The jobs that this process has in hand.
#[derive(Debug, Default)]
pub(crate) struct InHand(Mutex<HashSet<Id>>);

/// A job in hand, until it is dropped.
#[derive(Debug)]
pub(crate) struct Only<'a> {
    among: &'a InHand,
    job: Id,
}

impl InHand {
    /// Takes a job in hand; none where it is in hand already.
    pub(crate) fn take(&self, job: Id) -> Option<Only<'_>> {
        let news = self.jobs().insert(job);
        // Not made where it is not the only one: dropped, it would let go of the other's.
        news.then(|| Only { among: self, job })
    }

    /// Nothing panics while it is held.
    fn jobs(&self) -> MutexGuard<'_, HashSet<Id>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Only<'_> {
    fn drop(&mut self) {
        self.among.jobs().remove(&self.job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_in_hand_once_until_it_is_let_go() {
        let (hands, one, other) = (InHand::default(), Id::of(&[b"one"]), Id::of(&[b"other"]));
        let first = hands.take(one);
        assert!(first.is_some() && hands.take(one).is_none());
        assert!(hands.take(other).is_some());
        drop(first);
        assert!(hands.take(one).is_some());
    }
}
