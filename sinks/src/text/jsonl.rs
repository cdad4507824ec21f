//! JSON lines: the result as it is on the wire, one a line.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::Path,
};

use pixfleet_shared::result::ImageResult;

use super::BUFFER;
use crate::{
    error::SinkError,
    sink::{Begin, Mark},
};

/// A file of JSON lines.
pub(crate) struct Jsonl {
    file: BufWriter<File>,
    rows: u64,
}

impl Jsonl {
    pub(crate) fn open(path: &Path, begin: Begin) -> Result<Self, SinkError> {
        let (file, mark) = super::open(path, begin)?;
        Ok(Self { file: BufWriter::with_capacity(BUFFER, file), rows: mark.rows })
    }

    pub(crate) fn write(&mut self, path: &Path, results: &[ImageResult]) -> Result<(), SinkError> {
        let written = results.iter().try_for_each(|result| self.line(result));
        self.rows += results.len() as u64;
        written.map_err(|cause| SinkError::io(path, cause))
    }

    pub(crate) fn commit(&mut self, path: &Path) -> Result<Mark, SinkError> {
        self.file.flush().map_err(|cause| SinkError::io(path, cause))?;
        Ok(Mark { bytes: super::sync(path, self.file.get_ref())?, rows: self.rows })
    }

    fn line(&mut self, result: &ImageResult) -> io::Result<()> {
        serde_json::to_writer(&mut self.file, result)?;
        self.file.write_all(b"\n")
    }
}
