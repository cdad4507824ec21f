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
mod filter;
mod identity;

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use pixfleet_shared::id::Id;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use filter::Filter;
pub use identity::Identity;

/// Ids in `tail` at which they are moved to `confirmed`.
const MERGE_AT: usize = 64 * 1024;
/// SQLite's page cache in KiB.
const CACHE_KIB: u32 = 4 * 1024;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    -- The run that last saw the id: an id of this run is a repetition, an older one was confirmed before.
    CREATE TABLE IF NOT EXISTS confirmed (id BLOB PRIMARY KEY, run INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS tail (id BLOB NOT NULL, run INTEGER NOT NULL);
";

/// The local record of one batch.
#[derive(Debug)]
pub struct Record {
    db: Connection,
    path: PathBuf,
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

/// A record that can't be used; the variants are the caller's next moves.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Choose another batch name, or the settings that the batch was begun with.
    #[error(
        "batch `{batch}` was begun with {what} {was}, and now it is {is}: choose another --batch, or keep to {was} (record: {path})"
    )]
    Another {
        /// The batch.
        batch: String,
        /// What differs.
        what: &'static str,
        /// Its value on record.
        was: String,
        /// Its value now.
        is: String,
        /// The record's file.
        path: String,
    },
    /// Wait for the other one.
    #[error("another enqueue is at work on this batch (record: {0}): wait for it, or end it")]
    InUse(String),
    /// Choose another file.
    #[error("{0} is not a record of an enqueue: give another --record, or another --batch")]
    NotARecord(String),
    /// Mend the file or its disk.
    #[error("the record {path} can't be used: {cause}")]
    Broken {
        /// The record's file.
        path: String,
        /// What the disk or the database said.
        cause: String,
    },
}

impl Record {
    /// Opens or creates the record at `path`, for the batch that `identity` names.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn open(path: &Path, identity: &Identity) -> Result<Self, RecordError> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|error| broken(path, error))?;
        }
        let db = Connection::open(path).map_err(|error| explain(path, error))?;
        // WAL: a commit is one append, not a sync of the table; a power cut may take the last commits with it, and
        // those jobs are published once more. Exclusive: two runs at once would enqueue the same rows.
        let pragmas =
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
                       PRAGMA journal_size_limit = 4194304;";
        let prepared = db.busy_timeout(Duration::from_millis(200)).and_then(|()| db.execute_batch(pragmas));
        prepared.map_err(|error| explain(path, error))?;
        Self::begin(db, path, identity)
    }

    /// A scratch record that knows what the one at `path` knows (if it exists) and leaves that one as it is.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn rehearse(path: &Path, identity: &Identity) -> Result<Self, RecordError> {
        // An empty name is a private file of SQLite's that goes with the connection.
        let db = Connection::open("").map_err(|error| broken(path, error))?;
        db.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
            .map_err(|error| broken(path, error))?;
        if path.exists() {
            copy(&db, path).map_err(|error| explain(path, error))?;
        }
        Self::begin(db, path, identity)
    }

    fn begin(db: Connection, path: &Path, identity: &Identity) -> Result<Self, RecordError> {
        let explain = |error| explain(path, error);
        db.pragma_update(None, "cache_size", -i64::from(CACHE_KIB)).map_err(explain)?;
        foreign(&db, path)?;
        db.execute_batch(SCHEMA).map_err(explain)?;
        let number = |key: &str| number(&db, key).map_err(explain);
        // The lane is written before the first job is published.
        let lane = number("lane")?.and_then(|lane| u8::try_from(lane).ok());
        identity.keep_or_compare(&db, path, lane.is_some())?;
        let totals = Totals {
            jobs: number("jobs")?.unwrap_or(0) as u64,
            results: number("results")?.unwrap_or(0) as u64,
        };
        let run = number("run")?.unwrap_or(0) + 1;
        set(&db, "run", run).map_err(explain)?;
        let mut record = Self {
            db,
            path: path.to_owned(),
            run,
            totals,
            lane,
            filter: Filter::new(),
            recent: HashSet::new(),
            in_tail: 0,
        };
        record.merge().map_err(explain)?;
        record.fill_filter().map_err(explain)?;
        Ok(record)
    }

    /// The record's file.
    pub fn path(&self) -> &Path {
        &self.path
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
        set(&self.db, "lane", i64::from(lane)).map_err(|error| explain(&self.path, error))?;
        self.lane = Some(lane);
        Ok(())
    }

    /// What is known of each id; from now on this run has seen it.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn claim(&mut self, ids: &[Id]) -> Result<Vec<Claim>, RecordError> {
        let claims = self.look_up(ids).map_err(|error| explain(&self.path, error))?;
        let seen_again: Vec<Id> = ids
            .iter()
            .zip(&claims)
            .filter_map(|(id, claim)| (*claim == Claim::Already).then_some(*id))
            .collect();
        // Marked as seen by this run, so that its next mention is a duplicate.
        if !seen_again.is_empty() {
            self.append(&seen_again, Totals::default())?;
        }
        Ok(claims)
    }

    /// Records that the queue has confirmed these claimed, fresh jobs, which ask for `results` results.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn confirm(&mut self, ids: &[Id], results: u64) -> Result<Totals, RecordError> {
        let more = Totals { jobs: ids.len() as u64, results };
        self.append(ids, more)?;
        Ok(self.totals)
    }

    fn look_up(&mut self, ids: &[Id]) -> rusqlite::Result<Vec<Claim>> {
        let mut query = self.db.prepare_cached("SELECT run FROM confirmed WHERE id = ?1")?;
        let mut claims = Vec::with_capacity(ids.len());
        for id in ids {
            let claim = if self.recent.contains(id) {
                Claim::Duplicate
            } else if !self.filter.may_contain(*id) {
                Claim::Fresh
            } else {
                match query.query_row([id.to_bytes()], |row| row.get::<_, i64>(0)).optional()? {
                    Some(run) if run == self.run => Claim::Duplicate,
                    Some(_) => Claim::Already,
                    None => Claim::Fresh,
                }
            };
            if claim != Claim::Duplicate {
                self.recent.insert(*id);
            }
            claims.push(claim);
        }
        Ok(claims)
    }

    /// Appends to `tail` and counts, in one transaction.
    fn append(&mut self, ids: &[Id], more: Totals) -> Result<(), RecordError> {
        let totals =
            Totals { jobs: self.totals.jobs + more.jobs, results: self.totals.results + more.results };
        append(&mut self.db, ids, self.run, totals).map_err(|error| explain(&self.path, error))?;
        self.totals = totals;
        self.in_tail += ids.len();
        if self.in_tail >= MERGE_AT {
            self.merge().map_err(|error| explain(&self.path, error))?;
        }
        Ok(())
    }

    /// Moves `tail` to `confirmed`, sorted, so that each page of the table is written once. Sorted here: SQLite's own
    /// sorter would take another cache's worth of memory.
    fn merge(&mut self) -> rusqlite::Result<()> {
        let mut ids: Vec<(Id, i64)> = Vec::with_capacity(self.in_tail);
        let change = self.db.transaction()?;
        {
            let mut tail = change.prepare_cached("SELECT id, run FROM tail")?;
            let mut rows = tail.query([])?;
            while let Some(row) = rows.next()? {
                ids.push((Id::from_bytes(row.get(0)?), row.get(1)?));
            }
            ids.sort_unstable();
            let mut insert = change.prepare_cached(
                "INSERT INTO confirmed (id, run) VALUES (?1, ?2)
                 ON CONFLICT (id) DO UPDATE SET run = max(run, excluded.run)",
            )?;
            // Whatever the tail of an earlier run holds keeps that run.
            for (id, run) in &ids {
                insert.execute(params![id.to_bytes(), run])?;
            }
        }
        change.execute("DELETE FROM tail", [])?;
        change.commit()?;
        for (id, _) in ids {
            self.filter.insert(id);
            self.recent.remove(&id);
        }
        self.in_tail = 0;
        Ok(())
    }

    fn fill_filter(&mut self) -> rusqlite::Result<()> {
        let mut query = self.db.prepare("SELECT id FROM confirmed")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            self.filter.insert(Id::from_bytes(row.get(0)?));
        }
        Ok(())
    }
}

fn append(db: &mut Connection, ids: &[Id], run: i64, totals: Totals) -> rusqlite::Result<()> {
    let change = db.transaction()?;
    {
        let mut insert = change.prepare_cached("INSERT INTO tail (id, run) VALUES (?1, ?2)")?;
        for id in ids {
            insert.execute(params![id.to_bytes(), run])?;
        }
    }
    set(&change, "jobs", totals.jobs as i64)?;
    set(&change, "results", totals.results as i64)?;
    change.commit()
}

fn copy(db: &Connection, path: &Path) -> rusqlite::Result<()> {
    db.execute("ATTACH ?1 AS kept", [path.to_string_lossy()])?;
    let tables: i64 = db.query_row(
        "SELECT count(*) FROM kept.sqlite_schema WHERE name IN ('meta', 'confirmed', 'tail')",
        [],
        |row| row.get(0),
    )?;
    if tables == 3 {
        db.execute_batch(SCHEMA)?;
        db.execute_batch(
            "INSERT INTO main.meta SELECT * FROM kept.meta;
             INSERT INTO main.confirmed SELECT * FROM kept.confirmed ORDER BY id;
             INSERT INTO main.tail SELECT * FROM kept.tail;",
        )?;
    }
    db.execute_batch("DETACH kept")
}

/// Refuses a database of somebody else's, before a table is added to it.
fn foreign(db: &Connection, path: &Path) -> Result<(), RecordError> {
    let (tables, ours): (i64, i64) = db
        .query_row(
            "SELECT count(*), coalesce(sum(name IN ('meta', 'confirmed', 'tail')), 0)
             FROM sqlite_schema WHERE type = 'table'",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .map_err(|error| explain(path, error))?;
    if tables == ours { Ok(()) } else { Err(RecordError::NotARecord(path.display().to_string())) }
}

fn number(db: &Connection, key: &str) -> rusqlite::Result<Option<i64>> {
    db.query_row("SELECT CAST(value AS INTEGER) FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()
}

fn set(db: &Connection, key: &str, value: i64) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
        .execute(params![key, value.to_string()])
        .map(drop)
}

fn explain(path: &Path, error: rusqlite::Error) -> RecordError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            RecordError::InUse(path.display().to_string())
        }
        Some(ErrorCode::NotADatabase) => RecordError::NotARecord(path.display().to_string()),
        _ => broken(path, error),
    }
}

fn broken(path: &Path, cause: impl std::fmt::Display) -> RecordError {
    RecordError::Broken { path: path.display().to_string(), cause: cause.to_string() }
}

#[cfg(test)]
mod tests;
