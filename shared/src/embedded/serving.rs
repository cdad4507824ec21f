//! The two threads of a state file: what they do, and in which transactions.

use std::{
    path::PathBuf,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use rusqlite::Connection;

use super::{
    store::{Shared, tell},
    task::Task,
    trouble::StoreError,
};

/// Writes of one transaction at most: the first of them waits for the last.
const GROUP: usize = 512;
/// How long a group may go on taking more.
const GROUP_TIME: Duration = Duration::from_millis(20);
/// How often an idle thread looks whether another process has written.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// One thread and its connection.
pub(super) struct Serving {
    pub(super) db: Connection,
    pub(super) path: PathBuf,
    pub(super) shared: Arc<Shared>,
    /// How its transactions begin.
    pub(super) begin: &'static str,
}

impl Serving {
    /// Writes what is asked, in groups, until nobody can ask any more.
    pub(super) fn write(self, inbox: &mpsc::Receiver<Box<dyn Task>>) {
        let mut renewed = Instant::now();
        loop {
            let rest = self.shared.membership.rest().saturating_sub(renewed.elapsed());
            match inbox.recv_timeout(rest) {
                Ok(first) => self.group(first, inbox),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            // Also when it never rests: a busy process must not be taken for a dead one.
            if renewed.elapsed() >= self.shared.membership.rest() {
                self.renew();
                renewed = Instant::now();
            }
        }
        // At worst the lease ends by itself.
        let _ = self.shared.membership.leave(&self.db);
    }

    /// A lease that can't be renewed now is renewed a little later, or ends: then others have its jobs.
    fn renew(&self) {
        match self.shared.membership.renew(&self.db) {
            Ok(returned) if returned > 0 => tell(&self.shared.news.jobs),
            Ok(_) => {}
            Err(error) => tracing::debug!(state.path = %self.path.display(), %error, "not renewed"),
        }
    }

    /// Reads what is asked, and looks for other processes' news in between.
    pub(super) fn read(self, inbox: &mpsc::Receiver<Box<dyn Task>>) {
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
        self.shared.note_failure(&trouble);
        trouble
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::store::Store;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_process_that_never_rests_renews_its_lease() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state")).unwrap();
        let shared = store.shared();
        store.write(move |db| shared.membership.join(db)).await.unwrap();
        let end = || {
            store.read(|db| db.query_row("SELECT until_us FROM processes", [], |row| row.get::<_, i64>(0)))
        };
        let first = end().await.unwrap();
        let renewed = async {
            while end().await.unwrap() == first {
                store.write(|db| db.execute("UPDATE batches SET jobs = jobs", [])).await.unwrap();
            }
        };
        let patience = Duration::from_secs(30);
        assert!(tokio::time::timeout(patience, renewed).await.is_ok(), "its lease is not renewed");
    }
}
