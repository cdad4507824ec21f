//! What can be wrong with a state file, as the user's next moves.

use std::path::Path;

use rusqlite::{Error, ErrorCode};

use crate::{ledger::LedgerError, limiter::LimiterError, queue::QueueError};

/// A state file that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Make room, then run the same command again.
    #[error(
        "the disk is full: the state file {0} can't grow. What was answered before is kept; make room, then run the \
         same command again"
    )]
    Full(String),
    /// Give another file.
    #[error("{0} is not a state file of pixfleet: give another --state, or move it away")]
    Foreign(String),
    /// Use a newer pixfleet.
    #[error(
        "the state file {path} is of format {found}, this pixfleet reads {known}: use the newer pixfleet that wrote it"
    )]
    Later {
        /// The file.
        path: String,
        /// Its format.
        found: i64,
        /// The format of this build.
        known: i64,
    },
    /// Restore the file, or begin anew.
    #[error(
        "the state file {path} is damaged: {cause}. Keep a copy, and restore it from a backup; or save what can be read \
         with `sqlite3 {path} .recover`, and begin anew with another --state"
    )]
    Damaged {
        /// The file.
        path: String,
        /// What SQLite found.
        cause: String,
    },
    /// Try again: another process is writing.
    #[error("the state file {0} is kept busy by another process: try again, or end the other one")]
    Busy(String),
    /// Mend the file's rights, its folder or its disk.
    #[error("the state file {path} can't be used: {cause}. Is its folder there, and may you write in it?")]
    Unusable {
        /// The file.
        path: String,
        /// What the system said.
        cause: String,
    },
    /// Report it: this should not happen.
    #[error("the state file failed: {0}")]
    Broken(String),
    /// Nothing: it was closed.
    #[error("the state file is closed")]
    Closed,
}

impl StoreError {
    /// What SQLite said of the file at `path`.
    pub(super) fn of(path: &Path, error: &Error) -> Self {
        let path = path.display().to_string();
        let cause = match error {
            Error::SqliteFailure(code, text) => text.clone().unwrap_or_else(|| code.to_string()),
            other => other.to_string(),
        };
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full(path),
            Some(ErrorCode::NotADatabase) => Self::Foreign(path),
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged { path, cause },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy(path),
            Some(
                ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::SystemIoFailure,
            ) => Self::Unusable { path, cause },
            _ => Self::Broken(format!("{path}: {cause}")),
        }
    }

    /// Whether nothing more can be promised: it does not go away by itself.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Full(_) | Self::Damaged { .. } | Self::Unusable { .. } | Self::Foreign(_))
    }
}

impl From<StoreError> for QueueError {
    fn from(error: StoreError) -> Self {
        Self::Away(error.to_string())
    }
}

impl From<StoreError> for LimiterError {
    fn from(error: StoreError) -> Self {
        Self::Away(error.to_string())
    }
}

impl From<StoreError> for LedgerError {
    fn from(error: StoreError) -> Self {
        Self::Away(error.to_string())
    }
}
