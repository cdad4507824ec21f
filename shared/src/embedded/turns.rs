//! Every statement about the turns of jobs: which are over, and what is known of the call of the one under way. Each runs
//! within a transaction of its caller's.
//!
//! What is over is one number a job, its floor, kept as long as the file: about 30 bytes a job. What is under way is in
//! a table of its own, with as many rows as there are calls in flight, so it is at hand however large the file is.

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    bill,
    json::json,
    process::{is_member, now_us},
    taken,
    untold::Told,
};
use crate::{
    id::Id,
    ledger::{Answered, End, Intent, Known},
};

/// The floor of a job that is done: all turns are over.
const DONE: i64 = i64::MAX;
/// While a call is under way elsewhere, it is worth looking again this often: its maker may end, or say what came of it.
const LOOK_AGAIN_US: u64 = 1_000_000;

/// What is known of a turn, as it is stored.
#[derive(Debug)]
pub(super) enum Found {
    Clear,
    Over,
    /// A settlement, as JSON.
    Answered(Vec<u8>),
    /// For so many microseconds at most.
    UnderWay(u64),
    /// An intent, as JSON.
    Unanswered(Vec<u8>),
}

impl Found {
    /// As the seam says it.
    pub(super) fn known(self) -> serde_json::Result<Known> {
        Ok(match self {
            Self::Clear => Known::Clear,
            Self::Over => Known::Over,
            Self::Answered(body) => Known::Answered(serde_json::from_slice(&body)?),
            Self::UnderWay(left_us) => {
                Known::UnderWay(std::time::Duration::from_micros(left_us.clamp(1_000, LOOK_AGAIN_US)))
            }
            Self::Unanswered(body) => Known::Unanswered(serde_json::from_slice(&body)?),
        })
    }
}

struct Open {
    turn: u64,
    call: [u8; 16],
    answered: bool,
    holder: i64,
    until_us: i64,
    body: Vec<u8>,
}

fn open(db: &Connection, job: Id) -> rusqlite::Result<Option<Open>> {
    db.prepare_cached("SELECT turn, call, answered, holder, until_us, body FROM turns WHERE job = ?1")?
        .query_row([job.to_bytes()], |row| {
            Ok(Open {
                turn: row.get::<_, i64>(0)?.unsigned_abs(),
                call: row.get(1)?,
                answered: row.get(2)?,
                holder: row.get(3)?,
                until_us: row.get(4)?,
                body: row.get(5)?,
            })
        })
        .optional()
}

/// The first turn of a job that is not over.
fn floor(db: &Connection, job: Id) -> rusqlite::Result<i64> {
    let floor = db
        .prepare_cached("SELECT floor FROM settled WHERE job = ?1")?
        .query_row([job.to_bytes()], |row| row.get(0))
        .optional()?;
    Ok(floor.unwrap_or(0))
}

/// What is known of a turn. To its own `maker` a call under way is no news.
pub(super) fn look(db: &Connection, job: Id, turn: u64, maker: Option<i64>) -> rusqlite::Result<Found> {
    if floor(db, job)? > turn as i64 {
        return Ok(Found::Over);
    }
    let Some(open) = open(db, job)?.filter(|open| open.turn >= turn) else {
        return Ok(Found::Clear);
    };
    if open.turn > turn {
        return Ok(Found::Over);
    }
    if open.answered {
        return Ok(Found::Answered(open.body));
    }
    if maker == Some(open.holder) {
        return Ok(Found::Clear);
    }
    let left_us = open.until_us - now_us() as i64;
    if left_us > 0 && is_member(db, open.holder)? {
        Ok(Found::UnderWay(left_us.unsigned_abs()))
    } else {
        Ok(Found::Unanswered(open.body))
    }
}

/// Records that a call is about to leave, unless what is known of its turn stands against it; `body` is its JSON.
pub(super) fn depart(db: &Connection, own: i64, intent: &Intent, body: &[u8]) -> rusqlite::Result<Found> {
    let found = look(db, intent.job, intent.turn, Some(own))?;
    if matches!(found, Found::Clear) {
        let until_us = now_us().saturating_add(intent.lasts_ms.saturating_mul(1_000));
        write(db, intent, false, own, until_us.min(i64::MAX as u64) as i64, body)?;
    }
    Ok(found)
}

fn write(
    db: &Connection,
    intent: &Intent,
    answered: bool,
    holder: i64,
    until_us: i64,
    body: &[u8],
) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT OR REPLACE INTO turns (job, turn, call, answered, holder, until_us, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        intent.job.to_bytes(),
        intent.turn as i64,
        intent.call.to_bytes(),
        answered,
        holder,
        until_us,
        body
    ])
    .map(drop)
}

/// Keeps what became of a call of the process `own`, and puts it on the bill, once however often it is said. Of two answers
/// of a turn the first is kept; both are billed.
pub(super) fn answered(db: &Connection, own: i64, told: &Told) -> rusqlite::Result<()> {
    let Told { intent, answered } = told;
    let Answered::Paid(settlement) = answered else {
        return not_paid(db, own, told);
    };
    let open = open(db, intent.job)?.filter(|open| open.turn >= intent.turn);
    let first = open.as_ref().filter(|open| open.answered && open.turn == intent.turn);
    if first.is_some_and(|first| first.call == intent.call.to_bytes()) {
        return Ok(());
    }
    bill::count(db, intent, true)?;
    if floor(db, intent.job)? > intent.turn as i64 {
        return take_back(db, own, intent).map(drop);
    }
    if first.is_some() || open.is_some_and(|open| open.turn > intent.turn) {
        return Ok(());
    }
    write(db, intent, true, 0, 0, &json(settlement)?)
}

/// The same for a call whose turn ends in this transaction: of its answer only the bill is left.
pub(super) fn answered_and_over(db: &Connection, own: i64, told: &Told) -> rusqlite::Result<()> {
    let Told { intent, answered } = told;
    if !matches!(answered, Answered::Paid(_)) {
        return not_paid(db, own, told);
    }
    let is_kept = db
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM turns WHERE job = ?1 AND call = ?2 AND answered)")?
        .query_row([intent.job.to_bytes(), intent.call.to_bytes()], |row| row.get(0))?;
    if is_kept { Ok(()) } else { bill::count(db, intent, true) }
}

fn not_paid(db: &Connection, own: i64, told: &Told) -> rusqlite::Result<()> {
    if take_back(db, own, &told.intent)? && matches!(told.answered, Answered::Free) {
        bill::count(db, &told.intent, false)?;
    }
    Ok(())
}

/// The call is not under way any more, and nothing follows from it; whether it was. Nobody takes back another one's.
fn take_back(db: &Connection, own: i64, intent: &Intent) -> rusqlite::Result<bool> {
    let taken = db
        .prepare_cached("DELETE FROM turns WHERE job = ?1 AND call = ?2 AND answered = 0 AND holder = ?3")?
        .execute(params![intent.job.to_bytes(), intent.call.to_bytes(), own])?;
    Ok(taken > 0)
}

/// A call was never answered: nobody waits for it any more, also while its maker lives and its time is not over.
pub(super) fn lost(db: &Connection, intent: &Intent) -> rusqlite::Result<()> {
    db.prepare_cached(
        "UPDATE turns SET holder = 0, until_us = 0 WHERE job = ?1 AND call = ?2 AND answered = 0",
    )?
    .execute([intent.job.to_bytes(), intent.call.to_bytes()])
    .map(drop)
}

/// A turn is over. Whether that is news; of a death it is remembered what it counts as, as JSON.
pub(super) fn end(
    db: &Connection,
    job: Id,
    turn: u64,
    end: End,
    death: Option<&str>,
) -> rusqlite::Result<bool> {
    let floor = if end == End::Done { DONE } else { turn as i64 + 1 };
    let news = db
        .prepare_cached(
            "INSERT INTO settled (job, at_us, floor, dead) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (job) DO UPDATE SET at_us = excluded.at_us, floor = excluded.floor, dead = excluded.dead
             WHERE settled.floor <= ?5",
        )?
        .execute(params![job.to_bytes(), now_us() as i64, floor, death, turn as i64])?
        > 0;
    // An earlier turn's end says nothing of a later one's call.
    db.prepare_cached("DELETE FROM turns WHERE job = ?1 AND turn < ?2")?
        .execute(params![job.to_bytes(), floor])?;
    if end != End::Again {
        taken::forget(db, job)?;
    }
    Ok(news)
}

/// A dead letter is sent again as this turn; whether that is news.
pub(super) fn reopen(db: &Connection, job: Id, turn: u64) -> rusqlite::Result<bool> {
    let news = db
        .prepare_cached(
            "INSERT INTO settled (job, at_us, floor) VALUES (?1, ?2, ?3)
             ON CONFLICT (job) DO UPDATE SET at_us = excluded.at_us, floor = excluded.floor
             WHERE settled.floor < excluded.floor",
        )?
        .execute(params![job.to_bytes(), now_us() as i64, turn as i64])?
        > 0;
    if news {
        db.prepare_cached("DELETE FROM turns WHERE job = ?1 AND turn < ?2")?
            .execute(params![job.to_bytes(), turn as i64])?;
        taken::forget(db, job)?;
    }
    Ok(news)
}

/// What a job's death counted as, as JSON, where its last turn that is over ended so.
pub(super) fn death(db: &Connection, job: Id) -> rusqlite::Result<Option<String>> {
    let death = db
        .prepare_cached("SELECT dead FROM settled WHERE job = ?1")?
        .query_row([job.to_bytes()], |row| row.get(0))
        .optional()?;
    Ok(death.flatten())
}

/// Keeps what a job's death counts as.
pub(super) fn remember_death(db: &Connection, job: Id, death: &str) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE settled SET dead = ?2 WHERE job = ?1")?
        .execute(params![job.to_bytes(), death])
        .map(drop)
}
