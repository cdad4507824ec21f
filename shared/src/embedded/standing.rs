//! Every statement about batches as a whole: how far each is, what keeps it, and whether its end was told. Each runs
//! within a transaction of its caller's.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::process::is_member;
use crate::{
    batch::{BatchName, Tally},
    batches::{Held, Hold, Progress},
};

/// A batch that is complete, and nobody was told yet.
const COMPLETE: i64 = 1;
/// A batch that is complete, and subscribers know.
const TOLD: i64 = 2;

fn word(hold: Hold) -> &'static str {
    match hold {
        Hold::Paused => "paused",
        Hold::Cancelled => "cancelled",
    }
}

fn hold_of(text: &str) -> Hold {
    if text == word(Hold::Cancelled) { Hold::Cancelled } else { Hold::Paused }
}

/// What is known of a batch.
pub(super) fn one(db: &Connection, batch: &str) -> rusqlite::Result<Option<Progress>> {
    Ok(read(db, Some(batch))?.pop())
}

/// Every batch, the youngest first.
pub(super) fn all(db: &Connection) -> rusqlite::Result<Vec<Progress>> {
    read(db, None)
}

fn read(db: &Connection, batch: Option<&str>) -> rusqlite::Result<Vec<Progress>> {
    let mut query = db.prepare_cached(
        "SELECT batch, max(jobs, said_jobs), max(results, said_results), closed, opened_us,
           ok_results, cached_results, rejected_results, dead_results, cancelled_results, ambiguous_results,
           hold, said_by, said_at
         FROM batches LEFT JOIN held USING (batch)
         WHERE ?1 IS NULL OR batch = ?1 ORDER BY opened_us DESC, batch DESC",
    )?;
    query.query_map([batch], progress)?.filter_map(Result::transpose).collect()
}

/// A batch of a name that this build refuses was not written by any: it is passed over.
fn progress(row: &Row<'_>) -> rusqlite::Result<Option<Progress>> {
    let count = |column| row.get::<_, i64>(column).map(i64::unsigned_abs);
    let Ok(batch) = row.get_ref(0)?.as_str()?.parse::<BatchName>() else {
        return Ok(None);
    };
    Ok(Some(Progress {
        batch,
        jobs: count(1)?,
        expected: count(2)?,
        closed: row.get(3)?,
        opened_at: Timestamp::from_microsecond(row.get(4)?).unwrap_or_default(),
        tally: Tally {
            ok: count(5)?,
            cached: count(6)?,
            rejected: count(7)?,
            dead: count(8)?,
            cancelled: count(9)?,
            ambiguous: count(10)?,
        },
        held: held(row, 11)?,
    }))
}

fn held(row: &Row<'_>, first: usize) -> rusqlite::Result<Option<Held>> {
    let Some(word) = row.get_ref(first)?.as_str_or_null()? else {
        return Ok(None);
    };
    let at = row.get_ref(first + 2)?.as_str()?.parse().unwrap_or_default();
    Ok(Some(Held { hold: hold_of(word), by: row.get(first + 1)?, at }))
}

/// What keeps a batch.
fn held_by(db: &Connection, batch: &str) -> rusqlite::Result<Option<Held>> {
    let held = db
        .prepare_cached("SELECT hold, said_by, said_at FROM held WHERE batch = ?1")?
        .query_row([batch], |row| held(row, 0))
        .optional()?;
    Ok(held.flatten())
}

/// Keeps a batch, or lets it go on; what holds then. What is cancelled stays so.
pub(super) fn hold(
    db: &Connection,
    batch: &str,
    wanted: Option<Held>,
    now_us: u64,
) -> rusqlite::Result<Option<Held>> {
    let known = held_by(db, batch)?;
    if known.as_ref().is_some_and(|known| known.hold == Hold::Cancelled) {
        return Ok(known);
    }
    match &wanted {
        Some(Held { hold, by, at }) => {
            db.prepare_cached("INSERT OR IGNORE INTO batches (batch, opened_us) VALUES (?1, ?2)")?
                .execute(params![batch, now_us as i64])?;
            db.prepare_cached(
                "INSERT OR REPLACE INTO held (batch, hold, said_by, said_at) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![batch, word(*hold), by, at.to_string()])?;
        }
        None => {
            db.prepare_cached("DELETE FROM held WHERE batch = ?1")?.execute([batch])?;
        }
    }
    Ok(wanted)
}

/// Every batch that is kept.
pub(super) fn holds(db: &Connection) -> rusqlite::Result<Vec<(BatchName, Hold)>> {
    let mut query = db.prepare_cached("SELECT batch, hold FROM held")?;
    let mut rows = query.query([])?;
    let mut holds = Vec::new();
    while let Some(row) = rows.next()? {
        let hold = hold_of(row.get_ref(1)?.as_str()?);
        holds.extend(row.get_ref(0)?.as_str()?.parse().ok().map(|batch| (batch, hold)));
    }
    Ok(holds)
}

/// A batch is complete by what the process `own` wrote: it is the one that tells.
pub(super) fn complete(db: &Connection, own: i64, batch: &str) -> rusqlite::Result<Option<Progress>> {
    db.prepare_cached("UPDATE batches SET ending = ?2, teller = ?3 WHERE batch = ?1")?
        .execute(params![batch, COMPLETE, own])?;
    one(db, batch)
}

/// Subscribers know that a batch is complete.
pub(super) fn told(db: &Connection, batch: &str) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE batches SET ending = ?2 WHERE batch = ?1 AND ending = ?3")?
        .execute(params![batch, TOLD, COMPLETE])
        .map(drop)
}

/// Complete batches that somebody else was to tell of, and who that is.
fn untold(db: &Connection, own: i64) -> rusqlite::Result<Vec<(String, i64)>> {
    let mut query =
        db.prepare_cached("SELECT batch, teller FROM batches WHERE ending = ?1 AND teller <> ?2")?;
    query.query_map(params![COMPLETE, own], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Whether a batch is complete whose teller is gone.
pub(super) fn is_somebody_gone(db: &Connection, own: i64) -> rusqlite::Result<bool> {
    for (_, teller) in untold(db, own)? {
        if !is_member(db, teller)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes over from tellers that are gone.
pub(super) fn take_over(db: &Connection, own: i64) -> rusqlite::Result<Vec<Progress>> {
    let mut taken = Vec::new();
    for (batch, teller) in untold(db, own)? {
        if !is_member(db, teller)? {
            taken.extend(complete(db, own, &batch)?);
        }
    }
    Ok(taken)
}
