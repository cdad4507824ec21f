//! Jobs that this process has in hand. After a lost channel the queue lends a job again while its first delivery is still
//! worked on, and may lend it to the same process: the second one waits here, where it is told at once when the first is
//! done, and also where the ledger is away or has forgotten.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pixfleet_shared::id::Id;
use tokio::sync::{Mutex as Queue, OwnedMutexGuard};

/// One turn at a time for each job.
#[derive(Default)]
pub(crate) struct InTurn {
    turns: Mutex<HashMap<Id, Arc<Queue<()>>>>,
}

/// A job in hand; dropped, the next delivery of the same job has its turn.
pub(crate) struct Turn<'a> {
    turns: &'a InTurn,
    job: Id,
    turn: Option<OwnedMutexGuard<()>>,
}

impl InTurn {
    /// Takes a job in hand, once every earlier delivery of it is done with. Cancel-safe.
    pub(crate) async fn take(&self, job: Id) -> Turn<'_> {
        let turn = self.turns().entry(job).or_default().clone();
        // Made first: whoever stops to wait lets go of the job, too.
        let mut taken = Turn { turns: self, job, turn: None };
        taken.turn = Some(turn.lock_owned().await);
        taken
    }

    fn turns(&self) -> MutexGuard<'_, HashMap<Id, Arc<Queue<()>>>> {
        // Nothing panics while it is held.
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turn = None;
        let mut turns = self.turns.turns();
        if turns.get(&self.job).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            turns.remove(&self.job);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_job_that_is_in_hand_is_waited_for_and_nothing_of_it_is_kept() {
        let (turns, job, other) = (InTurn::default(), Id::of(&[b"job"]), Id::of(&[b"other"]));
        let first = turns.take(job).await;
        assert!(turns.take(job).now_or_never().is_none(), "twice in hand");
        assert!(turns.take(other).now_or_never().is_some(), "another job waits for it");
        let mut second = Box::pin(turns.take(job));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        drop(second.await);
        assert!(turns.turns().is_empty());
    }
}
