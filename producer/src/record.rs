//! The record: which jobs of a batch the queue has confirmed, kept in a local file so that an enqueue can be run again.
//!
//! An id enters the record after the queue confirmed its job, so what is on record is durable on the queue. A job that
//! was confirmed but not yet recorded when the process died is published once more by the next run: it has the same
//! id, and the workers' ledger makes the repetition free.
//!
//! Ids are hashes, so each one lands on a random page of the table. To keep that cheap at any size, confirmed ids
//! are appended to `tail` (one small transaction for each chunk) and moved to `confirmed` in sorted order once there
//! are `MERGE_AT`; a filter of fixed size answers for most ids that were never seen. Memory does not grow with the
//! batch: SQLite's cache, the filter, and the ids of `tail`.

pub(crate) mod clerk;
mod confirmed;
mod filter;
mod home;
mod identity;
mod tail;
mod trouble;

use std::{collections::HashSet, path::Path, sync::Arc};

use pixfleet_shared::{
    batch::BatchName,
    embedded::{self, Store, StoreError},
    id::Id,
    job::Job,
};
use rusqlite::{Connection, OptionalExtension, params};

pub use confirmed::Confirmed;
use filter::Filter;
use home::Home;
pub use identity::Identity;
use tail::Tail;
pub use trouble::RecordError;

/// Ids in `tail` at which they are moved to `confirmed`.
const MERGE_AT: usize = 64 * 1024;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    -- The run that last saw the id: an id of this run is a repetition, an older one was confirmed before.
    CREATE TABLE IF NOT EXISTS confirmed (id BLOB PRIMARY KEY, run INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS tail (id BLOB NOT NULL, run INTEGER NOT NULL);
";

/// The provider that a batch of the state file was begun for; none where whoever put its jobs in kept no record there.
///
/// # Errors
/// What SQLite said.
pub async fn provider_of(state: &Store, batch: &str) -> Result<Option<String>, StoreError> {
    let scope = home::scope(batch);
    state.read(move |db| identity::provider(db, &scope)).await
}

/// The local record of one batch.
#[derive(Debug)]
pub struct Record {
    home: Home,
    run: i64,
    totals: Totals,
    lane: Option<u8>,
    filter: Filter,
    /// Ids of this run that are not yet in `confirmed`: claimed, or in `tail`.
    recent: HashSet<Id>,
    in_tail: usize,
}

/// What is known of an id that is about to be enqueued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nothing: enqueue it.
    Fresh,
    /// An earlier run had it confirmed: nothing to do.
    Already,
    /// This run has seen it before: the manifest names it twice.
    Duplicate,
}

/// What the queue has confirmed of a batch, over every run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Totals {
    /// Distinct jobs.
    pub jobs: u64,
    /// Models of those jobs: the results to expect.
    pub results: u64,
}

impl Record {
    /// Opens or creates the record at `path`, for the batch that `identity` names.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn open(path: &Path, identity: &Identity) -> Result<Self, RecordError> {
        Self::begin(Home::file(path)?, identity)
    }

    /// Opens or creates the record of a batch whose jobs are in a state file: it is kept there, too, and a job and its
    /// mention go in together ([`put`](Self::put)). Not for async code.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn within(state: Arc<Store>, identity: &Identity) -> Result<Self, RecordError> {
        Self::begin(Home::state(state, identity.batch())?, identity)
    }

    /// Keeps the whole of the batch for this process, until it closes the state file: another one that asks for the same
    /// is refused. Whoever only enqueues ([`within`](Self::within)) does not ask. Not for async code.
    ///
    /// # Errors
    /// [`RecordError::Running`], or what is wrong with the file.
    pub fn run_alone(state: &Arc<Store>, batch: &BatchName) -> Result<(), RecordError> {
        home::run_alone(state, batch.as_str())
    }

    /// A scratch record that knows what the one at `path` knows (if it exists) and leaves that one as it is.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn rehearse(path: &Path, identity: &Identity) -> Result<Self, RecordError> {
        Self::begin(Home::scratch(path, "")?, identity)
    }

    /// A scratch record that knows what the state file at `path` (if it exists) knows of the batch.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn rehearse_within(path: &Path, identity: &Identity) -> Result<Self, RecordError> {
        Self::begin(Home::scratch(path, &home::scope(identity.batch()))?, identity)
    }

    fn begin(mut home: Home, identity: &Identity) -> Result<Self, RecordError> {
        let (scope, identity) = (home.scope().to_owned(), identity.clone());
        let begun = home.change(move |db| {
            db.execute_batch(SCHEMA)?;
            let number = |key: &str| number(db, &scope, key);
            // The lane is written before the first job is published.
            let lane = number("lane")?.and_then(|lane| u8::try_from(lane).ok());
            let differs = identity.keep_or_compare(db, &scope, lane.is_some())?;
            let totals = Totals {
                jobs: number("jobs")?.unwrap_or(0) as u64,
                results: number("results")?.unwrap_or(0) as u64,
            };
            let run = number("run")?.unwrap_or(0) + 1;
            if differs.is_none() {
                set(db, &scope, "run", run)?;
            }
            Ok((lane, totals, run, differs))
        });
        let (lane, totals, run, differs) = begun?;
        if let Some(differs) = differs {
            return Err(differs.of(home.path()));
        }
        let mut record =
            Self { home, run, totals, lane, filter: Filter::new(), recent: HashSet::new(), in_tail: 0 };
        record.merge()?;
        record.fill_filter()?;
        Ok(record)
    }

    /// The record's file.
    pub fn path(&self) -> &Path {
        self.home.path()
    }

    /// Whether jobs go into the file that the record is kept in: then [`put`](Self::put) is the way to enqueue them.
    pub fn holds_the_jobs(&self) -> bool {
        matches!(self.home, Home::State { .. })
    }

    /// What the queue has confirmed so far, over every run.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The lane that the batch keeps to, once it has one.
    pub fn lane(&self) -> Option<u8> {
        self.lane
    }

    /// Gives the batch its lane.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn keep_to_lane(&mut self, lane: u8) -> Result<(), RecordError> {
        let scope = self.home.scope().to_owned();
        self.home.change(move |db| set(db, &scope, "lane", i64::from(lane)))?;
        self.lane = Some(lane);
        Ok(())
    }

    /// What is known of each id; from now on this run has seen it.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn claim(&mut self, ids: &[Id]) -> Result<Vec<Claim>, RecordError> {
        let claims = self.look_up(ids)?;
        let seen_again: Vec<Id> = ids
            .iter()
            .zip(&claims)
            .filter_map(|(id, claim)| (*claim == Claim::Already).then_some(*id))
            .collect();
        // Marked as seen by this run, so that its next mention is a duplicate.
        if !seen_again.is_empty() {
            self.append(seen_again, Totals::default(), Vec::new())?;
        }
        Ok(claims)
    }

    /// Records that the queue has confirmed these claimed, fresh jobs, which ask for `results` results.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn confirm(&mut self, ids: &[Id], results: u64) -> Result<Totals, RecordError> {
        let more = Totals { jobs: ids.len() as u64, results };
        self.append(ids.to_vec(), more, Vec::new())?;
        Ok(self.totals)
    }

    /// Puts claimed, fresh jobs into the state file and records them, in one transaction: no crash comes in between.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn put(&mut self, jobs: &[Job]) -> Result<Totals, RecordError> {
        let rows = jobs.iter().map(embedded::Row::of).collect::<Result<Vec<_>, _>>();
        let rows = rows.map_err(|error| trouble::broken(self.home.path(), error))?;
        let results = jobs.iter().map(|job| job.models.len() as u64).sum();
        let more = Totals { jobs: jobs.len() as u64, results };
        self.append(jobs.iter().map(|job| job.id).collect(), more, rows)?;
        self.home.jobs_were_put();
        Ok(self.totals)
    }

    /// Ends this run: another one may begin.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn end(mut self) -> Result<(), RecordError> {
        self.home.leave()
    }

    fn look_up(&mut self, ids: &[Id]) -> Result<Vec<Claim>, RecordError> {
        let mut doubtful: Vec<Id> = ids
            .iter()
            .copied()
            .filter(|id| !self.recent.contains(id) && self.filter.may_contain(*id))
            .collect();
        let runs = if doubtful.is_empty() {
            Vec::new()
        } else {
            let asked = std::mem::take(&mut doubtful);
            self.home.change(move |db| runs_of(db, asked))?
        };
        let mut runs = runs.into_iter();
        let mut claims = Vec::with_capacity(ids.len());
        for id in ids {
            // In the order in which they were asked; one that was named twice in one breath is known by now.
            let known = if !self.recent.contains(id) && self.filter.may_contain(*id) {
                runs.find_map(|(asked, run)| (asked == *id).then_some(run))
            } else {
                None
            };
            let claim = match known.flatten() {
                _ if self.recent.contains(id) => Claim::Duplicate,
                Some(run) if run == self.run => Claim::Duplicate,
                Some(_) => Claim::Already,
                None => Claim::Fresh,
            };
            if claim != Claim::Duplicate {
                self.recent.insert(*id);
            }
            claims.push(claim);
        }
        Ok(claims)
    }

    /// Appends to `tail` and counts, together with the jobs themselves where they go into the same file.
    fn append(&mut self, ids: Vec<Id>, more: Totals, jobs: Vec<embedded::Row>) -> Result<(), RecordError> {
        let totals =
            Totals { jobs: self.totals.jobs + more.jobs, results: self.totals.results + more.results };
        let (scope, run, count) = (self.home.scope().to_owned(), self.run, ids.len());
        self.home.change(move |db| {
            // A record in a file of its own has no jobs beside it, and no table for them.
            if !jobs.is_empty() {
                embedded::put(db, &jobs)?;
            }
            append(db, &scope, &ids, run, totals)
        })?;
        self.totals = totals;
        self.in_tail += count;
        if self.in_tail >= MERGE_AT { self.merge() } else { Ok(()) }
    }

    /// Moves `tail` to `confirmed`, sorted, so that few pages of the table are written more than once.
    ///
    /// Killed on the way, it is done again, and what was moved is moved to where it is.
    fn merge(&mut self) -> Result<(), RecordError> {
        let mut tail = self.home.change(tail::read)?;
        // Sorted here: SQLite's own sorter would take another cache's worth of memory.
        tail.sort_unstable_by_key(|row| row.id);
        for step in tail.chunks(tail::STEP) {
            let step = step.to_vec();
            self.home.change(move |db| tail::move_in(db, &step))?;
        }
        for Tail { id, .. } in &tail {
            self.filter.insert(*id);
            self.recent.remove(id);
        }
        tail.sort_unstable_by_key(|row| row.rowid);
        self.home.change(move |db| tail::clear(db, &tail))?;
        self.in_tail = 0;
        Ok(())
    }

    fn fill_filter(&mut self) -> Result<(), RecordError> {
        let mut filter = std::mem::replace(&mut self.filter, Filter::new());
        self.filter = self.home.change(move |db| {
            let mut query = db.prepare("SELECT id FROM confirmed")?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                filter.insert(Id::from_bytes(row.get(0)?));
            }
            Ok(filter)
        })?;
        Ok(())
    }
}

/// The run that last saw each id.
fn runs_of(db: &Connection, ids: Vec<Id>) -> rusqlite::Result<Vec<(Id, Option<i64>)>> {
    let mut query = db.prepare_cached("SELECT run FROM confirmed WHERE id = ?1")?;
    let run = |id: Id| Ok((id, query.query_row([id.to_bytes()], |row| row.get(0)).optional()?));
    ids.into_iter().map(run).collect()
}

fn append(db: &Connection, scope: &str, ids: &[Id], run: i64, totals: Totals) -> rusqlite::Result<()> {
    let mut insert = db.prepare_cached("INSERT INTO tail (id, run) VALUES (?1, ?2)")?;
    for id in ids {
        insert.execute(params![id.to_bytes(), run])?;
    }
    set(db, scope, "jobs", totals.jobs as i64)?;
    set(db, scope, "results", totals.results as i64)
}

fn number(db: &Connection, scope: &str, key: &str) -> rusqlite::Result<Option<i64>> {
    let query = "SELECT CAST(value AS INTEGER) FROM meta WHERE key = ?1";
    db.query_row(query, [format!("{scope}{key}")], |row| row.get(0)).optional()
}

fn set(db: &Connection, scope: &str, key: &str, value: i64) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
        .execute(params![format!("{scope}{key}"), value.to_string()])
        .map(drop)
}

#[cfg(test)]
mod tests;
