//! Every statement about limits: what is granted of each stack, as an upper bound, and until when it is held.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use super::process::now_us;
use crate::gcra::{Pace, State};

/// A stack's row.
#[derive(Clone, Debug)]
pub(super) struct Granted {
    /// Moves with every grant: whoever sees it unmoved made the last one.
    pub(super) version: i64,
    pub(super) state: State,
}

/// What is kept of a stack.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Standing {
    /// The stack.
    pub stack: String,
    /// Nothing leaves before this moment, in microseconds since 1970; 0 where nothing is held off.
    pub held_until_us: u64,
    /// For each limit, the moment from which it is back on pace, in microseconds since 1970.
    pub on_pace_from_us: BTreeMap<String, u64>,
}

/// The row of `stack`.
pub(super) fn granted(db: &Connection, stack: &str) -> rusqlite::Result<Option<Granted>> {
    db.prepare_cached("SELECT version, at_us, held_until_us, pace FROM limits WHERE stack = ?1")?
        .query_row([stack], |row| {
            let pace: String = row.get(3)?;
            Ok(Granted {
                version: row.get(0)?,
                state: State {
                    at_us: row.get::<_, i64>(1)?.unsigned_abs(),
                    held_until_us: row.get::<_, i64>(2)?.unsigned_abs(),
                    pace: read(&pace),
                },
            })
        })
        .optional()
}

/// Keeps what is granted now, and answers the new version.
pub(super) fn grant(db: &Connection, stack: &str, before: i64, state: &State) -> rusqlite::Result<i64> {
    let version = before + 1;
    db.prepare_cached(
        "INSERT INTO limits (stack, version, at_us, held_until_us, pace) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (stack) DO UPDATE SET version = excluded.version, at_us = excluded.at_us,
           held_until_us = excluded.held_until_us, pace = excluded.pace",
    )?
    .execute(params![stack, version, state.at_us as i64, state.held_until_us as i64, written(state)])?;
    Ok(version)
}

/// Nothing leaves before `until_us`. A shorter hold-off never ends a longer one; answers the end that holds.
pub(super) fn hold_off(db: &Connection, stack: &str, until_us: u64) -> rusqlite::Result<u64> {
    db.prepare_cached(
        "INSERT INTO limits (stack, version, at_us, held_until_us, pace) VALUES (?1, 0, ?2, ?3, '{}')
         ON CONFLICT (stack) DO UPDATE SET held_until_us = max(held_until_us, excluded.held_until_us)
         RETURNING held_until_us",
    )?
    .query_row(params![stack, now_us() as i64, until_us as i64], |row| row.get::<_, i64>(0))
    .map(i64::unsigned_abs)
}

/// Every stack that is held now, with the end.
pub(super) fn held(db: &Connection) -> rusqlite::Result<Vec<(String, u64)>> {
    let mut query = db.prepare_cached("SELECT stack, held_until_us FROM limits WHERE held_until_us > ?1")?;
    let rows =
        query.query_map([now_us() as i64], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))?;
    rows.collect()
}

pub(super) fn standings(db: &Connection) -> rusqlite::Result<Vec<Standing>> {
    let mut query = db.prepare_cached("SELECT stack, held_until_us, pace FROM limits ORDER BY stack")?;
    let rows = query.query_map([], |row| {
        let pace: String = row.get(2)?;
        Ok(Standing {
            stack: row.get(0)?,
            held_until_us: row.get::<_, i64>(1)?.unsigned_abs(),
            on_pace_from_us: read(&pace).into_iter().map(|(name, pace)| (name, pace.tat_us)).collect(),
        })
    })?;
    rows.collect()
}

/// A limit that can't be read is one of which nothing is known: it begins at its upper bound.
fn read(pace: &str) -> BTreeMap<String, Pace> {
    let known: BTreeMap<String, (u64, u64)> = serde_json::from_str(pace).unwrap_or_default();
    known.into_iter().map(|(name, (tat_us, interval_us))| (name, Pace { tat_us, interval_us })).collect()
}

fn written(state: &State) -> String {
    let pace: BTreeMap<&str, (u64, u64)> =
        state.pace.iter().map(|(name, pace)| (name.as_str(), (pace.tat_us, pace.interval_us))).collect();
    // A map of numbers is always JSON.
    serde_json::to_string(&pace).unwrap_or_default()
}
