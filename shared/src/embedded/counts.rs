//! Every statement about the counts of a batch. They change in the transaction of what they count, so that a look at
//! a batch of a million jobs costs as much as one at a batch of ten.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};
use serde::Serialize;

use crate::{
    batch::{BatchEvent, BatchState},
    result::{ImageResult, Outcome},
};

pub(super) fn put(db: &Connection, batch: &str, jobs: i64, results: i64) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO batches (batch, jobs, results) VALUES (?1, ?2, ?3)
         ON CONFLICT (batch) DO UPDATE SET jobs = jobs + excluded.jobs, results = results + excluded.results",
    )?
    .execute(params![batch, jobs, results])
    .map(drop)
}

pub(super) fn ended(db: &Connection, batch: &str) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE batches SET ended = ended + 1 WHERE batch = ?1")?.execute([batch]).map(drop)
}

pub(super) fn buried(db: &Connection, batch: &str) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE batches SET dead = dead + 1 WHERE batch = ?1")?.execute([batch]).map(drop)
}

pub(super) fn announced(db: &Connection, event: &BatchEvent) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO batches (batch, closed) VALUES (?1, ?2) ON CONFLICT (batch) DO UPDATE SET closed = excluded.closed",
    )?
    .execute(params![event.batch.as_str(), event.state == BatchState::Closed])
    .map(drop)
}

pub(super) fn result(db: &Connection, result: &ImageResult) -> rusqlite::Result<()> {
    let example = result.failure.as_ref().map_or("", |failure| &failure.message);
    db.prepare_cached(
        "INSERT INTO outcomes (batch, outcome, reason, results, example) VALUES (?1, ?2, ?3, 1, ?4)
         ON CONFLICT (batch, outcome, reason) DO UPDATE SET results = results + 1",
    )?
    .execute(params![result.batch.as_str(), result.outcome.as_str(), reason(result), example])
    .map(drop)
}

/// Why a result has no answer, in a few words of which there are few: the class, and the status where one came.
fn reason(result: &ImageResult) -> String {
    let Some(failure) = &result.failure else {
        return String::new();
    };
    match result.call.as_ref().and_then(|call| call.status) {
        Some(status) => format!("{} ({status})", failure.class),
        None => failure.class.clone(),
    }
}

pub(super) fn call(db: &Connection, result: &ImageResult) -> rusqlite::Result<()> {
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

/// Where a batch stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BatchCounts {
    /// Its name.
    pub batch: String,
    /// Jobs put in.
    pub jobs: u64,
    /// Results that they promise.
    pub expected: u64,
    /// Jobs completed.
    pub ended: u64,
    /// Jobs that are dead letters.
    pub dead_letters: u64,
    /// Whether its enqueue put in all that it had.
    pub closed: bool,
    /// Results by outcome.
    pub results: BTreeMap<&'static str, u64>,
    /// Results without an answer, by reason.
    pub failures: Vec<FailureCount>,
    /// Calls behind the results, by provider.
    pub calls: Vec<CallCounts>,
}

/// Results that failed for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailureCount {
    /// `rejected` or `dead`.
    pub outcome: &'static str,
    /// The class of the failure, and the HTTP status where one came: `rejected (422)`.
    pub reason: String,
    /// How many.
    pub results: u64,
    /// What was said of the first of them.
    pub example: String,
}

/// The calls that settled a batch's results, at one provider.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CallCounts {
    /// The provider.
    pub provider: String,
    /// How many.
    pub calls: u64,
    /// The first departure, in microseconds since 1970.
    pub first_us: i64,
    /// The last departure, in microseconds since 1970.
    pub last_us: i64,
    /// From departure to answer, in microseconds, in sum.
    pub duration_us: u64,
    /// What they cost, in the provider's units.
    pub cost: f64,
    /// "Over the limit" answers that the jobs met.
    pub throttled: u64,
    /// The binding limit when they left, calls per second; the highest, if it changed.
    pub limit_per_s: Option<f64>,
}

impl FailureCount {
    /// How many, and why, in a few words: `12 rejected (422)`, `3 dead: transient (500)`.
    pub fn in_words(&self) -> String {
        let Self { outcome, reason, results, .. } = self;
        // The class often is the outcome's own word.
        match reason.strip_prefix(outcome) {
            Some(status) => format!("{results} {outcome}{status}"),
            None => format!("{results} {outcome}: {reason}"),
        }
    }
}

impl BatchCounts {
    /// Results that are there.
    pub fn seen(&self) -> u64 {
        self.results.values().sum()
    }

    /// Results of this outcome.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.results.get(outcome.as_str()).copied().unwrap_or(0)
    }

    /// Whether everything that was promised is there, and no more is to come.
    pub fn complete(&self) -> bool {
        self.closed && self.ended + self.dead_letters >= self.jobs
    }
}

/// The counts of `batch`, or of all.
pub(super) fn read(db: &Connection, batch: Option<&str>) -> rusqlite::Result<Vec<BatchCounts>> {
    let mut query = db.prepare_cached(
        "SELECT batch, jobs, results, ended, dead, closed FROM batches WHERE ?1 IS NULL OR batch = ?1 ORDER BY batch",
    )?;
    let rows = query.query_map([batch], |row| {
        Ok(BatchCounts {
            batch: row.get(0)?,
            jobs: row.get::<_, i64>(1)?.unsigned_abs(),
            expected: row.get::<_, i64>(2)?.unsigned_abs(),
            ended: row.get::<_, i64>(3)?.unsigned_abs(),
            dead_letters: row.get::<_, i64>(4)?.unsigned_abs(),
            closed: row.get(5)?,
            ..BatchCounts::default()
        })
    })?;
    let mut batches: Vec<BatchCounts> = rows.collect::<Result<_, _>>()?;
    for counts in &mut batches {
        outcomes(db, counts)?;
        counts.calls = calls(db, &counts.batch)?;
    }
    Ok(batches)
}

fn outcomes(db: &Connection, counts: &mut BatchCounts) -> rusqlite::Result<()> {
    let mut query = db.prepare_cached(
        "SELECT outcome, reason, results, example FROM outcomes WHERE batch = ?1 ORDER BY results DESC",
    )?;
    let mut rows = query.query([&counts.batch])?;
    while let Some(row) = rows.next()? {
        let word: String = row.get(0)?;
        let Some(outcome) = Outcome::ALL.into_iter().find(|outcome| outcome.as_str() == word) else {
            continue;
        };
        let results = row.get::<_, i64>(2)?.unsigned_abs();
        *counts.results.entry(outcome.as_str()).or_default() += results;
        if outcome != Outcome::Ok {
            let (reason, example) = (row.get(1)?, row.get(3)?);
            counts.failures.push(FailureCount { outcome: outcome.as_str(), reason, results, example });
        }
    }
    Ok(())
}

fn calls(db: &Connection, batch: &str) -> rusqlite::Result<Vec<CallCounts>> {
    let mut query = db.prepare_cached(
        "SELECT provider, calls, first_us, last_us, duration_us, cost_nano, throttled, limit_per_s FROM calls
         WHERE batch = ?1 ORDER BY provider",
    )?;
    let rows = query.query_map([batch], |row| {
        Ok(CallCounts {
            provider: row.get(0)?,
            calls: row.get::<_, i64>(1)?.unsigned_abs(),
            first_us: row.get(2)?,
            last_us: row.get(3)?,
            duration_us: row.get::<_, i64>(4)?.unsigned_abs(),
            cost: row.get::<_, i64>(5)? as f64 / 1e9,
            throttled: row.get::<_, i64>(6)?.unsigned_abs(),
            limit_per_s: row.get(7)?,
        })
    })?;
    rows.collect()
}
