//! What keeps batches, as this process knows it without asking: read anew at each hint of the fleet, and from time to time.
//!
//! A server that lost it is told again. What is cancelled never ends, so where it is missing it was lost; what is paused was
//! lost where all that is stored has another name than before.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{keys::Keys, pool::Away, servers::Connection, wire::Wire};
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
    /// The name of what is stored, as it was read last.
    name: Mutex<Option<String>>,
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

    /// What the server lost of it, by what is stored now.
    fn lost(&self, name: Option<&str>, stored: &HashMap<BatchName, Held>) -> Vec<(BatchName, Held)> {
        let before = self.name.lock().unwrap_or_else(PoisonError::into_inner);
        let all = before.is_some() && before.as_deref() != name;
        let known = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = |(batch, held): &(&BatchName, &Held)| {
            !stored.contains_key(*batch) && (all || held.hold == Hold::Cancelled)
        };
        known.iter().filter(lost).map(|(batch, held)| (batch.clone(), held.clone())).collect()
    }

    /// Takes note of the name of what is stored, where none is known.
    pub(super) fn is_first_named(&self, name: Option<String>) {
        let mut known = self.name.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            *known = name;
        }
    }

    fn is_named(&self, name: Option<String>) {
        *self.name.lock().unwrap_or_else(PoisonError::into_inner) = name;
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

/// A name for what is stored, for a server that has none.
pub(super) fn new_name() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// What is stored of holds, by batch.
pub(super) fn read(stored: &HashMap<String, String>) -> HashMap<BatchName, Held> {
    // One of a later release that can't be read is left out, and so is the name.
    let entry =
        |(batch, text): (&String, &String)| Some((batch.parse().ok()?, serde_json::from_str(text).ok()?));
    stored.iter().filter_map(entry).collect()
}

/// Keeps them current, until `stop`.
pub(super) async fn follow(holds: Arc<Holds>, wire: Arc<Wire>, keys: Keys, stop: CancellationToken) {
    let follow = async {
        loop {
            let read = look(&holds, &wire, &keys).await;
            let pause = if read.is_ok() && wire.is_listening() { HEARD } else { UNHEARD };
            // Either way it is time to look again.
            let _ = timeout(pause, wire.holds_hint.notified()).await;
        }
    };
    stop.run_until_cancelled(follow).await;
}

async fn look(holds: &Holds, wire: &Wire, keys: &Keys) -> Result<(), Away> {
    let mut ask = redis::cmd("HGETALL");
    ask.arg(keys.held());
    let work = move |mut connection: Connection| async move {
        ask.query_async::<HashMap<String, String>>(&mut connection).await
    };
    let mut stored = wire.link.look(work).await?;
    let name = stored.remove("");
    let mut held = read(&stored);
    for (batch, lost) in holds.lost(name.as_deref(), &held) {
        tracing::warn!(%batch, hold = ?lost.hold, "the server lost what keeps a batch: it is told again");
        // What keeps a batch is always JSON.
        let text = serde_json::to_string(&lost).unwrap_or_default();
        let mut script = wire.link.scripts.hold.script.key(keys.held());
        script.arg(batch.as_str()).arg(text).arg(wire.channel()).arg(new_name());
        let work = move |mut connection: Connection| async move {
            script.invoke_async::<redis::Value>(&mut connection).await
        };
        wire.link.exchange(work).await?;
        held.insert(batch, lost);
    }
    holds.is_named(name);
    holds.replace(held);
    Ok(())
}
