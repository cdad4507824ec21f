//! Every statement about jobs: put, settle, give back. Each runs within a transaction of its caller's.

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    counts::{self, Moved},
    deaths, letters,
    log::Entry,
    parking,
    process::now_us,
    turns,
    untold::Told,
};
use crate::{
    batch::Tally,
    batches::Progress,
    id::Id,
    job::{Job, Priority},
    ledger::End,
    queue::{Death, QueueError},
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
    Done,
    /// It comes back as this row, after this many microseconds.
    Again(Row, u64),
    /// It is set aside.
    Parked(Row),
    Dead(Row, Death),
}

/// What a settlement keeps.
#[derive(Debug)]
pub(super) struct Settling {
    pub(super) seq: i64,
    pub(super) job: Id,
    pub(super) turn: u64,
    pub(super) batch: String,
    pub(super) entries: Vec<Entry>,
    pub(super) after: After,
    /// How the turn ends; none where it comes again.
    pub(super) end: Option<End>,
    /// What its results count as.
    pub(super) tally: Tally,
}

/// How a settlement was met.
#[derive(Debug, Default)]
pub(super) struct Met {
    /// Else the lease had ended, and another process has the job, or has settled it: this one changed nothing.
    pub(super) in_time: bool,
    /// Whether the end of the turn was news.
    pub(super) news: bool,
    /// The job's batch, where it is complete now.
    pub(super) complete: Option<Progress>,
}

/// Puts jobs at the end of their lanes, and counts them. For whoever has to put something else down with them.
///
/// # Errors
/// What SQLite says.
pub fn put(db: &Connection, rows: &[Row]) -> rusqlite::Result<()> {
    rows.iter().try_for_each(|row| insert(db, row))?;
    // One batch follows the other, if there is more than one.
    for group in rows.chunk_by(|one, next| one.batch == next.batch) {
        let results = group.iter().map(|row| row.models).sum();
        counts::put(db, &group[0].batch, group.len() as i64, results)?;
    }
    Ok(())
}

/// Puts a job that was a dead letter at the end of its lane. It was counted when it was first put in.
pub(super) fn put_back(db: &Connection, row: &Row) -> rusqlite::Result<()> {
    insert(db, row)
}

fn insert(db: &Connection, row: &Row) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO jobs (id, provider, priority, lane, state, due_us, dropped, job, weight)
         VALUES (?1, ?2, ?3, ?4, 0, 0, 0, ?5, ?6)",
    )?
    .execute(params![row.id, row.provider, row.priority, row.lane, row.message, row.weight])
    .map(drop)
}

/// Settles a lent job, all at once: its results in the log, the ledger and the bill, the counts, and what becomes of it.
/// `told` is what became of its call, where that is not kept yet.
///
/// Where the lease had ended, the first answer still wins: it is paid for. Anything else is left to whoever has the
/// job now.
pub(super) fn settle(
    db: &Connection,
    holder: i64,
    settling: &Settling,
    told: Option<&Told>,
) -> rusqlite::Result<Met> {
    let Settling { seq, job, after, .. } = settling;
    let held: Option<Option<i64>> = db
        .prepare_cached("SELECT holder FROM jobs WHERE seq = ?1 AND id = ?2")?
        .query_row(params![seq, job.to_bytes()], |row| row.get(0))
        .optional()?;
    let ours = held == Some(Some(holder));
    if !ours && (held.is_none() || !matches!(after, After::Done)) {
        told.map_or(Ok(()), |told| turns::answered(db, holder, told))?;
        return Ok(Met::default());
    }
    finish(db, holder, settling, told)
}

/// The same for whoever has the job for sure.
pub(super) fn finish(
    db: &Connection,
    own: i64,
    settling: &Settling,
    told: Option<&Told>,
) -> rusqlite::Result<Met> {
    let Settling { seq, entries, after, .. } = settling;
    super::log::append(db, entries)?;
    match after {
        After::Done => remove(db, *seq)?,
        After::Again(row, after_us) => again(db, *seq, row, *after_us, settling.end.is_some())?,
        After::Parked(row) => parking::park(db, *seq, &row.batch, &row.message)?,
        After::Dead(row, death) => bury(db, *seq, row, death)?,
    }
    let (news, complete) = ledger_and_counts(db, own, settling, told)?;
    Ok(Met { in_time: true, news, complete })
}

/// The end of a turn is kept and counted once, however often it is settled.
fn ledger_and_counts(
    db: &Connection,
    own: i64,
    settling: &Settling,
    told: Option<&Told>,
) -> rusqlite::Result<(bool, Option<Progress>)> {
    let Settling { job, turn, batch, entries, after, end, tally, .. } = settling;
    let Some(end) = *end else {
        told.map_or(Ok(()), |told| turns::answered(db, own, told))?;
        return Ok((false, None));
    };
    match told {
        // The answer's own row would be written and taken away again here.
        Some(told) if told.intent.turn == *turn => turns::answered_and_over(db, own, told),
        Some(told) => turns::answered(db, own, told),
        None => Ok(()),
    }?;
    let death = match after {
        After::Dead(..) => Some(deaths::of(*tally, entries, true)?),
        _ => None,
    };
    let news = turns::end(db, *job, *turn, end, death.as_deref())?;
    if news {
        counts::results(db, entries)?;
    }
    let moved = Moved {
        ended: matches!(after, After::Done),
        dead: matches!(after, After::Dead(..)),
        tally: if news { *tally } else { Tally::default() },
    };
    let complete = if moved.is_nothing() { None } else { counts::moved(db, own, batch, &moved)? };
    Ok((news, complete))
}

fn remove(db: &Connection, seq: i64) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM jobs WHERE seq = ?1")?.execute([seq]).map(drop)
}

/// A job that comes again in the same turn was not settled: what was suspected of it still is.
fn again(db: &Connection, seq: i64, row: &Row, after_us: u64, anew: bool) -> rusqlite::Result<()> {
    let (state, due_us) = if after_us == 0 { (READY, 0) } else { (WAITING, (now_us() + after_us) as i64) };
    db.prepare_cached(
        "UPDATE jobs SET state = ?2, holder = NULL, due_us = ?3, job = ?4, again = again AND NOT ?5 WHERE seq = ?1",
    )?
    .execute(params![seq, state, due_us, row.message, anew])
    .map(drop)
}

fn bury(db: &Connection, seq: i64, row: &Row, death: &Death) -> rusqlite::Result<()> {
    remove(db, seq)?;
    letters::put(db, &row.batch, &row.message, death)
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
        "UPDATE jobs SET state = 0, holder = NULL, dropped = dropped + 1, again = 1
         WHERE seq = ?1 AND state = 1 AND holder = ?2 RETURNING dropped",
    )?
    .query_row(params![seq, holder], |row| row.get(0))
    .optional()
}

/// A priority as it is stored.
pub(super) fn rank(priority: Priority) -> i64 {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Bulk => 2,
    }
}
