//! Every statement about limits: what is granted of each stack, as an upper bound, and until when it is held.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use super::process::{self, now_us};
use crate::{
    gcra::{Known, Pace, Probe, State},
    limiter::{Amendment, Change, Limit, Terms},
    quota::Count,
    sharing::{self, Party},
};

/// A stack's row.
#[derive(Clone, Debug)]
pub(super) struct Granted {
    /// Moves with every grant: whoever sees it unmoved made the last one.
    pub(super) version: i64,
    pub(super) state: State,
    pub(super) terms: Terms,
    /// The largest jitter that a process told last, in microseconds.
    pub(super) measured_us: u64,
}

/// What is kept of a stack.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Standing {
    /// The stack.
    pub stack: String,
    /// Nothing leaves before this moment, in microseconds since 1970; 0 where nothing is held off.
    pub held_until_us: u64,
    /// Who paused it, if somebody did.
    pub paused: Option<String>,
    /// For each rate, the moment from which it is back on pace, in microseconds since 1970.
    pub on_pace_from_us: BTreeMap<String, u64>,
    /// For each quota, when its window ends, in microseconds since 1970, and the units used in it.
    pub used: BTreeMap<String, (u64, f64)>,
}

const COLUMNS: &str = "version, at_us, held_until_us, probe_us, pace, terms, measured_us";

/// The row of `stack`.
pub(super) fn granted(db: &Connection, stack: &str) -> rusqlite::Result<Option<Granted>> {
    db.prepare_cached(&format!("SELECT {COLUMNS} FROM limits WHERE stack = ?1"))?
        .query_row([stack], read_row)
        .optional()
}

fn read_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Granted> {
    let number = |column| row.get::<_, i64>(column).map(i64::unsigned_abs);
    let probe = match number("probe_us")? {
        0 => Probe::None,
        1 => Probe::Due,
        until => Probe::Out(until),
    };
    let terms: String = row.get("terms")?;
    Ok(Granted {
        version: row.get("version")?,
        state: State {
            at_us: number("at_us")?,
            held_until_us: number("held_until_us")?,
            probe,
            known: read(&row.get::<_, String>("pace")?),
        },
        terms: serde_json::from_str(&terms).unwrap_or_default(),
        measured_us: number("measured_us")?,
    })
}

/// Keeps what is granted now, and answers the new version.
pub(super) fn grant(db: &Connection, stack: &str, before: i64, state: &State) -> rusqlite::Result<i64> {
    let version = before + 1;
    let probe_us = match state.probe {
        Probe::None => 0,
        Probe::Due => 1,
        Probe::Out(until) => until as i64,
    };
    db.prepare_cached(
        "INSERT INTO limits (stack, version, at_us, held_until_us, probe_us, pace) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (stack) DO UPDATE SET version = excluded.version, at_us = excluded.at_us,
           held_until_us = excluded.held_until_us, probe_us = excluded.probe_us, pace = excluded.pace",
    )?
    .execute(params![
        stack,
        version,
        state.at_us as i64,
        state.held_until_us as i64,
        probe_us,
        written(state)
    ])?;
    Ok(version)
}

/// Nothing leaves before `until_us`, and then, with `probe`, one call ahead of the others. A shorter hold-off never ends a
/// longer one; answers the end that holds.
pub(super) fn hold_off(db: &Connection, stack: &str, until_us: u64, probe: bool) -> rusqlite::Result<u64> {
    if probe {
        // What any process has at hand is void: the others go behind the probe.
        db.execute("UPDATE limits SET probe_us = 1, version = version + 1 WHERE stack = ?1", [stack])?;
    }
    db.prepare_cached(
        "INSERT INTO limits (stack, version, at_us, held_until_us, probe_us, pace) VALUES (?1, 0, ?2, ?3, ?4, '{}')
         ON CONFLICT (stack) DO UPDATE SET held_until_us = max(held_until_us, excluded.held_until_us)
         RETURNING held_until_us",
    )?
    .query_row(params![stack, now_us() as i64, until_us as i64, probe], |row| row.get::<_, i64>(0))
    .map(i64::unsigned_abs)
}

/// The probe was answered; with `hold_off_too` the hold-off ends as well.
pub(super) fn open(db: &Connection, stack: &str, hold_off_too: bool) -> rusqlite::Result<()> {
    db.execute(
        "UPDATE limits SET probe_us = 0, held_until_us = CASE WHEN ?2 THEN 0 ELSE held_until_us END,
           version = version + (probe_us > 0 OR ?2) WHERE stack = ?1",
        params![stack, hold_off_too],
    )
    .map(drop)
}

/// Keeps the jitter that a process measured.
pub(super) fn measured(db: &Connection, stack: &str, us: u64) -> rusqlite::Result<()> {
    db.execute("UPDATE limits SET measured_us = ?2 WHERE stack = ?1", params![stack, us as i64]).map(drop)
}

/// The terms of every stack, by its name.
pub(super) fn terms(db: &Connection) -> rusqlite::Result<Vec<(String, Terms)>> {
    let mut query = db.prepare_cached("SELECT stack, terms FROM limits WHERE terms <> '{}'")?;
    let rows = query.query_map([], |row| {
        let terms: String = row.get(1)?;
        Ok((row.get(0)?, serde_json::from_str(&terms).unwrap_or_default()))
    })?;
    rows.collect()
}

/// Changes the terms, and keeps who did it.
pub(super) fn amend(db: &Connection, stack: &str, amendment: &Amendment) -> rusqlite::Result<Terms> {
    let known = granted(db, stack)?.map(|row| row.terms).unwrap_or_default();
    let terms = known.amended(amendment);
    let text = serde_json::to_string(&terms).unwrap_or_default();
    db.execute(
        "INSERT INTO limits (stack, version, at_us, held_until_us, pace, terms) VALUES (?1, 0, ?2, 0, '{}', ?3)
         ON CONFLICT (stack) DO UPDATE SET terms = excluded.terms, version = version + (version > 0)",
        params![stack, now_us() as i64, text],
    )?;
    if !matches!(amendment.change, Change::Jitter { .. }) {
        let text = serde_json::to_string(amendment).unwrap_or_default();
        db.execute("INSERT INTO changes (stack, amendment) VALUES (?1, ?2)", params![stack, text])?;
    }
    Ok(terms)
}

/// The last changes of the stack, the newest first.
pub(super) fn history(db: &Connection, stack: &str) -> rusqlite::Result<Vec<Amendment>> {
    let mut query =
        db.prepare_cached("SELECT amendment FROM changes WHERE stack = ?1 ORDER BY seq DESC LIMIT 1000")?;
    let rows = query.query_map([stack], |row| row.get::<_, String>(0))?;
    let lines: Vec<String> = rows.collect::<rusqlite::Result<_>>()?;
    Ok(lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// What the process `own` may have in flight under `limit`, and whether more is wanted than there is.
pub(super) fn share(
    db: &Connection,
    stack: &str,
    limit: &Limit,
    own: i64,
    held: u32,
    wanted: u32,
) -> rusqlite::Result<(u32, bool)> {
    let mut parties = Vec::new();
    for party in parties_of(db, stack, &limit.name)? {
        if party.name != own && process::is_member(db, party.name)? {
            parties.push(party);
        }
    }
    parties.insert(0, Party { name: own, calls: 0, wanted: wanted.max(held) });
    let calls = sharing::share(limit.calls, held, &parties);
    let demand: u64 = parties.iter().map(|party| u64::from(party.wanted)).sum();
    if calls == 0 && wanted == 0 {
        let gone = "DELETE FROM shares WHERE stack = ?1 AND limited = ?2 AND holder = ?3";
        db.prepare_cached(gone)?.execute(params![stack, limit.name, own])?;
    } else {
        db.prepare_cached(
            "INSERT INTO shares (stack, limited, holder, calls, wanted) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (stack, limited, holder) DO UPDATE SET calls = excluded.calls, wanted = excluded.wanted",
        )?
        .execute(params![stack, limit.name, own, calls, wanted.max(held)])?;
    }
    Ok((calls, demand > u64::from(limit.calls)))
}

/// Calls that living processes may have in flight under a limit, in sum, and those processes.
pub(super) fn shares(db: &Connection, stack: &str, limit: &str) -> rusqlite::Result<(u32, u32)> {
    let (mut calls, mut processes) = (0, 0);
    for party in parties_of(db, stack, limit)? {
        if process::is_member(db, party.name)? {
            (calls, processes) = (calls + party.calls, processes + 1);
        }
    }
    Ok((calls, processes))
}

fn parties_of(db: &Connection, stack: &str, limit: &str) -> rusqlite::Result<Vec<Party<i64>>> {
    let query = "SELECT holder, calls, wanted FROM shares WHERE stack = ?1 AND limited = ?2";
    let mut query = db.prepare_cached(query)?;
    let rows = query.query_map(params![stack, limit], |row| {
        Ok(Party { name: row.get(0)?, calls: row.get(1)?, wanted: row.get(2)? })
    })?;
    rows.collect()
}

/// Every stack that is held now, with the end.
pub(super) fn held(db: &Connection) -> rusqlite::Result<Vec<(String, u64)>> {
    let mut query = db.prepare_cached("SELECT stack, held_until_us FROM limits WHERE held_until_us > ?1")?;
    let rows =
        query.query_map([now_us() as i64], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))?;
    rows.collect()
}

pub(super) fn standings(db: &Connection) -> rusqlite::Result<Vec<Standing>> {
    let mut query = db.prepare_cached(&format!("SELECT stack, {COLUMNS} FROM limits ORDER BY stack"))?;
    let rows = query.query_map([], |row| Ok((row.get::<_, String>("stack")?, read_row(row)?)))?;
    rows.map(|row| row.map(|(stack, row)| Standing::of(stack, row))).collect()
}

impl Standing {
    fn of(stack: String, Granted { state, terms, .. }: Granted) -> Self {
        let (mut on_pace_from_us, mut used) = (BTreeMap::new(), BTreeMap::new());
        for (name, known) in state.known {
            match known {
                Known::Pace(pace) => drop(on_pace_from_us.insert(name, pace.tat_us)),
                Known::Count(count) => {
                    used.insert(name, (count.end_us, count.used as f64 / crate::limit::MICRO as f64));
                }
            }
        }
        Self { stack, held_until_us: state.held_until_us, paused: terms.paused, on_pace_from_us, used }
    }
}

/// A limit that can't be read is one of which nothing is known: it begins at its upper bound.
fn read(pace: &str) -> BTreeMap<String, Known> {
    let known: BTreeMap<String, Vec<u64>> = serde_json::from_str(pace).unwrap_or_default();
    let known = known.into_iter().filter_map(|(name, numbers)| match numbers[..] {
        [tat_us, interval_us] => Some((name, Known::Pace(Pace { tat_us, interval_us }))),
        [start_us, end_us, used, next] => Some((name, Known::Count(Count { start_us, end_us, used, next }))),
        _ => None,
    });
    known.collect()
}

fn written(state: &State) -> String {
    let numbers = |known: &Known| match *known {
        Known::Pace(Pace { tat_us, interval_us }) => vec![tat_us, interval_us],
        Known::Count(Count { start_us, end_us, used, next }) => vec![start_us, end_us, used, next],
    };
    let pace: BTreeMap<&str, Vec<u64>> =
        state.known.iter().map(|(name, known)| (name.as_str(), numbers(known))).collect();
    // A map of numbers is always JSON.
    serde_json::to_string(&pace).unwrap_or_default()
}
