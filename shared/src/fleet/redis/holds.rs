//! What keeps batches, as this process knows it without asking: read anew at each hint of the fleet, and from time to time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{keys::Keys, servers::Connection, wire::Wire};
use crate::{
    batch::BatchName,
    batches::{Held, Hold},
};

/// Read anew this often while hints may be missed, and while they are heard.
const UNHEARD: Duration = Duration::from_millis(500);
const HEARD: Duration = Duration::from_secs(5);

/// What keeps batches.
#[derive(Default)]
pub(super) struct Holds {
    held: Mutex<HashMap<BatchName, Held>>,
    changes: watch::Sender<u64>,
}

impl Holds {
    /// What keeps a batch.
    pub(super) fn of(&self, batch: &BatchName) -> Option<Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).get(batch).cloned()
    }

    /// In which way a batch is kept.
    pub(super) fn hold(&self, batch: &BatchName) -> Option<Hold> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).get(batch).map(|held| held.hold)
    }

    /// Moves with each change.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Takes note of what keeps a batch.
    pub(super) fn note(&self, batch: &BatchName, held: Option<Held>) {
        let mut known = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match held.clone() {
            Some(held) => known.insert(batch.clone(), held),
            None => known.remove(batch),
        };
        drop(known);
        if before != held {
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    fn replace(&self, held: HashMap<BatchName, Held>) {
        let mut known = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != held {
            *known = held;
            drop(known);
            self.changes.send_modify(|changes| *changes += 1);
        }
    }
}

/// What is stored of holds, by batch.
pub(super) fn read(stored: &HashMap<String, String>) -> HashMap<BatchName, Held> {
    // One of a later release that can't be read is left out.
    let entry =
        |(batch, text): (&String, &String)| Some((batch.parse().ok()?, serde_json::from_str(text).ok()?));
    stored.iter().filter_map(entry).collect()
}

/// Keeps them current, until `stop`.
pub(super) async fn follow(holds: Arc<Holds>, wire: Arc<Wire>, keys: Keys, stop: CancellationToken) {
    let follow = async {
        let mut ask = redis::cmd("HGETALL");
        ask.arg(keys.held());
        loop {
            let ask = &ask;
            let work = move |mut connection: Connection| async move {
                ask.query_async::<HashMap<String, String>>(&mut connection).await
            };
            let stored = wire.link.exchange(work).await;
            if let Ok(stored) = &stored {
                holds.replace(read(stored));
            }
            let pause = if stored.is_ok() && wire.is_listening() { HEARD } else { UNHEARD };
            // Either way it is time to look again.
            let _ = timeout(pause, wire.holds_hint.notified()).await;
        }
    };
    stop.run_until_cancelled(follow).await;
}
