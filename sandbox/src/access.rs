//! The access log: one line a call, in memory and in a file, written off the calls' way and never lost.
//!
//! A call books its place in the channel before it is judged and sends its line when it ends, however it ends: the
//! channel is bounded, and a full one holds back calls instead of dropping lines.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::bill::Counts;
use crate::fault::Fault;

/// Calls under way, or ended and not written yet, beyond which new calls wait.
const PLACES: usize = 65_536;

/// One call, as the access log tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When it arrived and was judged, in microseconds since 1970.
    pub at_us: u64,
    /// From its arrival until its answer was ready or its client had left, in microseconds.
    pub duration_us: u64,
    /// The connection that it came on, from 1.
    pub connection: u64,
    /// The fingerprint of its key; `(none)` without one.
    pub key: Arc<str>,
    /// `GET` or `POST`.
    pub method: String,
    /// The path, without the query (which may hold a key).
    pub path: String,
    /// The models that it asked.
    pub models: Vec<String>,
    /// The image's reference: its URL, or the SHA-256 of an upload.
    pub image: Option<String>,
    /// The status of the answer; `null` when none was sent or the client had left.
    pub status: Option<u16>,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Let in and served.
    Accepted,
    /// Over the rate.
    Throttled,
    /// Never to be let in.
    Rejected,
    /// Let in, and struck by a fault: `fault_500`, `fault_hang`, `fault_cut`, …
    #[serde(untagged)]
    Faulted(Fault),
}

impl Outcome {
    pub(crate) fn counts(self) -> Counts {
        let mut counts = Counts { calls: 1, ..Counts::default() };
        match self {
            Self::Accepted => (counts.accepted, counts.charged) = (1, 1),
            Self::Throttled => (counts.refused, counts.throttled) = (1, 1),
            Self::Rejected => (counts.refused, counts.rejected) = (1, 1),
            Self::Faulted(fault) => {
                (counts.accepted, counts.faulted, counts.charged) = (1, 1, u64::from(fault.is_charged()));
            }
        }
        counts
    }
}

/// A booked place in the log: it takes one line, at once.
pub(crate) type Place = mpsc::OwnedPermit<Entry>;

#[derive(Debug)]
pub(crate) enum Entry {
    Call(Box<Line>),
    Show(oneshot::Sender<Vec<Line>>),
}

/// The log's front: hands out places, and shows the newest lines.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    entries: mpsc::Sender<Entry>,
}

impl Log {
    /// Opens the file, if one is named, and starts its writer; the handle ends when the last `Log` and place are gone.
    pub(crate) fn start(file: Option<&Path>, tail: usize) -> io::Result<(Self, JoinHandle<io::Result<()>>)> {
        let file = file.map(|path| OpenOptions::new().create(true).append(true).open(path)).transpose()?;
        let (entries, inbox) = mpsc::channel(PLACES);
        let writer = Writer { file: file.map(BufWriter::new), newest: VecDeque::new(), tail, failed: None };
        // Files are written by a thread that may block: no call ever waits for the disk.
        Ok((Self { entries }, tokio::task::spawn_blocking(move || writer.run(inbox))))
    }

    /// Books a place; waits while too many calls are under way. `None` when the writer is gone.
    pub(crate) async fn place(&self) -> Option<Place> {
        self.entries.clone().reserve_owned().await.ok()
    }

    /// The newest lines, oldest first: every call that has ended by now, as far as the tail reaches.
    pub(crate) async fn newest(&self) -> Vec<Line> {
        let (reply, lines) = oneshot::channel();
        if self.entries.send(Entry::Show(reply)).await.is_err() {
            return Vec::new();
        }
        lines.await.unwrap_or_default()
    }
}

struct Writer {
    file: Option<BufWriter<File>>,
    newest: VecDeque<Line>,
    tail: usize,
    failed: Option<io::Error>,
}

impl Writer {
    fn run(mut self, mut inbox: mpsc::Receiver<Entry>) -> io::Result<()> {
        while let Some(entry) = inbox.blocking_recv() {
            self.take(entry);
            while let Ok(entry) = inbox.try_recv() {
                self.take(entry);
            }
            self.flush();
        }
        self.failed.map_or(Ok(()), Err)
    }

    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::Call(line) => self.write(*line),
            Entry::Show(reply) => {
                self.flush();
                let _ = reply.send(self.newest.iter().cloned().collect());
            }
        }
    }

    fn write(&mut self, line: Line) {
        if let Some(file) = &mut self.file {
            let written = serde_json::to_writer(&mut *file, &line).map_err(io::Error::from);
            let ended = written.and_then(|()| file.write_all(b"\n"));
            self.note(ended);
        }
        if self.tail > 0 {
            if self.newest.len() == self.tail {
                self.newest.pop_front();
            }
            self.newest.push_back(line);
        }
    }

    fn flush(&mut self) {
        let flushed = self.file.as_mut().map_or(Ok(()), BufWriter::flush);
        self.note(flushed);
    }

    /// The first failure is told at once and again at shutdown; the calls go on.
    fn note(&mut self, written: io::Result<()>) {
        if let (Err(error), None) = (written, &self.failed) {
            tracing::error!(error = %error, "the access log cannot be written; lines are missing from here on");
            self.failed = Some(error);
        }
    }
}
