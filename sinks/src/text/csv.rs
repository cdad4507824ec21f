//! CSV: one row a result, below a header that is fixed with the first row.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

use csv::{ReaderBuilder, StringRecord, Writer, WriterBuilder};
use pixfleet_shared::result::ImageResult;

use super::BUFFER;
use crate::{
    error::SinkError,
    row,
    sink::{Begin, Mark, Options},
};

/// A file of rows.
pub(crate) struct Csv {
    writer: Writer<File>,
    /// The metadata columns, once they are known.
    keys: Option<Vec<String>>,
    /// Whether the header has the column `cached`: an earlier build wrote none.
    cached: bool,
    begun: bool,
    rows: u64,
}

impl Csv {
    pub(crate) fn open(path: &Path, begin: Begin, options: &Options) -> Result<Self, SinkError> {
        let (mut file, mark) = super::open(path, begin)?;
        let begun = mark.bytes > 0;
        let (keys, cached) = if begun {
            let header = header(path, &mut file, mark)?;
            (Some(row::keys(&header)), row::has_cached(&header))
        } else {
            (options.metadata.clone(), true)
        };
        let writer = WriterBuilder::new().buffer_capacity(BUFFER).from_writer(file);
        Ok(Self { writer, keys, cached, begun, rows: mark.rows })
    }

    pub(crate) fn write(&mut self, path: &Path, results: &[ImageResult]) -> Result<(), SinkError> {
        let written = results.iter().try_for_each(|result| self.row(result));
        self.rows += results.len() as u64;
        written.map_err(|error| explain(path, error))
    }

    pub(crate) fn commit(&mut self, path: &Path) -> Result<Mark, SinkError> {
        self.writer.flush().map_err(|cause| SinkError::io(path, cause))?;
        Ok(Mark { bytes: super::sync(path, self.writer.get_ref())?, rows: self.rows })
    }

    fn row(&mut self, result: &ImageResult) -> csv::Result<()> {
        let keys = &*self.keys.get_or_insert_with(|| result.metadata.keys().cloned().collect());
        if !std::mem::replace(&mut self.begun, true) {
            self.writer.write_record(row::header(row::COLUMNS, keys))?;
        }
        self.writer.write_record(row::fields(result, keys, self.cached))
    }
}

/// The header of a file that was begun; the file is at its mark again afterwards.
fn header(path: &Path, file: &mut File, mark: Mark) -> Result<Vec<String>, SinkError> {
    let io = |cause| SinkError::io(path, cause);
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    let mut record = StringRecord::new();
    let mut reader = ReaderBuilder::new().has_headers(false).from_reader(file.by_ref().take(mark.bytes));
    reader.read_record(&mut record).map_err(|error| explain(path, error))?;
    file.seek(SeekFrom::Start(mark.bytes)).map_err(io)?;
    let header: Vec<String> = record.iter().map(str::to_owned).collect();
    if row::knows(&header) {
        Ok(header)
    } else {
        Err(SinkError::foreign(path, "has another header than this version writes"))
    }
}

fn explain(path: &Path, error: csv::Error) -> SinkError {
    match error.into_kind() {
        csv::ErrorKind::Io(cause) => SinkError::io(path, cause),
        csv::ErrorKind::Utf8 { .. } => SinkError::foreign(path, "is not a text in UTF-8"),
        other => SinkError::broken(path, format!("{other:?}")),
    }
}
