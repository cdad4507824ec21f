//! The inputs as they were named, and the rows of each: files, folders, globs, URLs, stdin.

use std::{
    fs, io, iter,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    Broken, Fault, Format, Place, Reading, Row, Rows, Wrong, broken_rows,
    csv::CsvRows,
    folder_of,
    jsonl::JsonlRows,
    lines::Lines,
    list::ListRows,
    name_of,
    open::{self, Opened, Text},
    picture, sniff,
    source::Sources,
};

/// One input of a manifest.
#[derive(Debug)]
pub(super) enum Input {
    Stdin,
    Url(String),
    File(PathBuf, u64),
    Folder(PathBuf),
    Glob(String),
}

impl Input {
    /// What `text` names. A file may have any name, so a pattern is one only where no such file exists.
    pub(super) fn of(text: &str) -> Result<Self, Broken> {
        let lower = text.get(..8).unwrap_or(text).to_ascii_lowercase();
        if text == "-" {
            return Ok(Self::Stdin);
        }
        if lower.starts_with("http://") || lower.starts_with("https://") {
            return Ok(Self::Url(text.to_owned()));
        }
        match fs::metadata(text) {
            Ok(found) if found.is_dir() => Ok(Self::Folder(text.into())),
            Ok(found) => Ok(Self::File(text.into(), found.len())),
            Err(_) if text.contains(['*', '?', '[']) => {
                match glob::glob(text).map(|mut paths| paths.next()) {
                    Ok(Some(_)) => Ok(Self::Glob(text.to_owned())),
                    Ok(None) => Err(Broken::new(text, "no file matches this pattern")),
                    Err(error) => Err(Broken::new(text, error)),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Broken::new(
                text,
                "there is no such file or folder; name a manifest, pictures, a folder, a pattern, a URL, or - for stdin",
            )),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(Broken::new(
                text,
                "a part of it is a file and no folder: leave out what follows the file",
            )),
            Err(error) => Err(Broken::new(text, error)),
        }
    }

    /// Its size on disk, where that is known beforehand. A pipe says 0, which nobody knows.
    pub(super) fn bytes(&self) -> Option<u64> {
        match self {
            Self::File(_, bytes) if *bytes > 0 => Some(*bytes),
            Self::Url(_) => Some(0),
            _ => None,
        }
    }

    /// Its rows. What can't be opened is a stream that says so.
    pub(super) fn rows(self, reading: &Arc<Reading>, read: &Arc<AtomicU64>) -> Rows {
        match self {
            Self::Stdin => stdin(reading, read),
            Self::Url(url) => {
                // A list of one line: the same checks, the same id.
                let text = Text { head: Vec::new(), input: Box::new(io::Cursor::new(url.into_bytes())) };
                manifest(text, Format::List, "argument".into(), PathBuf::new(), reading)
            }
            Self::File(path, size) => file(&path, size, reading, read),
            Self::Folder(path) => folder(&path, Arc::clone(reading)),
            Self::Glob(pattern) => matches(&pattern, Arc::clone(reading), Arc::clone(read)),
        }
    }
}

fn stdin(reading: &Arc<Reading>, read: &Arc<AtomicU64>) -> Rows {
    let opened = open::stdin(read);
    match opened {
        Ok(Opened::Text(text)) => sniffed(text, "stdin".into(), PathBuf::new(), reading),
        Ok(Opened::Picture) => {
            broken_rows(Broken::new("stdin", "a picture: name its file, or pipe a manifest"))
        }
        Err(error) => broken_rows(Broken::new("stdin", error)),
    }
}

fn file(path: &Path, size: u64, reading: &Arc<Reading>, read: &Arc<AtomicU64>) -> Rows {
    let before = read.load(Ordering::Relaxed);
    match open::file(path, read) {
        Ok(Opened::Text(text)) => sniffed(text, name_of(path), folder_of(path), reading),
        Ok(Opened::Picture) => {
            // Only its head was read through the counter.
            read.store(before + size, Ordering::Relaxed);
            Box::new(iter::once(picture::row(path, reading)))
        }
        Err(error) => broken_rows(Broken::at(path, error)),
    }
}

fn sniffed(text: Text, file: Arc<str>, folder: PathBuf, reading: &Arc<Reading>) -> Rows {
    let format = reading.format.map_or_else(|| sniff::format(&text.head, &reading.columns), Ok);
    match format {
        Ok(format) => manifest(text, format, file, folder, reading),
        Err(reason) => broken_rows(Broken::new(&*file, reason)),
    }
}

fn manifest(text: Text, format: Format, file: Arc<str>, folder: PathBuf, reading: &Arc<Reading>) -> Rows {
    let sources = Sources { folder, by_path: reading.by_path };
    let lines = Lines::new(text.input);
    match format {
        Format::List => Box::new(ListRows { lines, file, sources, line: Vec::new() }),
        Format::Jsonl => {
            Box::new(JsonlRows { lines, file, sources, reading: Arc::clone(reading), line: Vec::new() })
        }
        Format::Csv => {
            let delimiter = sniff::delimiter(&text.head, &reading.columns);
            match CsvRows::open(lines.into_inner(), delimiter, file, sources, reading) {
                Ok(Some(rows)) => Box::new(rows),
                Ok(None) => Box::new(iter::empty()),
                Err(broken) => broken_rows(broken),
            }
        }
    }
}

/// The pictures below a folder, by name, folder by folder. Hidden files are passed over, and what is no picture.
fn folder(path: &Path, reading: Arc<Reading>) -> Rows {
    let visible = |entry: &walkdir::DirEntry| {
        entry.depth() == 0 || !entry.file_name().as_encoded_bytes().starts_with(b".")
    };
    let entries = walkdir::WalkDir::new(path).sort_by_file_name().into_iter().filter_entry(visible);
    Box::new(entries.filter_map(move |entry| match entry {
        // The file behind a link counts; a linked folder is not entered, it might lead back here.
        Ok(entry) if fs::metadata(entry.path()).is_ok_and(|found| found.is_file()) => {
            picture::found(entry.path(), &reading)
        }
        Ok(_) => None,
        Err(error) => {
            let place = error.path().map_or_else(|| "folder".into(), name_of);
            Some(unreadable(place, &error.to_string()))
        }
    }))
}

fn matches(pattern: &str, reading: Arc<Reading>, read: Arc<AtomicU64>) -> Rows {
    let paths = match glob::glob(pattern) {
        Ok(paths) => paths,
        Err(error) => return broken_rows(Broken::new(pattern, error)),
    };
    Box::new(paths.flat_map(move |path| match path {
        Ok(path) if path.is_dir() => folder(&path, Arc::clone(&reading)),
        Ok(path) => file(&path, 0, &reading, &read),
        Err(error) => Box::new(iter::once(unreadable(name_of(error.path()), &error.to_string()))),
    }))
}

fn unreadable(file: Arc<str>, reason: &str) -> Result<Row, Fault> {
    Err(Wrong::row(format!("can't be read: {reason}")).at(Place { file, line: 0 }, b""))
}
