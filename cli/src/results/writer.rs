//! Where rows go: a file or stdout, behind a thread of its own, because a pipe that nobody empties blocks.

use std::{
    fs::File,
    io::{self, Write},
    sync::mpsc,
    thread,
};

use tokio::sync::oneshot;

/// A file or stdout that takes rows in pieces; each piece is flushed before the write counts as done.
pub(crate) struct Writer {
    to: mpsc::Sender<Piece>,
}

struct Piece {
    bytes: Vec<u8>,
    sync: bool,
    written: oneshot::Sender<io::Result<()>>,
}

enum Target {
    Stdout(io::Stdout),
    File(File),
}

impl Writer {
    /// Rows go to stdout.
    pub(crate) fn stdout() -> Self {
        Self::start(Target::Stdout(io::stdout()))
    }

    /// Rows go to the end of `file`, as far as it is read.
    pub(crate) fn file(file: File) -> Self {
        Self::start(Target::File(file))
    }

    /// Writes and flushes; with `sync`, a file's bytes are on the disk when it returns.
    ///
    /// # Errors
    /// What the write said. After an error part of the bytes may be there.
    pub(crate) async fn write(&self, bytes: Vec<u8>, sync: bool) -> io::Result<()> {
        let (written, answer) = oneshot::channel();
        let gone = || io::Error::other("the thread that writes has ended");
        self.to.send(Piece { bytes, sync, written }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// One piece is under way at a time ([`write`](Self::write) waits), so the channel holds at most one.
    fn start(mut target: Target) -> Self {
        let (to, pieces) = mpsc::channel::<Piece>();
        thread::spawn(move || {
            for piece in pieces {
                let result = target.write(&piece.bytes, piece.sync);
                // Whoever asked may have given up waiting.
                let _ = piece.written.send(result);
            }
        });
        Self { to }
    }
}

impl Target {
    fn write(&mut self, bytes: &[u8], sync: bool) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => {
                let mut lock = stdout.lock();
                lock.write_all(bytes)?;
                lock.flush()
            }
            Self::File(file) => {
                file.write_all(bytes)?;
                if sync { file.sync_data() } else { Ok(()) }
            }
        }
    }
}
