//! What was said of paid calls and is not heard to be stored yet. Whoever settles a job waits for it, and needs not ask again.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use tokio::sync::oneshot;

use super::word::Heard;
use crate::id::Id;

/// Turns that are remembered. One that is forgotten costs a question.
const MOST: usize = 10_000;

/// By job: the turn, and whether it stands.
#[derive(Default)]
pub(super) struct Told(Mutex<HashMap<Id, (u64, oneshot::Receiver<bool>)>>);

impl Told {
    /// A word about this turn is said now; it is to be heard so.
    pub(super) fn expect(&self, job: Id, turn: u64) -> Heard {
        let (heard, stands) = oneshot::channel();
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= MOST {
            told.clear();
        }
        told.insert(job, (turn, stands));
        Heard::Told(heard)
    }

    /// What was heard of this turn, once: `None` where nothing was said of it, or nothing will be heard.
    pub(super) async fn stands(&self, job: Id, turn: u64) -> Option<bool> {
        self.take(job, turn)?.await.ok()
    }

    /// Nobody will ask about this turn.
    pub(super) fn forget(&self, job: Id, turn: u64) {
        drop(self.take(job, turn));
    }

    fn take(&self, job: Id, turn: u64) -> Option<oneshot::Receiver<bool>> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.get(&job)?.0 != turn {
            return None;
        }
        told.remove(&job).map(|(_, stands)| stands)
    }
}
