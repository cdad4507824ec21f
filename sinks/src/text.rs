//! A file of text on the disk: JSON lines and CSV, both cut to their mark when they go on.

pub(crate) mod csv;
pub(crate) mod jsonl;

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
    path::Path,
};

use crate::{
    error::SinkError,
    sink::{Begin, Mark},
};

/// Text that is held before it goes to the file, in bytes.
const BUFFER: usize = 64 * 1024;

/// The file at `path`, open at the place where writing begins, and the mark of what it holds.
pub(crate) fn open(path: &Path, begin: Begin) -> Result<(File, Mark), SinkError> {
    match begin {
        Begin::New => Ok((create(path)?, Mark::default())),
        Begin::After(mark) => Ok((reopen(path, mark)?, mark)),
    }
}

/// A new file; an empty one that is there already will do, one that holds something is left alone.
pub(crate) fn create(path: &Path) -> Result<File, SinkError> {
    let io = |cause| SinkError::io(path, cause);
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = opened.map_err(io)?;
    alone(path, &file)?;
    if file.metadata().map_err(io)?.len() > 0 {
        return Err(SinkError::exists(path));
    }
    sync_folder(path)?;
    Ok(file)
}

/// Cuts off what follows the mark: it was not committed, and comes again.
fn reopen(path: &Path, mark: Mark) -> Result<File, SinkError> {
    let io = |cause| SinkError::io(path, cause);
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(SinkError::Gone { path: path.to_owned() });
        }
        opened => opened.map_err(io)?,
    };
    alone(path, &file)?;
    let has = file.metadata().map_err(io)?.len();
    if has < mark.bytes {
        return Err(SinkError::Shortened { path: path.to_owned(), has, wants: mark.bytes, unit: "bytes" });
    }
    if !ends_a_line(&file, mark.bytes).map_err(io)? {
        return Err(SinkError::foreign(path, "is not the file that was written: its mark is within a line"));
    }
    file.set_len(mark.bytes).map_err(io)?;
    file.seek(SeekFrom::Start(mark.bytes)).map_err(io)?;
    Ok(file)
}

/// Whether a line ends at `position`, as at every mark: what would be cut off otherwise is somebody else's.
fn ends_a_line(file: &File, position: u64) -> io::Result<bool> {
    let mut last = [b'\n'];
    if position > 0 {
        file.read_exact_at(&mut last, position - 1)?;
    }
    Ok(last == [b'\n'])
}

/// Two writers would write over each other. A file system without locks has to do without.
fn alone(path: &Path, file: &File) -> Result<(), SinkError> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(SinkError::InUse { path: path.to_owned() }),
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

/// What was flushed is on the disk; returns the length in bytes.
fn sync(path: &Path, file: &File) -> Result<u64, SinkError> {
    let synced = file.sync_data().and_then(|()| file.metadata());
    Ok(synced.map_err(|cause| SinkError::io(path, cause))?.len())
}

/// A new name is on the disk only when its folder is.
pub(crate) fn sync_folder(path: &Path) -> Result<(), SinkError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|cause| SinkError::io(path, cause))
}

#[cfg(test)]
mod tests;
