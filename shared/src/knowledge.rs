//! What one process knows of its stacks without asking: terms, counts of quotas, and what was told last. Both engines keep it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

use crate::{
    jitter::{self, Seen},
    limit::Stack,
    quota::Count,
    terms::{Amendment, Change, Terms},
};

/// More stacks than any fleet has; beyond it the terms of further ones are not remembered, only asked for.
const MAX_STACKS: usize = 10_000;

/// What is known of every stack, and a sign that it has changed.
pub(crate) struct Knowledge {
    stacks: Mutex<HashMap<String, Known>>,
    changed: watch::Sender<u64>,
}

/// What is known of one stack.
#[derive(Clone, Default)]
struct Known {
    terms: Terms,
    /// The stack as it was asked for, and as it is under the terms.
    in_force: Option<(Stack, Arc<Stack>)>,
    counts: BTreeMap<String, Count>,
    measured_us: u64,
    /// When it was last asked for beside the calls.
    asked: Option<Instant>,
}

impl Default for Knowledge {
    fn default() -> Self {
        Self { stacks: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl Knowledge {
    /// The stack as it is in force.
    pub(crate) fn in_force(&self, stack: &Stack) -> Arc<Stack> {
        let mut stacks = self.lock();
        let Some(known) = room_for(&mut stacks, &stack.name) else {
            return Arc::new(Terms::default().applied(stack));
        };
        match &known.in_force {
            Some((asked, in_force)) if asked == stack => in_force.clone(),
            _ => {
                let in_force = Arc::new(known.terms.applied(stack));
                known.in_force = Some((stack.clone(), in_force.clone()));
                in_force
            }
        }
    }

    /// The terms of the stack.
    pub(crate) fn terms(&self, stack: &str) -> Terms {
        self.lock().get(stack).map(|known| known.terms.clone()).unwrap_or_default()
    }

    /// Whether somebody paused the stack.
    pub(crate) fn is_paused(&self, stack: &str) -> bool {
        self.lock().get(stack).is_some_and(|known| known.terms.paused.is_some())
    }

    /// Every stack with terms or counts, to be told to a server that lost them.
    pub(crate) fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Takes note of terms, unless later ones are known. Whether they are news.
    pub(crate) fn adopt(&self, stack: &str, terms: Terms) -> bool {
        let mut stacks = self.lock();
        let Some(known) = room_for(&mut stacks, stack) else { return false };
        if terms.rev <= known.terms.rev {
            return false;
        }
        known.terms = terms;
        known.in_force = None;
        drop(stacks);
        self.announce();
        true
    }

    /// What is remembered of the stack's quotas.
    pub(crate) fn counts(&self, stack: &str) -> BTreeMap<String, Count> {
        self.lock().get(stack).map(|known| known.counts.clone()).unwrap_or_default()
    }

    /// Takes note of what was just told of the stack.
    pub(crate) fn note(
        &self,
        stack: &str,
        counts: impl IntoIterator<Item = (String, Count)>,
        measured_us: u64,
    ) {
        if let Some(known) = room_for(&mut self.lock(), stack) {
            known.counts.extend(counts);
            known.measured_us = measured_us;
        }
    }

    /// The largest jitter that a process of the fleet measured lately, in microseconds.
    pub(crate) fn measured_us(&self, stack: &str) -> Option<u64> {
        self.lock().get(stack).map(|known| known.measured_us).filter(|us| *us > 0)
    }

    /// Whether the stack was not asked for within `every`; from now on it was.
    pub(crate) fn is_due(&self, stack: &str, every: Duration) -> bool {
        let mut stacks = self.lock();
        let Some(known) = room_for(&mut stacks, stack) else { return false };
        let due = known.asked.is_none_or(|asked| asked.elapsed() >= every);
        if due {
            known.asked = Some(Instant::now());
        }
        due
    }

    /// The amendment by which the fleet adapts the jitter of `stack`, and the terms after it, where that is due.
    pub(crate) fn adaptation(
        &self,
        stack: &Stack,
        now_us: u64,
        throttled: bool,
    ) -> Option<(Terms, Amendment)> {
        let terms = self.terms(&stack.name);
        let seen = Seen { measured_us: self.measured_us(&stack.name), throttled, now_us };
        let us = jitter::adapted(stack, &terms, seen)?;
        let at = i64::try_from(now_us).ok().and_then(|us| Timestamp::from_microsecond(us).ok());
        let (by, change) = ("the fleet".to_owned(), Change::Jitter { us });
        let amendment = Amendment { at: at.unwrap_or_default(), by, change };
        Some((terms.amended(&amendment), amendment))
    }

    /// Something changed that whoever waits may want to know.
    pub(crate) fn announce(&self) {
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// Moves with every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.stacks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn room_for<'a>(stacks: &'a mut HashMap<String, Known>, stack: &str) -> Option<&'a mut Known> {
    if !stacks.contains_key(stack) {
        if stacks.len() >= MAX_STACKS {
            return None;
        }
        stacks.insert(stack.to_owned(), Known::default());
    }
    stacks.get_mut(stack)
}
