//! The manifest: images from files, folders, globs, URLs and stdin, as one stream of rows in constant memory.
//!
//! CSV, JSONL and plain lists of URLs are told apart by their content, compressed or not. A row that can't be used
//! is an item of its own, with its place and what to do; the stream goes on behind it. Only what makes the rest
//! unreadable ends the stream.

mod columns;
mod csv;
mod jsonl;
mod lines;
mod list;
mod open;
mod picture;
mod sniff;
mod source;
mod walk;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use pixfleet_shared::job::Image;
use serde::{Serialize, Serializer, ser::SerializeStruct};

pub use columns::{BadMapping, ColumnNames};
pub use sniff::Format;

/// The longest row in bytes, a picture in base64 included. What is longer is a bad row, and is not kept in memory.
pub const MAX_ROW_BYTES: usize = 2 * 1024 * 1024;
/// How much of a bad row is shown, in bytes.
const SHOWN_BYTES: usize = 1024;

/// One image of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where it stands.
    pub place: Place,
    /// The picture.
    pub image: Image,
    /// Its further columns.
    pub metadata: BTreeMap<String, String>,
}

/// Where a row stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named, or `stdin`.
    pub file: Arc<str>,
    /// The line on which the row begins, from 1; 0 for a file that is a row itself.
    pub line: u64,
}

/// A row that can't become a job. The rows behind it can.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {}{reason}", .field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default())]
pub struct BadRow {
    /// Where it stands.
    pub place: Place,
    /// The column or field that is wrong, where one is.
    pub field: Option<String>,
    /// What is wrong and what to do.
    pub reason: String,
    /// The row as it was read: its first KiB, if it is longer.
    pub raw: String,
}

/// What else than a row comes out of a manifest; the variants are the reader's next moves.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Leave this row out, or stop; the next one can be read.
    #[error(transparent)]
    Row(#[from] BadRow),
    /// Stop: what follows can't be read.
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// An input that can't be read at all, or not to its end.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct Broken {
    /// The file as it was named, or `stdin`.
    pub file: String,
    /// What is wrong and what to do.
    pub reason: String,
}

/// How inputs are read.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// The format of every file that is not a picture. Default: told by its content.
    pub format: Option<Format>,
    /// Columns that the user named.
    pub columns: ColumnNames,
    /// Files travel as their absolute path, which the workers read, not as their bytes.
    pub by_path: bool,
}

/// How far a manifest is read, for a progress bar.
#[derive(Clone, Debug, Default)]
pub struct Extent {
    read: Arc<AtomicU64>,
    total: Option<u64>,
}

/// All the rows of some inputs, in order.
pub struct Manifest {
    waiting: VecDeque<walk::Input>,
    current: Option<Rows>,
    reading: Arc<Reading>,
    extent: Extent,
}

/// The rows of one input.
type Rows = Box<dyn Iterator<Item = Result<Row, Fault>> + Send>;

impl Manifest {
    /// The rows of `inputs`: files, folders, globs, `http(s)` URLs, and `-` for stdin. That each exists is looked at
    /// now; what it holds, when its turn comes.
    ///
    /// # Errors
    /// [`Broken`] for the first input that does not exist.
    pub fn open(inputs: &[String], reading: Reading) -> Result<Self, Broken> {
        let waiting: VecDeque<_> =
            inputs.iter().map(|text| walk::Input::of(text)).collect::<Result<_, _>>()?;
        let total = waiting.iter().map(walk::Input::bytes).sum();
        Ok(Self {
            waiting,
            current: None,
            reading: Arc::new(reading),
            extent: Extent { read: Arc::default(), total },
        })
    }

    /// How far it is read: shared, so that it can be looked at while somebody else reads.
    pub fn extent(&self) -> Extent {
        self.extent.clone()
    }
}

impl Iterator for Manifest {
    type Item = Result<Row, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.current.as_mut().and_then(Iterator::next) {
                Some(Err(Fault::Broken(broken))) => {
                    self.waiting.clear();
                    self.current = None;
                    return Some(Err(Fault::Broken(broken)));
                }
                Some(item) => return Some(item),
                None => {
                    let input = self.waiting.pop_front()?;
                    self.current = Some(input.rows(&self.reading, &self.extent.read));
                }
            }
        }
    }
}

impl Extent {
    /// Bytes read so far, as they are on disk.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes to read in all; unknown for stdin, folders and globs.
    pub fn total(&self) -> Option<u64> {
        self.total
    }
}

/// A stream that says why it can't begin, and ends.
fn broken_rows(broken: Broken) -> Rows {
    Box::new(std::iter::once(Err(Fault::Broken(broken))))
}

impl Broken {
    fn new(file: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self { file: file.into(), reason: reason.to_string() }
    }

    fn at(path: &std::path::Path, reason: impl fmt::Display) -> Self {
        Self::new(path.display().to_string(), reason)
    }
}

/// What is wrong with one field, before it is known where.
#[derive(Debug, PartialEq, Eq)]
struct Wrong {
    field: Option<String>,
    reason: String,
}

impl Wrong {
    fn row(reason: impl Into<String>) -> Self {
        Self { field: None, reason: reason.into() }
    }

    fn field(field: &str, reason: impl Into<String>) -> Self {
        Self { field: Some(shown(field.as_bytes())), reason: reason.into() }
    }

    fn at(self, place: Place, raw: &[u8]) -> Fault {
        Fault::Row(BadRow { place, field: self.field, reason: self.reason, raw: shown(raw) })
    }
}

/// The beginning of some bytes as text.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_BYTES)]);
    // What is no text is longer as one.
    let kept = &text[..text.floor_char_boundary(SHOWN_BYTES)];
    if bytes.len() > SHOWN_BYTES || kept.len() < text.len() {
        format!("{kept}…")
    } else {
        text.into_owned()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

impl Serialize for BadRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_struct("BadRow", 5)?;
        row.serialize_field("file", &*self.place.file)?;
        row.serialize_field("line", &self.place.line)?;
        row.serialize_field("field", &self.field)?;
        row.serialize_field("reason", &self.reason)?;
        row.serialize_field("row", &self.raw)?;
        row.end()
    }
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manifest").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

/// A folder of paths is named like the file that it stands for in messages and in default ids.
fn name_of(path: &std::path::Path) -> Arc<str> {
    path.to_string_lossy().into()
}

/// Where the relative paths of a manifest begin.
fn folder_of(path: &std::path::Path) -> PathBuf {
    path.parent().map(PathBuf::from).unwrap_or_default()
}

#[cfg(test)]
mod tests;
