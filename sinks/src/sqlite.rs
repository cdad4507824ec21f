//! SQLite: images, results and calls as tables, each result once by its id.
//!
//! The journal is a WAL while the file is written, so that others can query it meanwhile without stopping the writer;
//! `finish` takes it back into the file, which then is one file again.

mod rows;

use std::{path::Path, time::Duration};

use pixfleet_shared::result::ImageResult;
use rusqlite::{Connection, ErrorCode};

use self::rows::Last;
use crate::{
    error::SinkError,
    sink::{Begin, Mark},
    text::create,
};

/// The tables, as a reader of the file sees them.
const SCHEMA: &str = include_str!("sqlite.sql");
/// "pxfl": what `file` and this crate know the database by.
const APPLICATION: i32 = 0x7078_666c;
/// The version of [`SCHEMA`].
const VERSION: i32 = 2;
/// What the tables of version 1 lack.
const SINCE_1: &str = "ALTER TABLE results ADD COLUMN cached INTEGER NOT NULL DEFAULT 0";
/// SQLite's page cache in KiB; what does not fit is spilled to the WAL before its commit.
const CACHE_KIB: i64 = 16 * 1024;
/// Pages in the WAL at which they go into the file, 64 MiB. Ids are hashes, so each commit changes pages all over the file;
/// the rarer a checkpoint, the oftener it writes a page once that was changed many times.
const CHECKPOINT_PAGES: i64 = 16_000;
/// How long a commit waits for others that hold the file.
const PATIENCE: Duration = Duration::from_secs(5);

/// A database of results.
pub(crate) struct Sqlite {
    db: Connection,
    /// Results that went into the file.
    written: u64,
    /// Results of the open transaction.
    open: u64,
    last: Last,
}

impl Sqlite {
    pub(crate) fn open(path: &Path, begin: Begin) -> Result<Self, SinkError> {
        let mark = match begin {
            Begin::New => {
                create(path)?;
                Mark::default()
            }
            Begin::After(_) if !path.exists() => return Err(SinkError::Gone { path: path.to_owned() }),
            Begin::After(mark) => mark,
        };
        let db = Connection::open(path).map_err(|error| explain(path, error))?;
        recognise(&db, path, mark)?;
        let written = prepare(&db).map_err(|error| explain(path, error))?;
        if written < mark.rows {
            let path = path.to_owned();
            return Err(SinkError::Shortened { path, has: written, wants: mark.rows, unit: "results" });
        }
        Ok(Self { db, written, open: 0, last: Last::default() })
    }

    pub(crate) fn write(&mut self, path: &Path, results: &[ImageResult]) -> Result<(), SinkError> {
        self.add(results).map_err(|error| explain(path, error))?;
        self.open += results.len() as u64;
        Ok(())
    }

    pub(crate) fn commit(&mut self, path: &Path) -> Result<Mark, SinkError> {
        self.end_transaction().map_err(|error| explain(path, error))?;
        let bytes = path.metadata().map_err(|cause| SinkError::io(path, cause))?.len();
        Ok(Mark { bytes, rows: self.written })
    }

    pub(crate) fn finish(mut self, path: &Path) -> Result<Mark, SinkError> {
        self.commit(path)?;
        // Refused while another program has the file open: the WAL then goes when that one closes it.
        match self.db.pragma_update(None, "journal_mode", "DELETE").map_err(|error| explain(path, error)) {
            Err(SinkError::InUse { .. }) | Ok(()) => self.commit(path),
            Err(error) => Err(error),
        }
    }

    fn add(&mut self, results: &[ImageResult]) -> rusqlite::Result<()> {
        if self.db.is_autocommit() {
            self.db.execute_batch("BEGIN IMMEDIATE")?;
        }
        self.last.add(&self.db, results)
    }

    fn end_transaction(&mut self) -> rusqlite::Result<()> {
        if self.db.is_autocommit() {
            return Ok(());
        }
        // Added, not set: another run may write to the same file in between.
        let count = "UPDATE written SET results = results + ?1 RETURNING results";
        let written: i64 = self.db.query_row(count, [self.open as i64], |row| row.get(0))?;
        self.db.execute_batch("COMMIT")?;
        (self.written, self.open) = (written as u64, 0);
        Ok(())
    }
}

/// Refuses a database of somebody else's before anything is added to it, or changed in it.
fn recognise(db: &Connection, path: &Path, mark: Mark) -> Result<(), SinkError> {
    let number =
        |query| db.query_row(query, [], |row| row.get::<_, i32>(0)).map_err(|error| explain(path, error));
    let application = number("PRAGMA application_id")?;
    let version = number("PRAGMA user_version")?;
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    match (application, version) {
        (APPLICATION, 1 | VERSION) => Ok(()),
        (APPLICATION, other) => {
            let what = format!("has tables of version {other}, this build writes version {VERSION}");
            Err(SinkError::foreign(path, what))
        }
        // Nothing was ever committed to it.
        (0, 0) if tables == 0 && mark.rows == 0 => Ok(()),
        _ => Err(SinkError::foreign(path, "is not a database of pixfleet's results")),
    }
}

/// Sets the connection up, makes the tables where there are none, and says how many results went into them.
fn prepare(db: &Connection) -> rusqlite::Result<u64> {
    db.busy_timeout(PATIENCE)?;
    db.pragma_update(None, "cache_size", -CACHE_KIB)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    db.pragma_update(None, "journal_size_limit", 0)?;
    let made: bool = db.query_row("SELECT count(*) > 0 FROM sqlite_schema", [], |row| row.get(0))?;
    if !made {
        // One transaction: a file without its mark is an empty one.
        db.execute_batch(&format!(
            "BEGIN IMMEDIATE;\n{SCHEMA}\nPRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT;"
        ))?;
    }
    if version(db)? == 1 {
        db.execute_batch("BEGIN IMMEDIATE")?;
        // Another process may have done it meanwhile.
        if version(db)? == 1 {
            db.execute_batch(SINCE_1)?;
            db.pragma_update(None, "user_version", VERSION)?;
        }
        db.execute_batch("COMMIT")?;
    }
    let written: i64 = db.query_row("SELECT results FROM written", [], |row| row.get(0))?;
    Ok(written as u64)
}

fn version(db: &Connection) -> rusqlite::Result<i32> {
    db.query_row("PRAGMA user_version", [], |row| row.get(0))
}

fn explain(path: &Path, error: rusqlite::Error) -> SinkError {
    use std::io::{Error, ErrorKind};
    let io = |kind| SinkError::io(path, Error::new(kind, error.to_string()));
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            SinkError::InUse { path: path.to_owned() }
        }
        Some(ErrorCode::NotADatabase) => SinkError::foreign(path, "is not a database of pixfleet's results"),
        Some(ErrorCode::DiskFull) => io(ErrorKind::StorageFull),
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            io(ErrorKind::PermissionDenied)
        }
        Some(ErrorCode::SystemIoFailure) => io(ErrorKind::Other),
        _ => SinkError::broken(path, error),
    }
}

#[cfg(test)]
mod tests;
