//! The state file and its two threads: one writes, in groups; the other reads, and is never in the writers' way.
//!
//! SQLite has one writer. Whatever is asked of it while it commits waits, and is then done in one transaction
//! with one sync of the disk (a group commit): the busier the process, the cheaper a write. An answer comes after the
//! commit, so what was answered is on the disk.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

use super::{
    file::{self, Use},
    process::Membership,
    trouble::StoreError,
};

/// Writes of one transaction at most: the first of them waits for the last.
const GROUP: usize = 512;
/// How long a group may go on taking more.
const GROUP_TIME: Duration = Duration::from_millis(20);
/// How often an idle thread looks whether another process has written.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What is done in a transaction, and told of its end.
trait Task: Send {
    fn run(&mut self, db: &Connection) -> rusqlite::Result<()>;
    fn end(self: Box<Self>, outcome: Result<(), StoreError>);
}

struct Work<F, T> {
    work: Option<F>,
    made: Option<T>,
    reply: Reply<T>,
}

/// Whoever waits: a task, or a thread.
enum Reply<T> {
    Task(oneshot::Sender<Result<T, StoreError>>),
    Thread(mpsc::Sender<Result<T, StoreError>>),
}

impl<T> Reply<T> {
    /// Whoever asked may have given up waiting.
    fn send(self, made: Result<T, StoreError>) {
        match self {
            Self::Task(task) => drop(task.send(made)),
            Self::Thread(thread) => drop(thread.send(made)),
        }
    }
}

impl<F, T> Task for Work<F, T>
where
    F: FnOnce(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn run(&mut self, db: &Connection) -> rusqlite::Result<()> {
        if let Some(work) = self.work.take() {
            self.made = Some(work(db)?);
        }
        Ok(())
    }

    fn end(self: Box<Self>, outcome: Result<(), StoreError>) {
        let Self { made, reply, .. } = *self;
        reply.send(outcome.and_then(|()| made.ok_or(StoreError::Closed)));
    }
}

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
    /// The first error after which nothing more can be promised.
    failure: watch::Sender<Option<StoreError>>,
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
        let task = Box::new(Work { work: Some(work), made: None, reply });
        let to = to.lock().unwrap_or_else(PoisonError::into_inner);
        to.as_ref().and_then(|to| to.send(task).ok()).ok_or(StoreError::Closed)
    }

    /// The reader ends first: the writer's close is then the file's last, and leaves one file.
    fn end(&self) {
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

/// One thread and its connection.
struct Serving {
    db: Connection,
    path: PathBuf,
    shared: Arc<Shared>,
    begin: &'static str,
}

impl Serving {
    fn write(self, inbox: &mpsc::Receiver<Box<dyn Task>>) {
        loop {
            match inbox.recv_timeout(self.shared.membership.rest()) {
                Ok(first) => self.group(first, inbox),
                Err(mpsc::RecvTimeoutError::Timeout) => self.renew(),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        // At worst the lease ends by itself.
        let _ = self.shared.membership.leave(&self.db);
    }

    /// A lease that can't be renewed now is renewed with the next group, or ends: then others have its jobs.
    fn renew(&self) {
        match self.shared.membership.renew(&self.db) {
            Ok(returned) if returned > 0 => tell(&self.shared.news.jobs),
            Ok(_) => {}
            Err(error) => tracing::debug!(state.path = %self.path.display(), %error, "not renewed"),
        }
    }

    fn read(self, inbox: &mpsc::Receiver<Box<dyn Task>>) {
        // Before the first question is answered: what is written after it is news.
        let mut seen = self.version();
        let mut looked = Instant::now();
        loop {
            match inbox.recv_timeout(LOOK_EVERY) {
                Ok(first) => self.group(first, inbox),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            if looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                self.look_for_news(&mut seen);
            }
        }
    }

    /// SQLite counts what other connections commit. Ours are among them: whoever is told looks, and may find nothing.
    fn look_for_news(&self, seen: &mut Option<i64>) {
        let version = self.version();
        if version.is_some() && *seen != version {
            let news = &self.shared.news;
            [&news.jobs, &news.log, &news.foreign].into_iter().for_each(tell);
            *seen = version;
        }
    }

    fn version(&self) -> Option<i64> {
        self.db.prepare_cached("PRAGMA data_version").ok()?.query_row([], |row| row.get(0)).ok()
    }

    /// Does `first` and whatever else waits in one transaction, and answers all of them.
    fn group(&self, first: Box<dyn Task>, inbox: &mpsc::Receiver<Box<dyn Task>>) {
        let mut done: Vec<Box<dyn Task>> = Vec::new();
        let outcome = self.transaction(first, inbox, &mut done).map_err(|error| self.trouble(&error));
        done.into_iter().for_each(|task| task.end(outcome.clone()));
    }

    fn transaction(
        &self,
        first: Box<dyn Task>,
        inbox: &mpsc::Receiver<Box<dyn Task>>,
        done: &mut Vec<Box<dyn Task>>,
    ) -> rusqlite::Result<()> {
        let began = Instant::now();
        let mut next = Some(first);
        if let Err(error) = self.db.execute_batch(self.begin) {
            done.extend(next);
            return Err(error);
        }
        while let Some(mut task) = next {
            match self.apart(&mut *task) {
                Ok(()) => done.push(task),
                // A full disk ends the whole transaction, and what was done before is undone.
                Err(error) if self.db.is_autocommit() => {
                    done.push(task);
                    return Err(error);
                }
                Err(error) => task.end(Err(self.trouble(&error))),
            }
            let room = done.len() < GROUP && began.elapsed() < GROUP_TIME;
            next = if room { inbox.try_recv().ok() } else { None };
        }
        self.db.execute_batch("COMMIT").inspect_err(|_| {
            if !self.db.is_autocommit() {
                let _ = self.db.execute_batch("ROLLBACK");
            }
        })
    }

    /// One task's failure undoes that task alone.
    fn apart(&self, task: &mut dyn Task) -> rusqlite::Result<()> {
        self.db.prepare_cached("SAVEPOINT task")?.execute([])?;
        match task.run(&self.db) {
            Ok(()) => self.db.prepare_cached("RELEASE task")?.execute([]).map(drop),
            Err(error) => {
                if !self.db.is_autocommit() {
                    self.db.execute_batch("ROLLBACK TO task; RELEASE task")?;
                }
                Err(error)
            }
        }
    }

    fn trouble(&self, error: &rusqlite::Error) -> StoreError {
        let trouble = StoreError::of(&self.path, error);
        if trouble.is_final() {
            self.shared.failure.send_if_modified(|known| {
                let first = known.is_none();
                if first {
                    *known = Some(trouble.clone());
                }
                first
            });
        }
        trouble
    }
}
