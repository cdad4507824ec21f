//! The files of `--into`: sinks behind a thread of their own, because a disk blocks.

use std::{
    io,
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use pixfleet_shared::result::ImageResult;
use pixfleet_sinks::{Begin, Kind, Mark, Options, Sink, SinkError};
use tokio::sync::oneshot;

/// Where nobody waits for it, results are on the disk this long after they came.
const COMMIT_AFTER: Duration = Duration::from_secs(1);

/// Files that take results, all of them the same.
pub(crate) struct Files {
    to: mpsc::Sender<Order>,
    waiting: Vec<ImageResult>,
    total: u64,
}

struct Order {
    results: Vec<ImageResult>,
    then: Then,
    done: oneshot::Sender<Result<(), SinkError>>,
}

/// What follows once an order's results are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// A commit within [`COMMIT_AFTER`].
    Later,
    Commit,
    Finish,
}

impl Files {
    /// Opens files for results, of the kinds that their names say. A database of ours is gone on with, because it knows what
    /// it has; of the other kinds, a file that holds something is refused.
    ///
    /// # Errors
    /// As [`Sink::open`].
    pub(crate) fn open(paths: &[PathBuf], options: &Options) -> Result<Self, SinkError> {
        let sinks =
            paths.iter().map(|path| Sink::open(path, begin(path), options)).collect::<Result<_, _>>()?;
        Ok(Self { to: start(sinks), waiting: Vec::new(), total: 0 })
    }

    /// Adds a result; it waits for the next [`write`](Self::write).
    pub(crate) fn push(&mut self, result: ImageResult) {
        self.waiting.push(result);
        self.total += 1;
    }

    /// How many results there were so far.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Writes what waits; with `commit`, it is on the disk when it returns.
    ///
    /// # Errors
    /// What a sink said, now or when it committed by itself.
    pub(crate) async fn write(&mut self, commit: bool) -> anyhow::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.order(if commit { Then::Commit } else { Then::Later }).await
    }

    /// Writes what waits, and makes every file whole.
    ///
    /// # Errors
    /// What a sink said; the others are whole all the same.
    pub(crate) async fn finish(mut self) -> anyhow::Result<()> {
        self.order(Then::Finish).await
    }

    /// One order is under way at a time (each is waited for), so the channel holds at most one.
    async fn order(&mut self, then: Then) -> anyhow::Result<()> {
        let (done, answer) = oneshot::channel();
        let gone = || io::Error::other("the thread that writes files has ended");
        let results = std::mem::take(&mut self.waiting);
        self.to.send(Order { results, then, done }).map_err(|_| gone())?;
        Ok(answer.await.map_err(|_| gone())??)
    }
}

fn begin(path: &Path) -> Begin {
    let holds_something = path.metadata().is_ok_and(|file| file.len() > 0);
    match Kind::of(path) {
        Ok(Kind::Sqlite) if holds_something => Begin::After(Mark::default()),
        _ => Begin::New,
    }
}

fn start(sinks: Vec<Sink>) -> mpsc::Sender<Order> {
    let (to, orders) = mpsc::channel();
    thread::spawn(move || Desk { sinks, uncommitted: None, failed: None }.serve(&orders));
    to
}

/// The thread's own side.
struct Desk {
    sinks: Vec<Sink>,
    /// Since when something is written and not committed.
    uncommitted: Option<Instant>,
    /// What a commit of its own accord said: the next order is told.
    failed: Option<SinkError>,
}

impl Desk {
    fn serve(mut self, orders: &mpsc::Receiver<Order>) {
        loop {
            let next = match self.uncommitted {
                Some(since) => orders.recv_timeout(COMMIT_AFTER.saturating_sub(since.elapsed())),
                None => orders.recv().map_err(RecvTimeoutError::from),
            };
            match next {
                Ok(Order { results, then, done }) => {
                    let said = self.carry_out(&results, then);
                    // Whoever asked may have given up waiting.
                    let _ = done.send(self.failed.take().map_or(said, Err));
                }
                Err(RecvTimeoutError::Timeout) => self.failed = self.commit().err(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn carry_out(&mut self, results: &[ImageResult], then: Then) -> Result<(), SinkError> {
        let written = self.each(|sink| sink.write(results));
        self.uncommitted.get_or_insert_with(Instant::now);
        let followed = match then {
            Then::Later => Ok(()),
            Then::Commit => self.commit(),
            Then::Finish => self.finish(),
        };
        written.and(followed)
    }

    fn commit(&mut self) -> Result<(), SinkError> {
        self.uncommitted = None;
        self.each(|sink| sink.commit().map(drop))
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        self.uncommitted = None;
        let ends: Vec<_> = self.sinks.drain(..).map(Sink::finish).collect();
        ends.into_iter().try_for_each(|end| end.map(drop))
    }

    /// A file that failed gets nothing more, and is not finished: it must not pass for a whole one.
    fn each(&mut self, mut act: impl FnMut(&mut Sink) -> Result<(), SinkError>) -> Result<(), SinkError> {
        let mut first = Ok(());
        self.sinks.retain_mut(|sink| match act(sink) {
            Ok(()) => true,
            Err(error) => {
                first = std::mem::replace(&mut first, Ok(())).and(Err(error));
                false
            }
        });
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::sample;
    use pixfleet_shared::result::Outcome;
    use std::fs;

    fn paths(folder: &tempfile::TempDir, names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(|name| folder.path().join(name)).collect()
    }

    fn open(paths: &[PathBuf]) -> Result<Files, SinkError> {
        Files::open(paths, &Options::default())
    }

    #[tokio::test]
    async fn every_file_has_every_result_and_only_a_database_is_gone_on_with() {
        let folder = tempfile::TempDir::new().unwrap();
        let all = paths(&folder, &["a.jsonl", "b.csv", "c.parquet", "d.db"]);
        let mut files = open(&all).unwrap();
        for number in 0..10 {
            files.push(sample(&number.to_string(), "m", Outcome::Ok, number));
            files.write(number == 5).await.unwrap();
        }
        assert_eq!(files.total(), 10);
        files.finish().await.unwrap();
        assert_eq!(fs::read_to_string(&all[0]).unwrap().lines().count(), 10);
        assert_eq!(fs::read_to_string(&all[1]).unwrap().lines().count(), 11);
        assert!(fs::read(&all[2]).unwrap().ends_with(b"PAR1"));
        for path in &all[..3] {
            assert!(matches!(open(std::slice::from_ref(path)), Err(SinkError::Exists { .. })));
        }
        open(&all[3..]).unwrap().finish().await.unwrap();
    }

    #[tokio::test]
    async fn what_is_committed_is_in_the_file_and_what_is_not_follows_by_itself() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = paths(&folder, &["a.jsonl"]);
        let lines = || fs::read_to_string(&path[0]).unwrap().lines().count();
        let mut files = open(&path).unwrap();
        files.push(sample("1", "m", Outcome::Ok, 1));
        files.write(true).await.unwrap();
        assert_eq!(lines(), 1);
        files.push(sample("2", "m", Outcome::Ok, 2));
        files.write(false).await.unwrap();
        let patience = Instant::now() + Duration::from_secs(30);
        while lines() < 2 {
            assert!(Instant::now() < patience, "it is never committed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_file_that_fails_is_told_of_and_the_others_are_made_whole() {
        let folder = tempfile::TempDir::new().unwrap();
        let all = paths(&folder, &["full.jsonl", "b.parquet"]);
        assert!(
            Path::new("/dev/full").exists(),
            "this test needs /dev/full, a disk that is always full: run it on Linux"
        );
        std::os::unix::fs::symlink("/dev/full", &all[0]).unwrap();
        let mut files = open(&all).unwrap();
        files.push(sample("1", "m", Outcome::Ok, 1));
        let said = files.write(true).await.unwrap_err().to_string();
        assert!(said.contains("full.jsonl") && said.contains("make room"), "{said}");
        files.finish().await.unwrap();
        assert!(fs::read(&all[1]).unwrap().ends_with(b"PAR1"));
    }
}
