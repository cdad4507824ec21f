//! Which answers jobs of this process are about at this moment: of all that want one, one asks the fleet for it, and the others
//! hear of its end at once.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
};

use pixfleet_shared::id::Id;
use tokio::sync::watch;

/// The keys that jobs of this process are about at this moment, so that only one of them asks the fleet for each. Most are of one
/// job only: what others wait on is made when there is another.
#[derive(Debug, Default)]
pub(crate) struct Flights(Mutex<HashMap<Id, Option<watch::Sender<()>>>>);

/// One job's turn at a key, until it is dropped.
pub(crate) struct Flight<'a> {
    flights: &'a Flights,
    key: Id,
}

impl Flights {
    /// The turn at `key`, or what changes when the job that has it is done.
    pub(crate) fn take(&self, key: Id) -> Result<Flight<'_>, watch::Receiver<()>> {
        let mut keys = self.lock();
        match keys.entry(key) {
            Entry::Occupied(mut other) => {
                Err(other.get_mut().get_or_insert_with(|| watch::channel(()).0).subscribe())
            }
            Entry::Vacant(free) => {
                free.insert(None);
                Ok(Flight { flights: self, key })
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Id, Option<watch::Sender<()>>>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        // Whoever waits sees it dropped, once the key is free.
        let over = self.flights.lock().remove(&self.key);
        drop(over);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_job_of_a_process_has_the_turn_and_the_others_hear_of_its_end() {
        let (flights, key) = (Flights::default(), Id::of(&[b"k"]));
        let first = flights.take(key).unwrap_or_else(|_| panic!("it is free"));
        let mut end = flights.take(key).err().expect("it is taken");
        assert!(flights.take(Id::of(&[b"other"])).is_ok());
        drop(first);
        assert!(end.changed().await.is_err(), "it ended");
        assert!(flights.take(key).is_ok());
    }
}
