//! Answers of before, on the state file. A claim is a process's, and ends with it; within the process, too, one job has it
//! and the others wait.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rusqlite::Connection;

use super::{
    kept::{self, There},
    store::Store,
};
use crate::{
    answers::{Answers, Kept, Recalled},
    id::Id,
    ledger::LedgerError,
};

/// A claim is worth looking at again this often.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What was answered before.
pub struct EmbeddedAnswers {
    store: Arc<Store>,
}

impl EmbeddedAnswers {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[async_trait]
impl Answers for EmbeddedAnswers {
    async fn recall(&self, keys: &[Id], claim_for: Duration) -> Result<Vec<Recalled>, LedgerError> {
        let (shared, keys) = (self.store.shared(), keys.to_vec());
        let asked = keys.clone();
        let there = self.store.read(move |db| peek(db, &asked)).await?;
        if there.iter().all(|there| matches!(there, There::Answer(_))) {
            return there.into_iter().map(recalled).collect();
        }
        let recall = move |db: &Connection| {
            let own = shared.membership.join(db)?;
            look(db, own, &keys, micros(claim_for))
        };
        let there = self.store.write(recall).await?;
        there.into_iter().map(recalled).collect()
    }

    fn keep(&self, key: Id, kept: Kept, ttl: Duration) {
        let Ok(body) = serde_json::to_vec(&kept) else {
            return self.give_up(key);
        };
        self.store.write_unheard(move |db| kept::keep(db, key, &body, micros(ttl)));
    }

    fn give_up(&self, key: Id) {
        let own = self.store.membership().token();
        self.store.write_unheard(move |db| kept::give_up(db, own, key));
    }
}

/// Looks under the keys, and claims none: where all is answered nobody has to write.
fn peek(db: &Connection, keys: &[Id]) -> rusqlite::Result<Vec<There>> {
    keys.iter().map(|key| kept::look(db, *key)).collect()
}

/// Looks under the keys in their order. Behind another one's claim nothing is claimed: what is free there waits with it.
fn look(db: &Connection, own: i64, keys: &[Id], for_us: u64) -> rusqlite::Result<Vec<There>> {
    let mut found = Vec::with_capacity(keys.len());
    let mut behind = None;
    for key in keys {
        let there = match (kept::look(db, *key)?, behind) {
            (There::Nothing, Some(left_us)) => There::Claim(left_us),
            (there, _) => there,
        };
        match there {
            There::Nothing => kept::claim(db, own, *key, for_us)?,
            There::Claim(left_us) => behind = Some(left_us),
            There::Answer(_) => {}
        }
        found.push(there);
    }
    Ok(found)
}

fn recalled(there: There) -> Result<Recalled, LedgerError> {
    Ok(match there {
        There::Answer(body) => {
            let kept = serde_json::from_slice(&body)
                .map_err(|error| LedgerError::Away(format!("a kept answer can't be read: {error}")))?;
            Recalled::Found(kept)
        }
        There::Claim(left_us) => Recalled::Awaited(Duration::from_micros(left_us).min(LOOK_AGAIN)),
        There::Nothing => Recalled::Claimed,
    })
}
