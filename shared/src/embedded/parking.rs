//! Every statement about jobs that are set aside because their batch is paused. Each runs within a transaction of its
//! caller's.

use rusqlite::{Connection, params};

use super::process::now_us;

/// Who has not heard that a batch goes on has within this time, in microseconds.
const HEARD_US: u64 = 1_000_000;

/// The batch is about to be paused: its jobs may be set aside.
pub(super) fn prepare(db: &Connection, batch: &str) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM resumed WHERE batch = ?1")?.execute([batch]).map(drop)
}

/// Sets a lent job aside. Where the batch goes on meanwhile it would stay there for ever: it comes again instead, when
/// its worker has heard of it.
pub(super) fn park(db: &Connection, seq: i64, batch: &str, message: &[u8]) -> rusqlite::Result<()> {
    let due_us = (now_us() + HEARD_US) as i64;
    db.prepare_cached(
        "UPDATE jobs SET holder = NULL, batch = ?2, job = ?3, due_us = ?4,
           state = iif(EXISTS (SELECT 1 FROM resumed WHERE resumed.batch = ?2), 2, 3)
         WHERE seq = ?1",
    )?
    .execute(params![seq, batch, message, due_us])
    .map(drop)
}

/// How many jobs of the batch are set aside.
pub(super) fn count(db: &Connection, batch: &str) -> rusqlite::Result<u64> {
    db.prepare_cached("SELECT count(*) FROM jobs WHERE state = 3 AND batch = ?1")?
        .query_row([batch], |row| row.get::<_, i64>(0))
        .map(i64::unsigned_abs)
}

/// Puts up to `most` of them back where they were in their lane; how many.
pub(super) fn put_back(db: &Connection, batch: &str, most: usize) -> rusqlite::Result<usize> {
    db.prepare_cached("INSERT OR IGNORE INTO resumed (batch) VALUES (?1)")?.execute([batch])?;
    db.prepare_cached(
        "UPDATE jobs SET state = 0, batch = NULL
         WHERE seq IN (SELECT seq FROM jobs WHERE state = 3 AND batch = ?1 ORDER BY seq LIMIT ?2)",
    )?
    .execute(params![batch, most as i64])
}
