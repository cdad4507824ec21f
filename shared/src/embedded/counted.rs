//! Every statement that reads the counts of batches, and what is shown of them.

use std::collections::BTreeMap;

use rusqlite::Connection;
use serde::Serialize;

use super::standing;
use crate::{
    batches::{Held, Progress},
    result::Outcome,
};

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
    /// What keeps it, if anything.
    pub held: Option<Held>,
    /// Results by outcome.
    pub results: BTreeMap<&'static str, u64>,
    /// Results that are answers of before: among those with the outcome `ok`.
    pub cached: u64,
    /// Results without an answer, by reason.
    pub failures: Vec<FailureCount>,
    /// Calls behind the results, by provider.
    pub calls: Vec<CallCounts>,
}

/// Results that failed for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailureCount {
    /// Any but `ok`: `rejected`, `dead`, `cancelled` or `ambiguous`.
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
    /// Outcomes that no result has are left out.
    fn tallied(&mut self, progress: Progress) {
        let Progress { tally, held, .. } = progress;
        let results = [
            (Outcome::Ok, tally.ok + tally.cached),
            (Outcome::Rejected, tally.rejected),
            (Outcome::Dead, tally.dead),
            (Outcome::Cancelled, tally.cancelled),
            (Outcome::Ambiguous, tally.ambiguous),
        ];
        self.results = results
            .into_iter()
            .filter(|(_, results)| *results > 0)
            .map(|(outcome, results)| (outcome.as_str(), results))
            .collect();
        (self.cached, self.held) = (tally.cached, held);
    }

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
        if let Some(progress) = standing::one(db, &counts.batch)? {
            counts.tallied(progress);
        }
        counts.failures = failures(db, &counts.batch)?;
        counts.calls = calls(db, &counts.batch)?;
    }
    Ok(batches)
}

fn failures(db: &Connection, batch: &str) -> rusqlite::Result<Vec<FailureCount>> {
    let mut query = db.prepare_cached(
        "SELECT outcome, reason, results, example FROM outcomes WHERE batch = ?1 ORDER BY results DESC",
    )?;
    let mut rows = query.query([batch])?;
    let mut failures = Vec::new();
    while let Some(row) = rows.next()? {
        let word: String = row.get(0)?;
        let outcome = Outcome::ALL.into_iter().find(|outcome| outcome.as_str() == word);
        let Some(outcome) = outcome.filter(|outcome| *outcome != Outcome::Ok) else { continue };
        failures.push(FailureCount {
            outcome: outcome.as_str(),
            reason: row.get(1)?,
            results: row.get::<_, i64>(2)?.unsigned_abs(),
            example: row.get(3)?,
        });
    }
    Ok(failures)
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
