//! Parquet: typed columns, written beside the final name and renamed over it when the footer is there.
//!
//! A row group is held in memory until it is written, so it is bounded in rows and in bytes, and so are the columns of
//! the results that wait for it.

mod columns;
mod schema;

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use ::parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    errors::ParquetError,
    file::properties::{EnabledStatistics, WriterProperties},
    schema::types::ColumnPath,
};
use pixfleet_shared::result::ImageResult;

use self::columns::Columns;
use crate::{
    error::SinkError,
    sink::{Begin, Mark},
    text::{create, sync_folder},
};

/// Rows of a row group at most.
const GROUP_ROWS: usize = 10_000;
/// What the encoders of a row group hold at most, in bytes, give or take one batch.
const GROUP_BYTES: usize = 8 << 20;
/// Rows that wait to be encoded at most: the writer's own unit, so a group ends exactly at its bound.
const BATCH_ROWS: usize = 1000;
/// Text in rows that wait to be encoded, in bytes, give or take one result.
const BATCH_BYTES: usize = 1 << 20;

/// A file of typed columns that is being made.
pub(crate) struct Parquet {
    writer: ArrowWriter<File>,
    columns: Columns,
    rows: u64,
}

impl Parquet {
    pub(crate) fn open(path: &Path, begin: Begin) -> Result<Self, SinkError> {
        // A new file must not take an old one's place; one that is made again takes that of its forerunner.
        if matches!(begin, Begin::New) && path.metadata().is_ok_and(|file| file.len() > 0) {
            return Err(SinkError::exists(path));
        }
        let file = partial_file(path)?;
        let writer = ArrowWriter::try_new(file, schema::schema(), Some(properties()));
        let writer = writer.map_err(|error| explain(path, error))?;
        Ok(Self { writer, columns: Columns::default(), rows: 0 })
    }

    pub(crate) fn write(&mut self, path: &Path, results: &[ImageResult]) -> Result<(), SinkError> {
        for result in results {
            self.columns.push(result);
            self.rows += 1;
            if self.columns.rows() >= BATCH_ROWS || self.columns.bytes() >= BATCH_BYTES {
                self.encode().map_err(|error| explain(path, error))?;
            }
        }
        Ok(())
    }

    /// What is in the unfinished file so far.
    pub(crate) fn mark(&self) -> Mark {
        Mark { bytes: self.writer.bytes_written() as u64, rows: self.rows }
    }

    pub(crate) fn finish(mut self, path: &Path) -> Result<Mark, SinkError> {
        self.encode().map_err(|error| explain(path, error))?;
        let file = self.writer.into_inner().map_err(|error| explain(path, error))?;
        let io = |cause| SinkError::io(path, cause);
        file.sync_all().map_err(io)?;
        std::fs::rename(partial(path), path).map_err(io)?;
        sync_folder(path)?;
        Ok(Mark { bytes: file.metadata().map_err(io)?.len(), rows: self.rows })
    }

    fn encode(&mut self) -> Result<(), ParquetError> {
        if self.columns.rows() == 0 {
            return Ok(());
        }
        let batch = self.columns.take()?;
        self.writer.write(&batch)?;
        // The writer's own bound in bytes is of what it will have written; this one is of what it holds.
        if self.writer.memory_size() >= GROUP_BYTES { self.writer.flush() } else { Ok(()) }
    }
}

/// Where the file is until it is whole. What an earlier run left there is no use to anybody.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn partial_file(path: &Path) -> Result<File, SinkError> {
    let partial = partial(path);
    match std::fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(SinkError::io(&partial, error)),
        _ => create(&partial),
    }
}

fn properties() -> WriterProperties {
    let properties = WriterProperties::builder()
        .set_created_by(concat!("pixfleet ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_max_row_group_bytes(None)
        // Statistics a page are kept in memory until the footer; a row group is small enough to be skipped as a whole.
        .set_statistics_enabled(EnabledStatistics::Chunk)
        // A dictionary of ids is as long as their column, and is held in memory beside it.
        .set_dictionary_enabled(false);
    let worded = schema::WORDED.into_iter().map(|path| {
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        ColumnPath::from(path)
    });
    worded.fold(properties, |all, column| all.set_column_dictionary_enabled(column, true)).build()
}

fn explain(path: &Path, error: ParquetError) -> SinkError {
    match error {
        ParquetError::External(cause) => match cause.downcast::<std::io::Error>() {
            Ok(cause) => SinkError::io(path, *cause),
            Err(cause) => SinkError::broken(path, cause),
        },
        other => SinkError::broken(path, other),
    }
}

#[cfg(test)]
mod tests;
