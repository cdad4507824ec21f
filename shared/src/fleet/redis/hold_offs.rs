//! What this process knows of the fleet's hold-offs, without asking.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// More stacks than any fleet has; beyond it, strangers' hold-offs are not remembered.
const MAX_STACKS: usize = 10_000;

/// A hold-off as this process knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// On this process's clock.
    pub(super) until: Instant,
    /// On the server's clock; 0 while the server has not heard of it.
    pub(super) server_us: u64,
}

/// Two ends that are this near are one hold-off, mapped twice.
const SAME: Duration = Duration::from_millis(250);

impl Held {
    /// What holds when both do: the longer one.
    fn joined(self, other: Self) -> Self {
        let (longer, shorter) = if self.until > other.until { (self, other) } else { (other, self) };
        if longer.until - shorter.until < SAME {
            let server_us = longer.server_us.max(shorter.server_us);
            return Self { server_us, ..longer };
        }
        longer
    }
}

/// The hold-offs, and the stacks whose hold-offs matter to this process.
#[derive(Default)]
pub(super) struct HoldOffs {
    stacks: Mutex<HashMap<String, Option<Held>>>,
}

impl HoldOffs {
    /// From now on `stack` matters.
    pub(super) fn watch(&self, stack: &str) {
        let mut stacks = self.lock();
        if !stacks.contains_key(stack) && stacks.len() < MAX_STACKS {
            stacks.insert(stack.to_owned(), None);
        }
    }

    /// The stacks that matter, or that were held.
    pub(super) fn watched(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Takes note of a hold-off. A shorter one never ends a longer one.
    pub(super) fn note(&self, stack: &str, held: Held) {
        let mut stacks = self.lock();
        if let Some(known) = stacks.get_mut(stack) {
            *known = Some(known.map_or(held, |known| known.joined(held)));
        } else if stacks.len() < MAX_STACKS {
            stacks.insert(stack.to_owned(), Some(held));
        }
    }

    /// Somebody ended the hold-off of `stack`.
    pub(super) fn forget(&self, stack: &str) {
        if let Some(known) = self.lock().get_mut(stack) {
            *known = None;
        }
    }

    /// Whether `stack` matters here, and no hold-off of it ended within `since` or is to end.
    pub(super) fn is_quiet(&self, stack: &str, since: Duration) -> bool {
        let held = |held: &Held| held.until + since > Instant::now();
        self.lock().get(stack).is_some_and(|known| !known.as_ref().is_some_and(held))
    }

    /// The hold-off of `stack`, unless it is over.
    pub(super) fn get(&self, stack: &str) -> Option<Held> {
        let held = (*self.lock().get(stack)?)?;
        (held.until > Instant::now()).then_some(held)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Option<Held>>> {
        self.stacks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_hold_off_never_ends_a_longer_one_and_one_that_is_over_is_none() {
        let hold_offs = HoldOffs::default();
        let now = Instant::now();
        let held = |seconds| Held { until: now + Duration::from_secs(seconds), server_us: 7 };
        hold_offs.note("restb", held(60));
        hold_offs.note("restb", held(5));
        assert_eq!(hold_offs.get("restb"), Some(held(60)));
        hold_offs.note("tiliter", held(0));
        assert_eq!(hold_offs.get("tiliter"), None);
    }
}
