//! Takes the results of a run from its state file to its outputs, each once, whatever kills it in between.
//!
//! Beside its position in the log an output's reader keeps the output's mark, how much of the file is committed. After
//! a crash the file is cut to the mark and goes on from the position: what was written and not committed comes again,
//! to the place where it was.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use pixfleet_shared::{
    batch::BatchName,
    embedded::Store,
    queue::Filter,
    result::{Announcement, ImageResult},
};
use pixfleet_sinks::{Begin, Mark, Options, Sink, SinkError};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

/// Results that are read at once.
const PAGE: usize = 512;
/// What is said of an output whose thread panicked.
const GONE: &str = "the thread that writes the output ended badly; see the log above";
/// What is written is on the disk, and kept as such, this often.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// One output, and how far it is.
pub(super) struct Collector {
    store: Arc<Store>,
    batch: BatchName,
    /// The name of its reader in the state file.
    reader: String,
    path: PathBuf,
    /// Away only while a thread that may block has it.
    sink: Option<Box<Sink>>,
    /// Whether the sink forgets, and is told everything again.
    replays: bool,
    position: i64,
}

impl Collector {
    /// Opens an output where an earlier run left it, or begins it.
    ///
    /// # Errors
    /// When the file is somebody else's, or was changed meanwhile.
    pub(super) async fn open(store: Arc<Store>, batch: &BatchName, path: &Path) -> anyhow::Result<Self> {
        let reader = reader_of(store.path(), batch, path);
        let (position, begin) = match store.reader(&reader).await? {
            Some((position, note)) => (position, Begin::After(mark(note.as_deref())?)),
            None => (0, Begin::New),
        };
        let begins = matches!(begin, Begin::New) && !holds_something(path);
        if begins {
            // Before the first byte: a file that this run began is known as such, however soon it is killed.
            keep(&store, &reader, 0, Mark::default()).await?;
        }
        let own = path.to_owned();
        let opened = spawn_blocking(move || open(&own, begin)).await?;
        if begins && opened.is_err() {
            // It is another one's, which has not written to it yet: a later run must not take it for this one's.
            store.forget_reader(&reader).await?;
        }
        let (sink, anew) = opened.map_err(|error| match (&error, begin) {
            (SinkError::Exists { .. } | SinkError::Foreign { .. }, Begin::New) => {
                let run = format!("batch `{batch}` of {} did not begin that file", store.path().display());
                anyhow::Error::from(error).context(run)
            }
            (SinkError::Shortened { .. } | SinkError::Foreign { .. }, Begin::After(_)) => {
                anyhow::Error::from(error).context("the output of an earlier run can't be gone on with")
            }
            _ => error.into(),
        })?;
        let replays = sink.replays();
        let position = if anew || replays { 0 } else { position };
        let (path, sink) = (path.to_owned(), Some(Box::new(sink)));
        Ok(Self { store, batch: batch.clone(), reader, path, sink, replays, position })
    }

    /// Collects until everything is here that was published when `last` was said, and makes the file whole.
    ///
    /// # Errors
    /// What the output's disk said. What was committed before stays, and a next run goes on from there.
    pub(super) async fn run(mut self, last: CancellationToken) -> anyhow::Result<()> {
        let mut news = self.store.published();
        let mut committed = Instant::now();
        let mut uncommitted = false;
        loop {
            news.borrow_and_update();
            // Looked at before the page: what was published before it was said is in this page or a later one.
            let ending = last.is_cancelled();
            let more = self.page().await?;
            uncommitted |= more;
            if uncommitted && committed.elapsed() >= COMMIT_EVERY {
                self.commit().await?;
                (committed, uncommitted) = (Instant::now(), false);
            }
            match (more, ending) {
                (true, _) => {}
                (false, true) => break,
                (false, false) => {
                    let soon = COMMIT_EVERY.saturating_sub(committed.elapsed());
                    tokio::select! {
                        changed = news.changed() => changed.context("the state file is closed")?,
                        () = tokio::time::sleep(soon), if uncommitted => {}
                        () = last.cancelled() => {}
                    }
                }
            }
        }
        self.finish().await
    }

    /// Writes one page of the log; answers whether there was something.
    async fn page(&mut self) -> anyhow::Result<bool> {
        let filter = Filter { batch: Some(self.batch.clone()), ..Filter::default() };
        let (announcements, end) = self.store.log(self.position, PAGE, filter).await?;
        if end == self.position {
            return Ok(false);
        }
        let results: Vec<ImageResult> = announcements
            .into_iter()
            .filter_map(|announcement| match announcement {
                Announcement::Result(result, _) => Some(*result),
                Announcement::Batch(_) => None,
            })
            .collect();
        self.with_sink(move |sink| sink.write(&results)).await?;
        self.position = end;
        Ok(true)
    }

    async fn commit(&mut self) -> anyhow::Result<()> {
        if self.replays {
            return Ok(());
        }
        let mark = self.with_sink(Sink::commit).await?;
        keep(&self.store, &self.reader, self.position, mark).await
    }

    async fn finish(mut self) -> anyhow::Result<()> {
        // The mark first: a file that is finished and not kept as such is cut to it and goes on.
        self.commit().await?;
        let Self { sink, store, reader, position, path, .. } = self;
        let sink = sink.context(GONE)?;
        let mark = spawn_blocking(move || sink.finish()).await??;
        if !holds_something(&path) {
            // Nothing came: whoever writes into that empty file next must find it nobody's.
            return Ok(store.forget_reader(&reader).await?);
        }
        keep(&store, &reader, position, mark).await
    }

    /// Does one thing to the sink, in a thread that may block: a disk must not hold up the calls. (Blocking in place
    /// would move the calls to another thread instead, and every thread has memory of its own.)
    async fn with_sink<T: Send + 'static>(
        &mut self,
        act: impl FnOnce(&mut Sink) -> Result<T, SinkError> + Send + 'static,
    ) -> anyhow::Result<T> {
        let mut sink = self.sink.take().context(GONE)?;
        let acting = spawn_blocking(move || {
            let acted = act(&mut sink);
            (sink, acted)
        });
        let (sink, acted) = acting.await?;
        self.sink = Some(sink);
        acted.with_context(|| format!("results can't be collected into {}", self.path.display()))
    }
}

async fn keep(store: &Store, reader: &str, position: i64, mark: Mark) -> anyhow::Result<()> {
    Ok(store.commit_reader(reader, position, serde_json::to_string(&mark)?).await?)
}

fn holds_something(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.len() > 0)
}

/// The sink, and whether it begins anew although an earlier run had begun it: somebody took its file away.
fn open(path: &Path, begin: Begin) -> Result<(Sink, bool), SinkError> {
    match (Sink::open(path, begin, &Options::default()), begin) {
        (Err(SinkError::Gone { .. }), Begin::After(_)) => {
            Ok((Sink::open(path, Begin::New, &Options::default())?, true))
        }
        (opened, _) => Ok((opened?, false)),
    }
}

fn mark(note: Option<&str>) -> anyhow::Result<Mark> {
    match note.map(serde_json::from_str) {
        Some(Ok(mark)) => Ok(mark),
        _ => bail!("the state file does not say how far an output is: give another --state"),
    }
}

/// The reader of a batch's output: the way to it from the state file, so that both can be moved together. Another
/// batch's reader is another one, or it would go on in the middle of this one's results.
fn reader_of(state: &Path, batch: &BatchName, output: &Path) -> String {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (state, output) = (absolute(state), absolute(output));
    let beside = state.parent().and_then(|folder| output.strip_prefix(folder).ok());
    format!("output {batch} {}", beside.unwrap_or(&output).display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_beside_the_state_is_known_wherever_both_are_moved() {
        let batch = "b".parse().unwrap();
        let reader = |state: &str, output: &str| reader_of(Path::new(state), &batch, Path::new(output));
        assert_eq!(reader("/a/s.pixfleet", "/a/out/r.csv"), "output b out/r.csv");
        assert_eq!(reader("/b/s.pixfleet", "/b/out/r.csv"), "output b out/r.csv");
        assert_eq!(reader("/a/s.pixfleet", "/elsewhere/r.csv"), "output b /elsewhere/r.csv");
        assert_eq!(reader("s.pixfleet", "r.csv"), "output b r.csv");
    }
}
