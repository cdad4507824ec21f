//! The state file and its two threads: one writes, in groups; the other reads, and is never in the writers' way.
//!
//! SQLite has one writer. Whatever is asked of it while it commits waits, and is then done in one transaction
//! with one sync of the disk (a group commit): the busier the process, the cheaper a write. An answer comes after the
//! commit, so what was answered is on the disk.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

use super::{
    batches::Completed,
    file::{self, Use},
    process::Membership,
    serving::Serving,
    task::{Reply, Task, Work},
    trouble::StoreError,
    turns,
    untold::Untold,
};

/// News of the file, from whichever process: each is a number that moves.
#[derive(Debug)]
pub(super) struct News {
    /// Jobs may be ready.
    pub(super) jobs: watch::Sender<u64>,
    /// Something was published.
    pub(super) log: watch::Sender<u64>,
    /// Another process has written something.
    pub(super) foreign: watch::Sender<u64>,
}

/// Tells whoever watches.
pub(super) fn tell(news: &watch::Sender<u64>) {
    news.send_modify(|count| *count = count.wrapping_add(1));
}

/// An open state file. Cheap to share; it closes with the last handle.
pub struct Store {
    path: PathBuf,
    writes: Mutex<Option<mpsc::Sender<Box<dyn Task>>>>,
    reads: Mutex<Option<mpsc::Sender<Box<dyn Task>>>>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
    shared: Arc<Shared>,
}

/// What the threads and the handles share.
pub(super) struct Shared {
    pub(super) news: News,
    pub(super) membership: Membership,
    pub(super) untold: Untold,
    pub(super) completed: Completed,
    /// The first error after which nothing more can be promised.
    failure: watch::Sender<Option<StoreError>>,
}

impl Shared {
    /// The first error that does not go away by itself is kept.
    pub(super) fn note_failure(&self, trouble: &StoreError) {
        if trouble.is_final() {
            self.failure.send_if_modified(|known| {
                let first = known.is_none();
                if first {
                    *known = Some(trouble.clone());
                }
                first
            });
        }
    }
}

impl Store {
    /// Opens the state file at `path`, or begins one.
    ///
    /// # Errors
    /// [`StoreError`]: a folder that can't be written, a file that is not a state file, or one of a later version.
    pub fn open(path: &Path) -> Result<Arc<Self>, StoreError> {
        let writer = file::open(path, Use::Write)?;
        let reader = file::open(path, Use::Read)?;
        let shared = Arc::new(Shared {
            news: News {
                jobs: watch::Sender::new(0),
                log: watch::Sender::new(0),
                foreign: watch::Sender::new(0),
            },
            membership: Membership::new(),
            untold: Untold::default(),
            completed: Completed::default(),
            failure: watch::Sender::new(None),
        });
        let (writes, to_write) = mpsc::channel();
        let (reads, to_read) = mpsc::channel();
        let write =
            Serving { db: writer, path: path.to_owned(), shared: shared.clone(), begin: "BEGIN IMMEDIATE" };
        let read = Serving { db: reader, path: path.to_owned(), shared: shared.clone(), begin: "BEGIN" };
        let threads = vec![
            spawn("state-writer", move || write.write(&to_write))?,
            spawn("state-reader", move || read.read(&to_read))?,
        ];
        Ok(Arc::new(Self {
            path: path.to_owned(),
            writes: Mutex::new(Some(writes)),
            reads: Mutex::new(Some(reads)),
            threads: Mutex::new(threads),
            shared,
        }))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Does `work` in a transaction. What it did is on the disk when it is answered, or none of it is.
    ///
    /// # Errors
    /// What SQLite said, as the caller's next move.
    pub async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.hand(&self.writes, work, Reply::Task(reply))?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// [`write`](Self::write) for a thread that may block.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = mpsc::channel();
        self.hand(&self.writes, work, Reply::Thread(reply))?;
        answer.recv().unwrap_or(Err(StoreError::Closed))
    }

    /// Hands `work` over and does not wait for its end: where nobody could act on it.
    pub(super) fn write_unheard<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) {
        // Closed or failed: the lease ends by itself, and others see to what it held.
        let _ = self.hand(&self.writes, work, Reply::Task(oneshot::channel().0));
    }

    /// Hands over what became of calls, with nothing to wait for any more.
    pub(super) fn keep_untold(&self) {
        let own = self.shared.membership.token();
        for told in self.shared.untold.take_all() {
            self.write_unheard(move |db| turns::answered(db, own, &told));
        }
    }

    /// Reads what is committed.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.hand(&self.reads, work, Reply::Task(reply))?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// The error after which nothing more is written, once there is one: a full or failing disk, a damaged file.
    pub fn failure(&self) -> Option<StoreError> {
        self.shared.failure.borrow().clone()
    }

    /// Waits for that error. It may never come.
    pub async fn failed(&self) -> StoreError {
        let mut failure = self.shared.failure.subscribe();
        loop {
            if let Some(error) = failure.borrow_and_update().clone() {
                return error;
            }
            if failure.changed().await.is_err() {
                return StoreError::Closed;
            }
        }
    }

    /// Ends the threads once everything that was asked is done. Later asks are refused.
    pub async fn close(self: &Arc<Self>) {
        let store = self.clone();
        let _ = tokio::task::spawn_blocking(move || store.end()).await;
    }

    pub(super) fn news(&self) -> &News {
        &self.shared.news
    }

    pub(super) fn membership(&self) -> &Membership {
        &self.shared.membership
    }

    pub(super) fn untold(&self) -> &Untold {
        &self.shared.untold
    }

    /// For what runs in a thread: a handle on the store itself must not end there, because its end waits for it.
    pub(super) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Every asker waits for its answer, or (`write_unheard`) holds a delivery: what is asked at once is bounded by
    /// the jobs in hand and the tasks that there are.
    fn hand<T: Send + 'static>(
        &self,
        to: &Mutex<Option<mpsc::Sender<Box<dyn Task>>>>,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        reply: Reply<T>,
    ) -> Result<(), StoreError> {
        let task = Box::new(Work::new(work, reply));
        let to = to.lock().unwrap_or_else(PoisonError::into_inner);
        to.as_ref().and_then(|to| to.send(task).ok()).ok_or(StoreError::Closed)
    }

    /// The reader ends first: the writer's close is then the file's last, and leaves one file.
    fn end(&self) {
        self.keep_untold();
        let mut threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for inbox in [&self.reads, &self.writes] {
            drop(inbox.lock().unwrap_or_else(PoisonError::into_inner).take());
            if let Some(thread) = threads.pop() {
                let _ = thread.join();
            }
        }
    }
}

/// A store that is dropped unclosed leaves no thread behind.
impl Drop for Store {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<thread::JoinHandle<()>, StoreError> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map_err(|error| StoreError::Broken(format!("no thread can be started: {error}")))
}
