//! Where a record is kept: a file of its own, or the state file that the batch's jobs are in.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use pixfleet_shared::embedded::{self, Store};
use rusqlite::Connection;

use super::{
    RecordError, SCHEMA, number, set,
    trouble::{broken, explain},
};

/// SQLite's page cache in KiB, of a file of its own.
const CACHE_KIB: u32 = 4 * 1024;
/// The keys under which a state file keeps who is at work on a batch: who enqueues, and who sees to all of it.
const AT_WORK: &str = "at work";
const RUNNING: &str = "running";

/// Where a record is kept.
#[derive(Debug)]
pub(super) enum Home {
    /// A file of its own, or a scratch one.
    File {
        db: Connection,
        path: PathBuf,
        /// What the keys begin with, where the file was copied from a state file.
        scope: String,
    },
    /// A state file, which holds other batches, too.
    State { store: State, scope: String },
}

/// A state file, for a type that is shown.
pub(super) struct State(Arc<Store>);

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "State({})", self.0.path().display())
    }
}

/// What the keys of a batch begin with in a file of several: no batch's name has a slash.
pub(super) fn scope(batch: &str) -> String {
    format!("{batch}/")
}

impl Home {
    /// A file of its own, kept from others while it is open.
    pub(super) fn file(path: &Path) -> Result<Self, RecordError> {
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
        Self::of_connection(db, path, "")
    }

    /// A private copy of what the file at `path` knows of the record whose keys begin with `scope`.
    pub(super) fn scratch(path: &Path, scope: &str) -> Result<Self, RecordError> {
        // An empty name is a private file of SQLite's that goes with the connection.
        let db = Connection::open("").map_err(|error| broken(path, error))?;
        db.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
            .map_err(|error| broken(path, error))?;
        if path.exists() {
            copy(&db, path).map_err(|error| explain(path, error))?;
        }
        Self::of_connection(db, path, scope)
    }

    fn of_connection(db: Connection, path: &Path, scope: &str) -> Result<Self, RecordError> {
        db.pragma_update(None, "cache_size", -i64::from(CACHE_KIB)).map_err(|error| explain(path, error))?;
        foreign(&db, path)?;
        Ok(Self::File { db, path: path.to_owned(), scope: scope.to_owned() })
    }

    /// The state file, with this process at work on the batch.
    pub(super) fn state(store: Arc<Store>, batch: &str) -> Result<Self, RecordError> {
        if !take_up(&store, batch, AT_WORK)? {
            return Err(RecordError::InUse(store.path().display().to_string()));
        }
        Ok(Self::State { store: State(store), scope: scope(batch) })
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::File { path, .. } => path,
            Self::State { store, .. } => store.0.path(),
        }
    }

    /// What the keys begin with.
    pub(super) fn scope(&self) -> &str {
        match self {
            Self::File { scope, .. } | Self::State { scope, .. } => scope,
        }
    }

    /// Does `work` in one transaction.
    pub(super) fn change<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, RecordError> {
        match self {
            Self::File { db, path, .. } => within(db, work).map_err(|error| explain(path, error)),
            Self::State { store, .. } => Ok(store.0.write_blocking(work)?),
        }
    }

    /// Whoever waits for jobs looks again.
    pub(super) fn jobs_were_put(&self) {
        if let Self::State { store, .. } = self {
            store.0.jobs_were_put();
        }
    }

    /// Nobody is at work on the batch any more. A file of its own says so by being closed.
    pub(super) fn leave(&mut self) -> Result<(), RecordError> {
        match self {
            Self::File { .. } => Ok(()),
            Self::State { scope, .. } => {
                let scope = scope.clone();
                self.change(move |db| set(db, &scope, AT_WORK, 0))
            }
        }
    }
}

/// Keeps the whole of `batch` for this process, until it closes the state file.
pub(super) fn run_alone(store: &Arc<Store>, batch: &str) -> Result<(), RecordError> {
    if take_up(store, batch, RUNNING)? {
        return Ok(());
    }
    Err(RecordError::Running { batch: batch.to_owned(), path: store.path().display().to_string() })
}

/// Puts this process down as the one that does `what` for `batch`; false while another one that lives is.
fn take_up(store: &Arc<Store>, batch: &str, what: &'static str) -> Result<bool, RecordError> {
    let (scope, token, member) = (scope(batch), store.token(), store.clone());
    let taken = store.write_blocking(move |db| {
        db.execute_batch(SCHEMA)?;
        let other = number(db, &scope, what)?.filter(|other| *other != token);
        if let Some(other) = other
            && embedded::is_member(db, other)?
        {
            return Ok(false);
        }
        member.join(db)?;
        set(db, &scope, what, token)?;
        Ok(true)
    });
    Ok(taken?)
}

fn within<T>(
    db: &mut Connection,
    work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let change = db.transaction()?;
    let made = work(&change)?;
    change.commit()?;
    Ok(made)
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
