//! Every statement about jobs: put, lend, settle, give back. Each runs within a transaction of its caller's.

use rusqlite::{Connection, OptionalExtension, params};

use super::{counts, log::Entry, process::now_us};
use crate::{
    id::Id,
    job::{Job, Priority},
    lanes::{Turns, weight},
    queue::{QueueError, Reason},
};

/// A batch keeps to one of these queues of its priority.
pub(super) const LANES: u8 = 4;
/// Lanes that another version, or the fleet, may have given to a job.
const MOST_LANES: u8 = 16;
/// A lane with more jobs than this is full, and no lane is fuller.
const COUNTED: i64 = 100_000;

const READY: i64 = 0;
const LENT: i64 = 1;
const WAITING: i64 = 2;

/// A job as it is stored.
#[derive(Clone, Debug)]
pub struct Row {
    id: [u8; 16],
    priority: i64,
    lane: i64,
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
            priority: rank(job.priority),
            lane: job.lane.into(),
            batch: job.batch.to_string(),
            models: job.models.len() as i64,
            message,
        })
    }
}

/// A job that is lent.
#[derive(Debug)]
pub(super) struct Lent {
    pub(super) seq: i64,
    pub(super) message: Vec<u8>,
}

/// What a lending found.
#[derive(Debug, Default)]
pub(super) struct Lending {
    pub(super) lent: Vec<Lent>,
    /// When the next waiting job is ready, if one waits.
    pub(super) next_due_us: Option<u64>,
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
        "INSERT INTO jobs (id, priority, lane, state, due_us, dropped, job) VALUES (?1, ?2, ?3, 0, 0, 0, ?4)",
    )?;
    for row in rows {
        insert.execute(params![row.id, row.priority, row.lane, row.message])?;
    }
    // One batch follows the other, if there is more than one.
    for group in rows.chunk_by(|one, next| one.batch == next.batch) {
        let results = group.iter().map(|row| row.models).sum();
        counts::put(db, &group[0].batch, group.len() as i64, results)?;
    }
    Ok(())
}

/// The lane of this priority with the fewest ready jobs. `chance` decides between equals.
pub(super) fn emptiest(db: &Connection, priority: Priority, chance: &[u32]) -> rusqlite::Result<u8> {
    let mut query = db.prepare_cached(
        "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 0 AND priority = ?1 AND lane = ?2 LIMIT ?3)",
    )?;
    let mut depths = Vec::with_capacity(LANES.into());
    for (lane, chance) in (0..LANES).zip(chance) {
        let depth: i64 = query.query_row(params![rank(priority), lane, COUNTED], |row| row.get(0))?;
        depths.push((depth, *chance, lane));
    }
    Ok(depths.into_iter().min().map_or(0, |(_, _, lane)| lane))
}

/// Whether a job is ready, or has become so.
pub(super) fn any_ready(db: &Connection) -> rusqlite::Result<bool> {
    let query = "SELECT EXISTS (SELECT 1 FROM jobs WHERE state = 0)
                     OR EXISTS (SELECT 1 FROM jobs WHERE state = 2 AND due_us <= ?1)";
    db.prepare_cached(query)?.query_row([now_us() as i64], |row| row.get(0))
}

/// Turns for every lane that there can be.
pub(super) fn turns() -> Turns {
    Turns::new(every_lane().map(|(priority, _)| weight(priority)))
}

fn every_lane() -> impl Iterator<Item = (Priority, u8)> {
    Priority::ALL.into_iter().flat_map(|priority| (0..MOST_LANES).map(move |lane| (priority, lane)))
}

/// Lends up to `most` jobs to the process `holder`, the lanes by weight, each in its order.
pub(super) fn lend(
    db: &Connection,
    holder: i64,
    turns: &mut Turns,
    most: usize,
) -> rusqlite::Result<Lending> {
    db.prepare_cached("UPDATE jobs SET state = 0 WHERE state = 2 AND due_us <= ?1")?
        .execute([now_us() as i64])?;
    let mut lanes = heads(db, most)?;
    let mut take =
        db.prepare_cached("UPDATE jobs SET state = 1, holder = ?2 WHERE seq = ?1 RETURNING job")?;
    let mut lending = Lending::default();
    while lending.lent.len() < most {
        let ready = lanes.iter().enumerate().filter(|(_, seqs)| !seqs.is_empty()).map(|(lane, _)| lane);
        let Some(seq) = turns.take(ready).and_then(|lane| lanes[lane].pop()) else { break };
        let message = take.query_row(params![seq, holder], |row| row.get(0))?;
        lending.lent.push(Lent { seq, message });
    }
    if lending.lent.len() < most {
        let due: Option<i64> = db
            .prepare_cached("SELECT min(due_us) FROM jobs WHERE state = 2")?
            .query_row([], |row| row.get(0))?;
        lending.next_due_us = due.map(i64::unsigned_abs);
    }
    Ok(lending)
}

/// The first ready jobs of each lane, the very first last.
fn heads(db: &Connection, most: usize) -> rusqlite::Result<Vec<Vec<i64>>> {
    let mut query = db.prepare_cached(
        "SELECT seq FROM jobs WHERE state = 0 AND priority = ?1 AND lane = ?2 ORDER BY seq LIMIT ?3",
    )?;
    let mut lanes = Vec::new();
    for (priority, lane) in every_lane() {
        let seqs = query.query_map(params![rank(priority), lane, most as i64], |row| row.get(0))?;
        let mut seqs: Vec<i64> = seqs.collect::<Result<_, _>>()?;
        seqs.reverse();
        lanes.push(seqs);
    }
    Ok(lanes)
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

fn rank(priority: Priority) -> i64 {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Bulk => 2,
    }
}
