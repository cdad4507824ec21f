//! The ledger on Redis: what is known of each call, each batch and each answer, in words that a clerk says.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use jiff::civil::Date;
use redis::{FromRedisValue, Value};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Background,
    clerk::Clerk,
    completion::Completion,
    holds::{self, Holds},
    keys::Keys,
    pool::{Away, Link},
    told::Told,
    wire::Wire,
    word::{LATER, SOON, Word},
};
use crate::{
    id::Id,
    job::Job,
    ledger::{
        Answered, BillLine, Intent, Known, Ledger, LedgerError, Lost, Mark, Resolution, TakenUp, Unanswered,
    },
};

/// What stands in an index is said again so often, because a server may have lost it.
const INDEXED_FOR: Duration = Duration::from_secs(60);
/// Entries of indexes that are remembered as said.
const MOST_INDEXED: usize = 10_000;

/// The ledger, the answers and the batches of one process on Redis.
pub struct RedisLedger {
    pub(super) link: Arc<Link>,
    pub(super) keys: Keys,
    /// This process among all that share the ledger: random.
    pub(super) token: Arc<str>,
    pub(super) ttl: Duration,
    pub(super) clerk: Clerk,
    pub(super) told: Told,
    pub(super) holds: Arc<Holds>,
    pub(super) channel: String,
    pub(super) completion: Completion,
    /// The claims that are this process's, each with the number of its word.
    pub(super) claims: Mutex<HashMap<Id, u64>>,
    numbers: AtomicU64,
    indexed: Mutex<HashMap<Vec<u8>, Instant>>,
    _background: Background,
}

impl RedisLedger {
    pub(super) fn new(
        link: Arc<Link>,
        wire: &Arc<Wire>,
        ttl: Duration,
        stop: CancellationToken,
        background: Background,
    ) -> Self {
        let keys = Keys::new(wire.namespace.clone());
        let token: Arc<str> = format!("{:012x}", rand::random::<u64>() >> 16).into();
        let (completed, heard) = mpsc::unbounded_channel();
        let holds = Arc::new(Holds::default());
        tokio::spawn(holds::follow(holds.clone(), wire.clone(), keys.clone(), stop.clone()));
        Self {
            clerk: Clerk::start(link.clone(), &keys, &token, completed, stop),
            told: Told::default(),
            link,
            keys,
            token,
            ttl,
            holds,
            channel: wire.channel(),
            completion: Completion::new(heard),
            claims: Mutex::default(),
            numbers: AtomicU64::new(0),
            indexed: Mutex::default(),
            _background: background,
        }
    }

    /// Round trips to the server so far, of what is said of calls, answers and batches.
    pub fn trips(&self) -> u64 {
        self.clerk.trips()
    }

    /// A number above all before.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether an entry of an index was not said lately.
    pub(super) fn is_news(&self, entry: &[u8]) -> bool {
        let mut indexed = self.indexed.lock().unwrap_or_else(PoisonError::into_inner);
        if indexed.get(entry).is_some_and(|at| at.elapsed() < INDEXED_FOR) {
            return false;
        }
        if indexed.len() >= MOST_INDEXED {
            indexed.clear();
        }
        indexed.insert(entry.to_vec(), Instant::now());
        true
    }

    /// Which of these processes are gone. Where that is not certain, none is.
    pub(super) async fn gone(&self, tokens: &[String]) -> Result<Vec<bool>, LedgerError> {
        if tokens.is_empty() || !self.clerk.is_certain() {
            return Ok(vec![false; tokens.len()]);
        }
        let ask = |token: &String| Word::plain("EXISTS", &self.keys.process(token));
        let values = self.clerk.ask(tokens.iter().map(ask).collect()).await?;
        values.into_iter().map(|value| Ok(!read::<bool>(value)?)).collect()
    }
}

/// Whether a turn is not over by a job's state, as `state.lua` writes it.
fn stands(state: &str, turn: u64) -> bool {
    let words: Vec<&str> = state.split(' ').collect();
    let number = |place: usize| words.get(place).and_then(|word| word.parse::<u64>().ok());
    let later = matches!(words.get(1), Some(&"O" | &"A")) && number(2) > Some(turn);
    // A job that is done has no turns left.
    state != "0" && number(0).is_none_or(|floor| floor <= turn) && !later
}

/// What the server answered.
pub(super) fn read<T: FromRedisValue>(value: Value) -> Result<T, LedgerError> {
    redis::from_redis_value(value).map_err(|error| LedgerError::Away(format!("an answer of Redis: {error}")))
}

#[async_trait]
impl Ledger for RedisLedger {
    async fn take_up(&self, job: &Job) -> Result<TakenUp, LedgerError> {
        self.take_up_job(job).await
    }

    fn let_go(&self, job: &Job) {
        let word = Word::plain("SREM", &self.keys.hands(&job.batch, job.id)).arg(&*self.token);
        self.clerk.tell(word.of_job(job.id).within(LATER));
    }

    async fn depart(&self, intent: &Intent) -> Result<Known, LedgerError> {
        self.depart_call(intent).await
    }

    fn answered(&self, intent: &Intent, answered: Answered) {
        self.tell_answered(intent, &answered);
    }

    async fn stands(&self, job: &Job) -> Result<bool, LedgerError> {
        if let Some(stands) = self.told.stands(job.id, job.turn()).await {
            return Ok(stands);
        }
        let word = Word::plain("HGET", &self.keys.shard(&job.batch, job.id)).arg(&job.id.to_bytes()[..]);
        let word = word.of_job(job.id);
        let state: Option<String> = read(self.clerk.ask(vec![word]).await?.remove(0))?;
        Ok(state.is_none_or(|state| stands(&state, job.turn())))
    }

    fn lost(&self, intent: &Intent, then: Lost) {
        self.tell_lost(intent, then);
    }

    fn settled(&self, mark: Mark) {
        self.tell_settled(&mark);
    }

    async fn reopen(&self, job: &Job) -> Result<bool, LedgerError> {
        self.reopen_job(job).await
    }

    async fn flush(&self) {
        self.clerk.flush().await;
    }

    async fn days(&self) -> Result<Vec<Date>, LedgerError> {
        self.days_kept().await
    }

    async fn unanswered(&self, day: Date) -> Result<Vec<Unanswered>, LedgerError> {
        self.unanswered_on(day).await
    }

    async fn resolve(&self, day: Date, call: Id, resolution: &Resolution) -> Result<bool, LedgerError> {
        self.resolve_call(day, call, resolution).await
    }

    async fn bill(&self, day: Date) -> Result<Vec<BillLine>, LedgerError> {
        self.bill_of(day).await
    }
}

impl RedisLedger {
    /// Tells a word that has to be stored soon.
    pub(super) fn tell(&self, word: Word) {
        self.clerk.tell(word.within(SOON));
    }
}

impl From<Away> for LedgerError {
    fn from(Away(why): Away) -> Self {
        Self::Away(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_stands_until_it_is_over_or_a_later_one_began() {
        for state in ["1", "0 O 1 f 9 c 2", "1 O 1 f 0 c 2", "1 A 1 c 1,0,0,0,0,0", "1 U f 3"] {
            assert!(stands(state, 1), "{state}");
        }
        for state in ["0", "2", "2 D", "0 O 2 f 9 c 2", "1 A 2 c 1,0,0,0,0,0"] {
            assert!(!stands(state, 1), "{state}");
        }
    }
}
