//! `pixfleet dead export`: letters as JSON lines, whole.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, BufWriter, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use anyhow::Context;
use pixfleet_shared::{
    id::Id,
    job::Job,
    queue::{DeadLetter, Death, Queue},
};
use serde::Serialize;

use super::{filter::Filter, look::each};
use crate::{exit::Exit, output, words::count};

/// One line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    id: Id,
    death: &'a Death,
    /// The job, with all that it carries.
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<&'a Job>,
    /// A message that is no job, where it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    /// A message that is not even text, in hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
}

impl<'a> Line<'a> {
    fn of(letter: &'a DeadLetter) -> Self {
        let (job, bytes) = (letter.job.as_ref().ok(), letter.job.as_ref().err());
        let text = bytes.and_then(|bytes| std::str::from_utf8(bytes).ok());
        let hex = bytes.filter(|_| text.is_none()).map(|bytes| {
            bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
                // Writing to a string does not fail.
                let _ = write!(hex, "{byte:02x}");
                hex
            })
        });
        Self { id: letter.id(), death: &letter.death, job, text, hex }
    }
}

/// Where lines go: to a file beside `path`, which takes its name when all is written; or to stdout.
struct Sink {
    to: BufWriter<Box<dyn Write>>,
    becomes: Option<(PathBuf, PathBuf)>,
}

impl Sink {
    fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self { to: BufWriter::new(Box::new(io::stdout())), becomes: None });
        }
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = File::create(&part).with_context(|| format!("{} can't be written", part.display()))?;
        Ok(Self { to: BufWriter::new(Box::new(file)), becomes: Some((part, path.to_owned())) })
    }

    fn line(&mut self, line: &Line<'_>) -> anyhow::Result<()> {
        serde_json::to_writer(&mut self.to, line).map_err(io::Error::from)?;
        Ok(self.to.write_all(b"\n")?)
    }

    fn finish(mut self) -> anyhow::Result<()> {
        self.to.flush()?;
        if let Some((part, path)) = self.becomes {
            std::fs::rename(&part, &path)
                .with_context(|| format!("{} can't become {}", part.display(), path.display()))?;
        }
        Ok(())
    }
}

/// Writes all letters that pass `filter` to `path`.
///
/// # Errors
/// When the queue is away, or the file can't be written.
pub(super) async fn export(
    queue: &dyn Queue,
    filter: &Filter,
    path: &Path,
    json: bool,
) -> anyhow::Result<Exit> {
    let mut sink = Sink::open(path)?;
    let mut letters = 0_u64;
    let written = each(queue, filter, async |letter| {
        sink.line(&Line::of(&letter))?;
        letters += 1;
        Ok(ControlFlow::Continue(()))
    });
    written.await?;
    let to_file = sink.becomes.is_some();
    sink.finish()?;
    match (to_file, json) {
        (false, _) => {}
        (true, true) => output::json(&serde_json::json!({ "file": path, "letters": letters }))?,
        (true, false) => output::line(format!("{} dead letters in {}", count(letters), path.display()))?,
    }
    Ok(Exit::Done)
}
