//! What was answered before, on Redis: an answer or a claim under one key.

use std::{
    collections::HashMap,
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use redis::Value;

use super::{
    calls::{json, parse},
    ledger::{RedisLedger, read},
    word::{Unheard, Word},
};
use crate::{
    answers::{Answers, Kept, Recalled},
    id::Id,
    ledger::LedgerError,
};

/// What another one has the claim on is looked for again after this time.
const AWAITED: Duration = Duration::from_millis(150);

/// What is there under a key, before it is known whether the process of a claim lives.
enum There {
    Kept(Box<Kept>),
    Claimed,
    Awaited(Vec<u8>),
}

/// Claims that nobody heard of are given up when it is dropped.
struct Unsaid<'a> {
    ledger: &'a RedisLedger,
    number: u64,
    keys: &'a [Id],
}

impl Drop for Unsaid<'_> {
    fn drop(&mut self) {
        self.keys.iter().for_each(|key| self.ledger.tell_given_up(*key, self.number));
    }
}

impl RedisLedger {
    fn claim(&self, number: u64) -> String {
        format!("c{}.{number}", self.token)
    }

    fn claims(&self) -> MutexGuard<'_, HashMap<Id, u64>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_given_up(&self, key: Id, number: u64) {
        let word = Word::script(&self.link.scripts.give_up, &[self.keys.answer(key)]);
        self.tell(word.arg(self.claim(number)));
    }

    /// Claims what is neither kept nor claimed.
    fn claiming(&self, key: Id, number: u64, claim_for: Duration) -> Word {
        let word = Word::plain("SET", &self.keys.answer(key)).arg(self.claim(number));
        word.arg("NX").arg("GET").arg("PX").arg(millis(claim_for))
    }

    /// Claims what is claimed by a process that is gone.
    fn taking_over(&self, key: Id, number: u64, claim_for: Duration, gone: &[u8]) -> Word {
        let word = Word::script(&self.link.scripts.take_over, &[self.keys.answer(key)]);
        word.arg(self.claim(number)).arg(millis(claim_for)).arg(gone)
    }

    /// Takes over the claims of processes that are gone.
    async fn take_over(
        &self,
        keys: &[Id],
        there: &mut [There],
        number: u64,
        claim_for: Duration,
    ) -> Result<(), LedgerError> {
        let mut claims: Vec<(usize, Vec<u8>, String)> = Vec::new();
        for (at, there) in there.iter().enumerate() {
            if let There::Awaited(claim) = there
                && let Some(token) = token_of(claim).filter(|token| **token != *self.token)
            {
                claims.push((at, claim.clone(), token));
            }
        }
        let tokens: Vec<String> = claims.iter().map(|(.., token)| token.clone()).collect();
        let gone = self.gone(&tokens).await?;
        claims = claims.into_iter().zip(gone).filter(|(_, gone)| *gone).map(|(claim, _)| claim).collect();
        if claims.is_empty() {
            return Ok(());
        }
        let ask =
            |(at, claim, _): &(usize, Vec<u8>, String)| self.taking_over(keys[*at], number, claim_for, claim);
        let answers = self.clerk.ask(claims.iter().map(ask).collect()).await?;
        for ((at, ..), answer) in claims.into_iter().zip(answers) {
            there[at] = there_of(answer)?;
        }
        Ok(())
    }
}

#[async_trait]
impl Answers for RedisLedger {
    async fn recall(&self, keys: &[Id], claim_for: Duration) -> Result<Vec<Recalled>, LedgerError> {
        let number = self.number();
        let mut unsaid = Unsaid { ledger: self, number, keys };
        let ask = |key: &Id| self.claiming(*key, number, claim_for);
        let answers = self.clerk.ask_and_know(keys.iter().map(ask).collect()).await;
        if matches!(answers, Err(Unheard { left: false, .. })) {
            unsaid.keys = &[];
        }
        let answers = answers.map_err(|Unheard { why, .. }| LedgerError::Away(why))?;
        let mut there = answers.into_iter().map(there_of).collect::<Result<Vec<_>, _>>()?;
        self.take_over(keys, &mut there, number, claim_for).await?;
        unsaid.keys = &[];
        let own = self.claim(number);
        let mut is_behind = false;
        let recalled = keys.iter().zip(there).map(|(key, there)| match there {
            There::Kept(kept) => Recalled::Found(kept),
            // A key that is given twice finds its own claim.
            There::Awaited(claim) if claim != own.as_bytes() => {
                is_behind = true;
                Recalled::Awaited(AWAITED)
            }
            There::Claimed | There::Awaited(_) if is_behind => {
                self.tell_given_up(*key, number);
                Recalled::Awaited(AWAITED)
            }
            There::Claimed | There::Awaited(_) => {
                self.claims().insert(*key, number);
                Recalled::Claimed
            }
        });
        Ok(recalled.collect())
    }

    fn keep(&self, key: Id, kept: Kept, ttl: Duration) {
        self.claims().remove(&key);
        let text = match json(&kept) {
            Ok(text) => text,
            Err(error) => return tracing::error!(%error, "an answer can't be kept"),
        };
        let word = Word::plain("SET", &self.keys.answer(key)).arg(format!("k{text}"));
        self.tell(word.arg("PX").arg(millis(ttl)));
    }

    fn give_up(&self, key: Id) {
        let claim = self.claims().remove(&key);
        if let Some(number) = claim {
            self.tell_given_up(key, number);
        }
    }
}

fn token_of(claim: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(claim).ok()?.strip_prefix('c')?;
    text.split_once('.').map(|(token, _)| token.to_owned())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// What was there before.
fn there_of(answer: Value) -> Result<There, LedgerError> {
    let Some(said) = read::<Option<Vec<u8>>>(answer)? else { return Ok(There::Claimed) };
    Ok(match said.split_first() {
        Some((b'k', kept)) => There::Kept(parse(kept)?),
        _ => There::Awaited(said),
    })
}
