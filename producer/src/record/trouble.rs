//! What can be wrong with a record, as the user's next moves.

use std::path::Path;

use pixfleet_shared::embedded::StoreError;
use rusqlite::ErrorCode;

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
    /// Mend the state file that the record is kept in, or its disk.
    #[error(transparent)]
    State(#[from] StoreError),
    /// Wait for the other one.
    #[error("another enqueue is at work on this batch (record: {0}): wait for it, or end it")]
    InUse(String),
    /// Wait for the other one: two runs of a batch would write the same outputs.
    #[error(
        "another `pixfleet run` is at work on batch `{batch}` (state: {path}): wait for it, or end it; to start another \
         run, give another --batch"
    )]
    Running {
        /// The batch.
        batch: String,
        /// The state file.
        path: String,
    },
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

/// What SQLite said of the record at `path`.
pub(super) fn explain(path: &Path, error: rusqlite::Error) -> RecordError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            RecordError::InUse(path.display().to_string())
        }
        Some(ErrorCode::NotADatabase) => RecordError::NotARecord(path.display().to_string()),
        _ => broken(path, error),
    }
}

pub(super) fn broken(path: &Path, cause: impl std::fmt::Display) -> RecordError {
    RecordError::Broken { path: path.display().to_string(), cause: cause.to_string() }
}
