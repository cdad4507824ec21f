//! What can be wrong with a file of results; the variants are the caller's next moves.

use std::{
    io,
    path::{Path, PathBuf},
};

/// A file that results can't be written to.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Choose a name with another end.
    #[error(
        "`{}` does not say what kind of file it is: let its name end in .jsonl, .ndjson, .csv, .parquet, .sqlite, .sqlite3 or .db",
        path.display()
    )]
    Unknown {
        /// The file.
        path: PathBuf,
    },
    /// Choose another name, or move the file away.
    #[error("`{}` exists: give another name, or move it away", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Begin anew: what was written is not there any more.
    #[error("`{}` is gone: put it back, or have it written anew from the first result on", path.display())]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// Part of what was written is not there any more.
    #[error(
        "`{}` has {has} {unit}, and {wants} were written to it: give another output, or delete the file to have it written anew",
        path.display()
    )]
    Shortened {
        /// The file.
        path: PathBuf,
        /// What is there.
        has: u64,
        /// What was committed.
        wants: u64,
        /// What is counted: bytes of a text file, results that went into a database.
        unit: &'static str,
    },
    /// The file is somebody else's, or another version's.
    #[error("`{}` {what}: give another name", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Another program writes to it, or holds the database.
    #[error("`{}` is in use by another program: end that one, or give another name", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The disk or the system refuses; what is not committed has to be written again.
    #[error("can't write `{}`: {cause}: {way_out}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
        /// What to do about it.
        way_out: &'static str,
    },
    /// The database or the encoder refuses; what is not committed has to be written again.
    #[error("can't write `{}`: {cause}: move it away, and have it written anew", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What was said.
        cause: String,
    },
}

impl SinkError {
    pub(crate) fn io(path: &Path, cause: io::Error) -> Self {
        let way_out = match cause.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                "make its folder, or give a name in another one"
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "give a name in a folder that you may write"
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                "make room on its disk, or give a name on another one"
            }
            io::ErrorKind::IsADirectory => "give the name of a file",
            _ => "mend its disk, or give a name on another one",
        };
        Self::Io { path: path.to_owned(), cause, way_out }
    }

    pub(crate) fn exists(path: &Path) -> Self {
        Self::Exists { path: path.to_owned() }
    }

    pub(crate) fn foreign(path: &Path, what: impl Into<String>) -> Self {
        Self::Foreign { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn broken(path: &Path, cause: impl std::fmt::Display) -> Self {
        Self::Broken { path: path.to_owned(), cause: cause.to_string() }
    }
}
