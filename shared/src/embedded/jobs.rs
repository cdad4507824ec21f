//! Every statement about jobs: put, settle, give back. Each runs within a transaction of its caller's.

use rusqlite::{Connection, OptionalExtension, params};

use super::{counts, log::Entry, process::now_us};
use crate::{
    id::Id,
    job::{Job, Priority},
    queue::{QueueError, Reason},
};

const READY: i64 = 0;
const LENT: i64 = 1;
const WAITING: i64 = 2;

/// A job as it is stored.
#[derive(Clone, Debug)]
pub struct Row {
    id: [u8; 16],
    provider: String,
    priority: i64,
    lane: i64,
    weight: i64,
    batch: String,
    models: i64,
    message: Vec<u8>,
}

impl Row {
    /// The row of a job.
    ///
    /// # Errors
    /// [`QueueError::Unsendable`] for a job that is too large to be read again.
    pub fn of(job: &Job) -> Result<Self, QueueError> {
        let message =
            job.to_message().map_err(|error| QueueError::Unsendable(format!("job {}: {error}", job.id)))?;
        Ok(Self {
            id: job.id.to_bytes(),
            provider: job.provider.clone(),
            priority: rank(job.priority),
            lane: job.lane.into(),
            weight: job.weight().into(),
            batch: job.batch.to_string(),
            models: job.models.len() as i64,
            message,
        })
    }
}

/// What becomes of a lent job's row.
#[derive(Debug)]
pub(super) enum After {
    /// It is gone; its batch has a job less to wait for.
    Done(String),
    /// It comes back as this row, after this many microseconds.
    Again(Row, u64),
    Dead(Row, Reason),
}

/// How a settlement was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    Settled,
    /// The lease had ended, and another process has the job, or has settled it: this one changed nothing.
    TooLate,
}

/// Puts jobs at the end of their lanes, and counts them. For whoever has to put something else down with them.
///
/// # Errors
/// What SQLite says.
pub fn put(db: &Connection, rows: &[Row]) -> rusqlite::Result<()> {
    let mut insert = db.prepare_cached(
        "INSERT INTO jobs (id, provider, priority, lane, state, due_us, dropped, job, weight)
         VALUES (?1, ?2, ?3, ?4, 0, 0, 0, ?5, ?6)",
    )?;
    for row in rows {
        insert.execute(params![row.id, row.provider, row.priority, row.lane, row.message, row.weight])?;
    }
    // One batch follows the other, if there is more than one.
    for group in rows.chunk_by(|one, next| one.batch == next.batch) {
        let results = group.iter().map(|row| row.models).sum();
        counts::put(db, &group[0].batch, group.len() as i64, results)?;
    }
    Ok(())
}

/// Settles a lent job, all at once: its results in the log, the ledger, the counts, and what becomes of it.
///
/// Where the lease had ended, the first answer still wins: it is paid for. Anything else is left to whoever has the
/// job now.
pub(super) fn settle(
    db: &Connection,
    holder: i64,
    seq: i64,
    job: Id,
    entries: &[Entry],
    after: &After,
) -> rusqlite::Result<Met> {
    let held: Option<Option<i64>> = db
        .prepare_cached("SELECT holder FROM jobs WHERE seq = ?1 AND id = ?2")?
        .query_row(params![seq, job.to_bytes()], |row| row.get(0))
        .optional()?;
    let ours = held == Some(Some(holder));
    if !ours && (held.is_none() || !matches!(after, After::Done(_))) {
        return Ok(Met::TooLate);
    }
    super::log::append(db, entries)?;
    match after {
        After::Done(batch) => {
            remove(db, seq)?;
            super::ledger::mark(db, job)?;
            counts::ended(db, batch)?;
        }
        After::Again(row, after_us) => again(db, seq, row, *after_us)?,
        After::Dead(row, reason) => bury(db, seq, row, *reason)?,
    }
    Ok(Met::Settled)
}

fn remove(db: &Connection, seq: i64) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM jobs WHERE seq = ?1")?.execute([seq]).map(drop)
}

fn again(db: &Connection, seq: i64, row: &Row, after_us: u64) -> rusqlite::Result<()> {
    let (state, due_us) = if after_us == 0 { (READY, 0) } else { (WAITING, (now_us() + after_us) as i64) };
    db.prepare_cached("UPDATE jobs SET state = ?2, holder = NULL, due_us = ?3, job = ?4 WHERE seq = ?1")?
        .execute(params![seq, state, due_us, row.message])
        .map(drop)
}

fn bury(db: &Connection, seq: i64, row: &Row, reason: Reason) -> rusqlite::Result<()> {
    remove(db, seq)?;
    db.prepare_cached("INSERT INTO dead (at_us, batch, reason, job) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![now_us() as i64, row.batch, reason.as_str(), row.message])?;
    counts::buried(db, &row.batch)
}

/// Gives back jobs that were lent and not worked on: they keep their places.
pub(super) fn give_back(db: &Connection, holder: i64, seqs: &[i64]) -> rusqlite::Result<()> {
    let mut update = db.prepare_cached(
        "UPDATE jobs SET state = 0, holder = NULL WHERE seq = ?1 AND state = ?2 AND holder = ?3",
    )?;
    seqs.iter().try_for_each(|seq| update.execute(params![seq, LENT, holder]).map(drop))
}

/// Gives back a job that its worker dropped unsettled, and returns how often that happened to it.
pub(super) fn dropped(db: &Connection, holder: i64, seq: i64) -> rusqlite::Result<Option<u32>> {
    db.prepare_cached(
        "UPDATE jobs SET state = 0, holder = NULL, dropped = dropped + 1
         WHERE seq = ?1 AND state = 1 AND holder = ?2 RETURNING dropped",
    )?
    .query_row(params![seq, holder], |row| row.get(0))
    .optional()
}

/// Takes a job of nobody's out of the queue, so that the caller can bury it.
pub(super) fn bury_ready(
    db: &Connection,
    seq: i64,
    row: &Row,
    entries: &[Entry],
    reason: Reason,
) -> rusqlite::Result<()> {
    super::log::append(db, entries)?;
    bury(db, seq, row, reason)
}

/// A priority as it is stored.
pub(super) fn rank(priority: Priority) -> i64 {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Bulk => 2,
    }
}
