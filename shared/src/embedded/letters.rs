//! Every statement about dead letters. Each runs within a transaction of its caller's.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::process::now_us;
use crate::queue::{Death, Reason};

/// A dead letter as it is stored.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) seq: i64,
    pub(super) death: Death,
    pub(super) message: Vec<u8>,
}

/// Keeps a job's message as a dead letter.
pub(super) fn put(db: &Connection, batch: &str, message: &[u8], death: &Death) -> rusqlite::Result<()> {
    let at_us = death.at.map_or(now_us() as i64, Timestamp::as_microsecond);
    db.prepare_cached(
        "INSERT INTO dead (at_us, batch, reason, job, class, message, status, worker)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        at_us,
        batch,
        death.reason.as_str(),
        message,
        death.class,
        death.message,
        death.status,
        death.worker
    ])
    .map(drop)
}

/// The last one that there is now.
pub(super) fn last(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("SELECT coalesce(max(seq), 0) FROM dead", [], |row| row.get(0))
}

/// Up to `most` after the one numbered `after`, up to `last`, the oldest first.
pub(super) fn page(db: &Connection, after: i64, last: i64, most: usize) -> rusqlite::Result<Vec<Letter>> {
    let mut query = db.prepare_cached(
        "SELECT seq, at_us, reason, job, class, message, status, worker FROM dead
         WHERE seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3",
    )?;
    query.query_map(params![after, last, most as i64], letter)?.collect()
}

fn letter(row: &Row<'_>) -> rusqlite::Result<Letter> {
    let death = Death {
        reason: Reason::named(row.get_ref(2)?.as_str()?).unwrap_or(Reason::Malformed),
        class: row.get(4)?,
        message: row.get(5)?,
        status: row.get(6)?,
        worker: row.get(7)?,
        at: Timestamp::from_microsecond(row.get(1)?).ok(),
    };
    Ok(Letter { seq: row.get(0)?, death, message: row.get(3)? })
}

/// Takes a letter away; its message, where it was still there.
pub(super) fn take(db: &Connection, seq: i64) -> rusqlite::Result<Option<Vec<u8>>> {
    db.prepare_cached("DELETE FROM dead WHERE seq = ?1 RETURNING job")?
        .query_row([seq], |row| row.get(0))
        .optional()
}
