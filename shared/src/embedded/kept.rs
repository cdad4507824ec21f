//! Every statement about answers of before, and the claims on those to come. Each runs within a transaction of its
//! caller's.

use rusqlite::{Connection, OptionalExtension, params};

use super::process::{is_member, now_us};
use crate::id::Id;

/// Answers whose time is over that are taken away with each new one.
const SWEPT: i64 = 8;

/// What is there under a key.
#[derive(Debug)]
pub(super) enum There {
    /// An answer, as JSON.
    Answer(Vec<u8>),
    /// A claim, for so many microseconds at most.
    Claim(u64),
    Nothing,
}

/// Looks under a key.
pub(super) fn look(db: &Connection, key: Id) -> rusqlite::Result<There> {
    let now = now_us() as i64;
    let answer = db
        .prepare_cached("SELECT body FROM answers WHERE key = ?1 AND until_us > ?2")?
        .query_row(params![key.to_bytes(), now], |row| row.get(0))
        .optional()?;
    if let Some(answer) = answer {
        return Ok(There::Answer(answer));
    }
    let claim: Option<(i64, i64)> = db
        .prepare_cached("SELECT holder, until_us FROM claims WHERE key = ?1")?
        .query_row([key.to_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match claim {
        Some((holder, until_us)) if until_us > now && is_member(db, holder)? => {
            Ok(There::Claim((until_us - now).unsigned_abs()))
        }
        _ => Ok(There::Nothing),
    }
}

/// Claims a key for so many microseconds.
pub(super) fn claim(db: &Connection, own: i64, key: Id, for_us: u64) -> rusqlite::Result<()> {
    let until_us = now_us().saturating_add(for_us).min(i64::MAX as u64);
    db.prepare_cached("INSERT OR REPLACE INTO claims (key, holder, until_us) VALUES (?1, ?2, ?3)")?
        .execute(params![key.to_bytes(), own, until_us as i64])
        .map(drop)
}

/// Keeps an answer for so many microseconds; nobody has a claim on its key any more.
pub(super) fn keep(db: &Connection, key: Id, body: &[u8], for_us: u64) -> rusqlite::Result<()> {
    let now = now_us();
    let until_us = now.saturating_add(for_us).min(i64::MAX as u64);
    db.prepare_cached("INSERT OR REPLACE INTO answers (key, until_us, body) VALUES (?1, ?2, ?3)")?
        .execute(params![key.to_bytes(), until_us as i64, body])?;
    db.prepare_cached("DELETE FROM claims WHERE key = ?1")?.execute([key.to_bytes()])?;
    db.prepare_cached(
        "DELETE FROM answers WHERE key IN (SELECT key FROM answers WHERE until_us <= ?1 ORDER BY until_us LIMIT ?2)",
    )?
    .execute(params![now as i64, SWEPT])
    .map(drop)
}

/// Ends the claim of the process `own`.
pub(super) fn give_up(db: &Connection, own: i64, key: Id) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM claims WHERE key = ?1 AND holder = ?2")?
        .execute(params![key.to_bytes(), own])
        .map(drop)
}
