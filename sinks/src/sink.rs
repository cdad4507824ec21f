//! A sink: one file that takes results, and says how far they are on the disk.

use std::path::{Path, PathBuf};

use pixfleet_shared::result::ImageResult;
use serde::{Deserialize, Serialize};

use crate::{
    error::SinkError,
    kind::Kind,
    parquet::Parquet,
    sqlite::Sqlite,
    text::{csv::Csv, jsonl::Jsonl},
};

/// How far a sink's file is on the disk: what a caller keeps beside its own position in the results, and gives back
/// to go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The file's length; text files are cut to it.
    pub bytes: u64,
    /// Results that were written, each time that one was.
    pub rows: u64,
}

/// Where a sink begins.
#[derive(Clone, Copy, Debug)]
pub enum Begin {
    /// With a file that does not exist yet, or is empty.
    New,
    /// After what was committed; the results behind the mark are given again. The default mark goes on with a database
    /// whose own position nobody kept, and empties a text file.
    After(Mark),
}

/// What can be chosen of a file.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The metadata columns of a CSV, in order. Default: those of the first row.
    pub metadata: Option<Vec<String>>,
}

/// A file that results are written to. After an error it is opened again after its last mark.
pub struct Sink {
    path: PathBuf,
    to: To,
}

enum To {
    Jsonl(Jsonl),
    Csv(Box<Csv>),
    Parquet(Box<Parquet>),
    Sqlite(Box<Sqlite>),
}

impl Sink {
    /// Opens the file at `path`, of the kind that its name says.
    ///
    /// # Errors
    /// [`SinkError::Unknown`] for another end of the name; [`SinkError::Exists`] for a new file that is there and holds
    /// something; for one to go on with, [`SinkError::Gone`], [`SinkError::Shortened`] or [`SinkError::Foreign`];
    /// otherwise what the disk says.
    pub fn open(path: &Path, begin: Begin, options: &Options) -> Result<Self, SinkError> {
        let to = match Kind::of(path)? {
            Kind::Jsonl => To::Jsonl(Jsonl::open(path, begin)?),
            Kind::Csv => To::Csv(Box::new(Csv::open(path, begin, options)?)),
            Kind::Parquet => To::Parquet(Box::new(Parquet::open(path, begin)?)),
            Kind::Sqlite => To::Sqlite(Box::new(Sqlite::open(path, begin)?)),
        };
        Ok(Self { path: path.to_owned(), to })
    }

    /// Whether it can't go on: however it was opened, it must be given every result from the first again.
    pub fn replays(&self) -> bool {
        matches!(self.to, To::Parquet(_))
    }

    /// Adds results. Text files and Parquet files take whatever comes, as often as it comes; a database keeps one
    /// row an id, that of the best outcome (`ok`, then `rejected`, then `dead`), and of two alike the last.
    ///
    /// # Errors
    /// What the disk says.
    pub fn write(&mut self, results: &[ImageResult]) -> Result<(), SinkError> {
        match &mut self.to {
            To::Jsonl(sink) => sink.write(&self.path, results),
            To::Csv(sink) => sink.write(&self.path, results),
            To::Parquet(sink) => sink.write(&self.path, results),
            To::Sqlite(sink) => sink.write(&self.path, results),
        }
    }

    /// Everything written is on the disk when it returns. Costs one sync, whatever was written before; where the
    /// sink [`replays`](Self::replays) nothing is promised before the end, and nothing is synced.
    ///
    /// # Errors
    /// What the disk says.
    pub fn commit(&mut self) -> Result<Mark, SinkError> {
        match &mut self.to {
            To::Jsonl(sink) => sink.commit(&self.path),
            To::Csv(sink) => sink.commit(&self.path),
            To::Parquet(sink) => Ok(sink.mark()),
            To::Sqlite(sink) => sink.commit(&self.path),
        }
    }

    /// Commits, and leaves one whole file for others to read.
    ///
    /// # Errors
    /// What the disk says.
    pub fn finish(self) -> Result<Mark, SinkError> {
        match self.to {
            To::Jsonl(mut sink) => sink.commit(&self.path),
            To::Csv(mut sink) => sink.commit(&self.path),
            To::Parquet(sink) => sink.finish(&self.path),
            To::Sqlite(sink) => sink.finish(&self.path),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self.to {
            To::Jsonl(_) => Kind::Jsonl,
            To::Csv(_) => Kind::Csv,
            To::Parquet(_) => Kind::Parquet,
            To::Sqlite(_) => Kind::Sqlite,
        }
    }
}
