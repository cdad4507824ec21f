//! A look through the dead letters of the state file. It holds nothing: what is ended is ended in a transaction of its own.

use std::{collections::VecDeque, sync::Arc};

use async_trait::async_trait;
use rusqlite::Connection;

use super::{
    deaths,
    jobs::{self, Row},
    letters::{self, Letter},
    store::{Shared, Store, tell},
};
use crate::{
    job::Job,
    queue::{Buried, DeadLetter, DeadLetters, QueueError},
};

/// Letters that are read at once.
const PAGE: usize = 64;

pub(super) struct EmbeddedDeadLetters {
    store: Arc<Store>,
    ahead: VecDeque<Letter>,
    /// The last one that was read.
    read_to: i64,
    /// The last one that there was when the look began.
    last: i64,
}

/// Begins a look.
pub(super) async fn open(store: Arc<Store>) -> Result<EmbeddedDeadLetters, QueueError> {
    let last = store.read(letters::last).await?;
    Ok(EmbeddedDeadLetters { store, ahead: VecDeque::new(), read_to: 0, last })
}

#[async_trait]
impl DeadLetters for EmbeddedDeadLetters {
    async fn next(&mut self) -> Result<Option<DeadLetter>, QueueError> {
        if self.ahead.is_empty() && self.read_to < self.last {
            let (after, last) = (self.read_to, self.last);
            let page = self.store.read(move |db| letters::page(db, after, last, PAGE)).await?;
            self.read_to = page.last().map_or(last, |letter| letter.seq);
            self.ahead = page.into();
        }
        Ok(self.ahead.pop_front().map(|Letter { seq, death, message }| {
            let buried = EmbeddedBuried { store: self.store.clone(), seq };
            DeadLetter::new(death, Job::from_message(&message).map_err(|_| message), Box::new(buried))
        }))
    }

    async fn close(self: Box<Self>) {}
}

struct EmbeddedBuried {
    store: Arc<Store>,
    seq: i64,
}

#[async_trait]
impl Buried for EmbeddedBuried {
    /// All of it or nothing: a letter that somebody else has ended meanwhile is not ended again, and nothing is put back.
    async fn end(self: Box<Self>, replay: Option<Job>) -> Result<(), QueueError> {
        let seq = self.seq;
        let Some(job) = replay else {
            let shared = self.store.shared();
            return Ok(self.store.write(move |db| throw_away(db, &shared, seq)).await?);
        };
        let row = Row::of(&job)?;
        let end = move |db: &Connection| {
            if letters::take(db, seq)?.is_none() {
                return Ok(());
            }
            // Mostly it was said before; a replay that nobody announced must find its turn free all the same.
            deaths::open_again(db, &job)?;
            jobs::put_back(db, &row)
        };
        self.store.write(end).await?;
        tell(&self.store.news().jobs);
        Ok(())
    }
}

fn throw_away(db: &Connection, shared: &Shared, seq: i64) -> rusqlite::Result<()> {
    let Some(Ok(job)) = letters::take(db, seq)?.map(|message| Job::from_message(&message)) else {
        return Ok(());
    };
    let complete = deaths::thrown_away(db, shared.membership.token(), &job)?;
    complete.into_iter().for_each(|batch| shared.completed.push(batch));
    Ok(())
}
