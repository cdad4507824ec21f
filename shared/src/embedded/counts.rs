//! Every statement that changes the counts of a batch. They change in the transaction of what they count, so that a look
//! at a batch of a million jobs costs as much as one at a batch of ten.

use rusqlite::{Connection, params};

use super::{log::Entry, process::now_us, standing};
use crate::{
    batch::{BatchEvent, BatchState, Tally},
    batches::{Expected, Progress},
    result::ImageResult,
};

/// Jobs were put in.
pub(super) fn put(db: &Connection, batch: &str, jobs: i64, results: i64) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO batches (batch, opened_us, jobs, results) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (batch) DO UPDATE SET
           jobs = jobs + excluded.jobs, results = results + excluded.results, ending = 0",
    )?
    .execute(params![batch, now_us() as i64, jobs, results])
    .map(drop)
}

/// What a settlement moves.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moved {
    /// A job was completed.
    pub(super) ended: bool,
    /// A job became a dead letter.
    pub(super) dead: bool,
    pub(super) tally: Tally,
}

impl Moved {
    pub(super) fn is_nothing(&self) -> bool {
        !self.ended && !self.dead && self.tally == Tally::default()
    }
}

/// Counts what a settlement moves; the batch, where it is complete by that. The process `own` tells of it.
pub(super) fn moved(
    db: &Connection,
    own: i64,
    batch: &str,
    moved: &Moved,
) -> rusqlite::Result<Option<Progress>> {
    let Moved { ended, dead, tally } = moved;
    let is_complete = db
        .prepare_cached(
            "INSERT INTO batches (batch, opened_us, ended, dead, ok_results, cached_results, rejected_results,
               dead_results, cancelled_results, ambiguous_results)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
             ON CONFLICT (batch) DO UPDATE SET
               ended = ended + excluded.ended, dead = dead + excluded.dead,
               ok_results = ok_results + excluded.ok_results,
               cached_results = cached_results + excluded.cached_results,
               rejected_results = rejected_results + excluded.rejected_results,
               dead_results = dead_results + excluded.dead_results,
               cancelled_results = cancelled_results + excluded.cancelled_results,
               ambiguous_results = ambiguous_results + excluded.ambiguous_results
             RETURNING closed AND ending = 0 AND max(results, said_results) > 0 AND
               ok_results + cached_results + rejected_results + dead_results + cancelled_results + ambiguous_results
                 >= max(results, said_results)",
        )?
        .query_row(
            params![
                batch,
                now_us() as i64,
                ended,
                dead,
                tally.ok as i64,
                tally.cached as i64,
                tally.rejected as i64,
                tally.dead as i64,
                tally.cancelled as i64,
                tally.ambiguous as i64,
            ],
            |row| row.get(0),
        )?;
    if is_complete { standing::complete(db, own, batch) } else { Ok(None) }
}

/// Keeps what a producer says of its batch; the batch, where it is complete by that.
pub(super) fn expect(db: &Connection, own: i64, said: &Expected) -> rusqlite::Result<Option<Progress>> {
    db.prepare_cached(
        "INSERT INTO batches (batch, opened_us, said_jobs, said_results, closed) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (batch) DO UPDATE SET
           said_jobs = max(said_jobs, excluded.said_jobs), said_results = max(said_results, excluded.said_results),
           closed = max(closed, excluded.closed)",
    )?
    .execute(params![
        said.batch.as_str(),
        now_us() as i64,
        said.jobs as i64,
        said.results as i64,
        said.closed
    ])?;
    moved(db, own, said.batch.as_str(), &Moved::default())
}

/// Keeps what was announced of a batch; the batch, where it is complete by that.
pub(super) fn announced(db: &Connection, own: i64, event: &BatchEvent) -> rusqlite::Result<Option<Progress>> {
    let batch = event.batch.as_str();
    if event.state == BatchState::Complete {
        standing::told(db, batch)?;
        return Ok(None);
    }
    db.prepare_cached(
        "INSERT INTO batches (batch, opened_us, closed) VALUES (?1, ?2, ?3)
         ON CONFLICT (batch) DO UPDATE SET closed = excluded.closed",
    )?
    .execute(params![batch, now_us() as i64, event.state == BatchState::Closed])?;
    moved(db, own, batch, &Moved::default())
}

/// Counts results by outcome and reason, and the calls behind them.
pub(super) fn results(db: &Connection, entries: &[Entry]) -> rusqlite::Result<()> {
    let mut counted = None;
    for of in entries.iter().filter_map(Entry::result) {
        result(db, of)?;
        // The models of one call share it.
        let own = of.call.as_ref().map(|call| call.id);
        if own.is_some() && own != counted {
            call(db, of)?;
            counted = own;
        }
    }
    Ok(())
}

fn result(db: &Connection, result: &ImageResult) -> rusqlite::Result<()> {
    let example = result.failure.as_ref().map_or("", |failure| &failure.message);
    db.prepare_cached(
        "INSERT INTO outcomes (batch, outcome, reason, results, example) VALUES (?1, ?2, ?3, 1, ?4)
         ON CONFLICT (batch, outcome, reason) DO UPDATE SET results = results + 1",
    )?
    .execute(params![result.batch.as_str(), result.outcome.as_str(), reason(result), example])
    .map(drop)
}

/// Why a result has no answer, in a few words of which there are few: the class, and the status where one came.
pub(super) fn reason(result: &ImageResult) -> String {
    let Some(failure) = &result.failure else {
        return String::new();
    };
    match result.call.as_ref().and_then(|call| call.status) {
        Some(status) => format!("{} ({status})", failure.class),
        None => failure.class.clone(),
    }
}

fn call(db: &Connection, result: &ImageResult) -> rusqlite::Result<()> {
    let Some(call) = &result.call else {
        return Ok(());
    };
    db.prepare_cached(
        "INSERT INTO calls (batch, provider, calls, first_us, last_us, duration_us, cost_nano, throttled, limit_per_s)
         VALUES (?1, ?2, 1, ?3, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (batch, provider) DO UPDATE SET
           calls = calls + 1, first_us = min(first_us, excluded.first_us), last_us = max(last_us, excluded.last_us),
           duration_us = duration_us + excluded.duration_us, cost_nano = cost_nano + excluded.cost_nano,
           throttled = throttled + excluded.throttled,
           limit_per_s = coalesce(max(limit_per_s, excluded.limit_per_s), limit_per_s, excluded.limit_per_s)",
    )?
    .execute(params![
        result.batch.as_str(),
        result.provider,
        call.sent_at.as_microsecond(),
        (call.duration_ms * 1e3).round() as i64,
        (call.cost * 1e9).round() as i64,
        call.throttled,
        call.limit_per_s,
    ])
    .map(drop)
}
