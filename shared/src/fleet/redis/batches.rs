//! What is known of each batch, on Redis.

use std::collections::HashMap;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::watch;

use super::{
    calls::{json, parse},
    holds,
    ledger::{RedisLedger, read},
    word::Word,
};
use crate::{
    batch::{BatchName, Tally},
    batches::{Batches, Expected, Held, Hold, Progress},
    ledger::LedgerError,
};

/// Batches that are asked about at once.
const AT_ONCE: usize = 200;

impl RedisLedger {
    /// Says, where it was not said lately, that there is such a batch.
    pub(super) fn index_batch(&self, batch: &BatchName) {
        let batches = self.keys.batches();
        if self.is_news(&[&batches, batch.as_str().as_bytes()].concat()) {
            let now = Timestamp::now().as_millisecond();
            self.tell(Word::plain("ZADD", &batches).arg("NX").arg(now).arg(batch.as_str()));
        }
    }

    fn expecting(&self, expected: &Expected) -> Word {
        Word::script(&self.link.scripts.expect, &[self.keys.batch(&expected.batch)])
            .arg(expected.jobs)
            .arg(expected.results)
            .arg(u8::from(expected.closed))
    }

    /// The batch is heard of, and nothing is said of what to expect.
    fn hearing_of(&self, batch: &BatchName) -> Word {
        Word::script(&self.link.scripts.expect, &[self.keys.batch(batch)]).arg(0).arg(0).arg(0)
    }
}

#[async_trait]
impl Batches for RedisLedger {
    async fn expect(&self, expected: &Expected) -> Result<(), LedgerError> {
        self.index_batch(&expected.batch);
        let closed = Word::plain("SADD", &self.keys.closed()).arg(expected.batch.as_str());
        let mut words = if expected.closed { vec![closed] } else { Vec::new() };
        words.push(self.expecting(expected));
        self.clerk.ask(words).await.map(drop)
    }

    fn held(&self, batch: &BatchName) -> Option<Hold> {
        self.holds.hold(batch)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.holds.changes()
    }

    async fn hold(&self, batch: &BatchName, held: Option<Held>) -> Result<Option<Held>, LedgerError> {
        let mut words = Vec::new();
        if held.is_some() {
            self.index_batch(batch);
            words.push(self.hearing_of(batch));
        }
        let text = held.as_ref().map(json).transpose()?.unwrap_or_default();
        let hold = Word::script(&self.link.scripts.hold, &[self.keys.held()]);
        words.push(hold.arg(batch.as_str()).arg(text).arg(&self.channel).arg(holds::new_name()));
        let answer = self.clerk.ask(words).await?.pop().unwrap_or(redis::Value::Nil);
        let (holds, name): (Option<Vec<u8>>, Option<String>) = read(answer)?;
        self.holds.is_first_named(name);
        let holds: Option<Held> = holds.map(|text| parse(&text)).transpose()?;
        self.holds.note(batch, holds.clone());
        Ok(holds)
    }

    async fn progress(&self, batch: &BatchName) -> Result<Option<Progress>, LedgerError> {
        let known = Word::plain("HGETALL", &self.keys.batch(batch));
        let held = Word::plain("HGET", &self.keys.held()).arg(batch.as_str());
        let mut answers = self.clerk.ask(vec![known, held]).await?;
        let held: Option<Vec<u8>> = read(answers.remove(1))?;
        let held = held.map(|text| parse(&text)).transpose()?;
        Ok(progress_of(batch, &read(answers.remove(0))?, held))
    }

    async fn list(&self) -> Result<Vec<Progress>, LedgerError> {
        let batches = Word::plain("ZRANGE", &self.keys.batches()).arg(0).arg(-1);
        let held = Word::plain("HGETALL", &self.keys.held());
        let mut answers = self.clerk.ask(vec![batches, held]).await?;
        let mut held = holds::read(&read(answers.remove(1))?);
        let batches: Vec<String> = read(answers.remove(0))?;
        let batches: Vec<BatchName> = batches.iter().filter_map(|batch| batch.parse().ok()).collect();
        let mut listed = Vec::new();
        for some in batches.chunks(AT_ONCE) {
            let ask = |batch| Word::plain("HGETALL", &self.keys.batch(batch));
            let answers = self.clerk.ask(some.iter().map(ask).collect()).await?;
            for (batch, known) in some.iter().zip(answers) {
                match progress_of(batch, &read(known)?, held.remove(batch)) {
                    Some(progress) => listed.push(progress),
                    // Its time is over.
                    None => self.tell(Word::plain("ZREM", &self.keys.batches()).arg(batch.as_str())),
                }
            }
        }
        listed.sort_by_key(|progress| std::cmp::Reverse(progress.opened_at));
        Ok(listed)
    }

    async fn complete(&self) -> Progress {
        self.next_complete().await
    }
}

/// What is known of a batch, from the fields of its hash; none where there are none.
pub(super) fn progress_of(
    batch: &BatchName,
    known: &HashMap<String, String>,
    held: Option<Held>,
) -> Option<Progress> {
    let number = |field: &str| known.get(field).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let opened_us = number("opened_at");
    if opened_us == 0 {
        return None;
    }
    Some(Progress {
        batch: batch.clone(),
        jobs: number("jobs"),
        expected: number("expected"),
        closed: number("closed") == 1,
        tally: Tally {
            ok: number("ok"),
            cached: number("cached"),
            rejected: number("rejected"),
            dead: number("dead"),
            cancelled: number("cancelled"),
            ambiguous: number("ambiguous"),
        },
        held,
        opened_at: Timestamp::from_microsecond(opened_us as i64).unwrap_or_default(),
    })
}
