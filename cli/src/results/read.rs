//! The loop: takes announcements, counts, writes, commits what is written, and knows when to stop.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use jiff::Timestamp;
use pixfleet_shared::{
    queue::{Filter, Queue, QueueError},
    result::{Announcement, ImageResult},
};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    ending::{Ended, Ending, Standing},
    files::Files,
    gather::Gather,
    progress::Progress,
    report::Report,
    rows::Rows,
    seen::Sight,
    source::Source,
    tally::Tally,
    writer::Writer,
};

/// Below the announcements that an engine lends ahead of a commit, so that a durable subscriber never stalls.
const COMMIT_EVERY: usize = 250;
const TICK: Duration = Duration::from_millis(100);
/// After an interruption, an output that takes no more is given up.
const LAST_WRITE: Duration = Duration::from_secs(5);

/// A reader of results, ready to run.
pub(crate) struct Reader {
    /// Where the results come from.
    pub source: Source,
    /// A second reader, of the whole log, that counts the batch where `source` does not tell all of it.
    pub census: Option<Source>,
    /// What is counted from the source; it knows what an earlier run wrote.
    pub tally: Tally,
    /// What is counted from the census.
    pub counted: Tally,
    /// What is written. Everything that comes is counted.
    pub show: Filter,
    /// Gathers results into summaries, if asked.
    pub gather: Option<Gather>,
    /// The rows to be.
    pub rows: Rows,
    /// Where they go; nowhere when only the counts are wanted.
    pub output: Option<Writer>,
    /// Files that get the results, too.
    pub files: Option<Files>,
    /// How long rows may wait before they are written.
    pub page: Duration,
    /// What ends the reader.
    pub ending: Ending,
    /// What people see meanwhile.
    pub progress: Progress,
}

/// What changes while a reader runs.
struct Run {
    reader: Reader,
    began: Instant,
    began_at: Timestamp,
    last_arrival: Instant,
    last_write: Instant,
    uncommitted: usize,
    repeated: u64,
    elsewhere: u64,
    passed_present: bool,
}

impl Reader {
    /// Reads until its [`Ending`], or until `stop`; then everything that was read is written and committed.
    ///
    /// # Errors
    /// When the subscription can't go on, or the output takes no more: what was not committed comes again.
    pub(crate) async fn run(self, queue: Arc<dyn Queue>, stop: CancellationToken) -> anyhow::Result<Report> {
        let now = Instant::now();
        let mut run = Run {
            reader: self,
            began: now,
            began_at: Timestamp::now(),
            last_arrival: now,
            last_write: now,
            uncommitted: 0,
            repeated: 0,
            elsewhere: 0,
            passed_present: false,
        };
        let ended = match run.read(&*queue, &stop).await {
            Err(error) if output_closed(&error) => Ended::OutputClosed,
            Err(error) => {
                // What was read by then is read by others all the same; the first error is the one that is told.
                let _ = timeout(LAST_WRITE, run.reader.finish_files()).await;
                return Err(error);
            }
            Ok(ended) => ended,
        };
        run.finish(ended, &stop).await
    }
}

impl Run {
    async fn read(&mut self, queue: &dyn Queue, stop: &CancellationToken) -> anyhow::Result<Ended> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                arrival = self.reader.source.next() => self.take(arrival?)?,
                arrival = next_of(&mut self.reader.census) => self.count(arrival?),
                _ = tick.tick() => {
                    if self.last_write.elapsed() >= self.reader.page {
                        self.write(stop).await?;
                    }
                    let standing = self.standing(queue);
                    if let Some(ended) = self.reader.ending.verdict(&standing) {
                        return Ok(ended);
                    }
                    self.show(&standing);
                }
                () = stop.cancelled() => return Ok(Ended::Interrupted),
            }
            if self.uncommitted >= COMMIT_EVERY {
                self.write(stop).await?;
            }
        }
    }

    /// Takes an announcement of the source: counted always, written when it is news and wanted.
    fn take(&mut self, announcement: Announcement) -> anyhow::Result<()> {
        self.last_arrival = Instant::now();
        self.uncommitted += 1;
        match announcement {
            // Without a batch, what one of many promises says nothing of what is to come.
            Announcement::Batch(event) if self.reader.show.batch.is_some() => self.reader.tally.event(event),
            Announcement::Batch(_) => {}
            Announcement::Result(result, trace) => {
                self.passed_present |= result.completed_at >= self.began_at;
                match self.reader.tally.result(&result) {
                    Sight::Repeated => self.repeated += 1,
                    sight => {
                        if sight == Sight::New && self.reader.counted.knows(result.id) {
                            self.elsewhere = self.elsewhere.saturating_sub(1);
                        }
                        let announcement = Announcement::Result(result, trace);
                        if self.reader.show.wants(&announcement)
                            && let Announcement::Result(result, _) = announcement
                        {
                            self.row(*result)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Counts an announcement of the log.
    fn count(&mut self, announcement: Announcement) {
        self.last_arrival = Instant::now();
        match announcement {
            Announcement::Batch(event) => self.reader.counted.event(event),
            Announcement::Result(result, _) => {
                let news = self.reader.counted.result(&result) == Sight::New;
                self.elsewhere += u64::from(news && !self.reader.tally.knows(result.id));
            }
        }
    }

    fn row(&mut self, result: ImageResult) -> anyhow::Result<()> {
        let Reader { gather, rows, output, files, .. } = &mut self.reader;
        match gather {
            Some(gather) => rows.summaries(&gather.add(&result))?,
            None if output.is_some() => rows.result(&result)?,
            None => {}
        }
        if let Some(files) = files {
            files.push(result);
        }
        Ok(())
    }

    /// Writes what waits, then commits: in this order, a crash in between costs a repetition and no result.
    async fn write(&mut self, stop: &CancellationToken) -> anyhow::Result<()> {
        self.last_write = Instant::now();
        let patience = async {
            stop.cancelled().await;
            tokio::time::sleep(LAST_WRITE).await;
        };
        let sync = self.reader.source.forgets();
        tokio::select! {
            written = self.reader.hand_over(sync) => written?,
            () = patience => anyhow::bail!("the output takes no more rows; what it did not take comes again"),
        }
        if self.uncommitted > 0 {
            self.uncommitted = 0;
            if let Err(error) = self.reader.source.commit().await {
                // It is delivered again, and known then.
                tracing::warn!(%error, "not committed");
            }
        }
        Ok(())
    }

    async fn finish(mut self, ended: Ended, stop: &CancellationToken) -> anyhow::Result<Report> {
        let counts = self.totals().counts();
        let complete = counts.complete();
        if ended != Ended::OutputClosed {
            let last = self.reader.gather.as_mut().map(|gather| gather.finish(complete));
            self.reader.rows.summaries(&last.unwrap_or_default())?;
            // A bound of its own: the interruption may be why we are here.
            let last = timeout(LAST_WRITE * 2, self.write(stop)).await;
            last.context("the last rows could not be written").flatten()?;
        }
        let written = self.reader.written();
        self.reader.finish_files().await?;
        self.reader.progress.end();
        Ok(Report {
            batch: self.reader.show.batch.clone(),
            ended,
            complete,
            counts,
            tally: self.totals().announced(),
            written,
            repeated: self.repeated,
            elsewhere: self.elsewhere,
            calls: self.totals().statistics(),
        })
    }

    /// The counts of the batch: the census's, where there is one.
    fn totals(&self) -> &Tally {
        if self.reader.census.is_some() { &self.reader.counted } else { &self.reader.tally }
    }

    fn standing(&self, queue: &dyn Queue) -> Standing {
        Standing {
            running: self.began.elapsed(),
            silent: self.last_arrival.elapsed(),
            complete: self.totals().counts().complete(),
            elsewhere: self.elsewhere,
            passed_present: self.passed_present,
            reachable: queue.health().is_ok(),
        }
    }

    fn show(&mut self, standing: &Standing) {
        let counts = self.totals().counts();
        self.reader.progress.show(&counts);
        let nothing = self.last_arrival == self.began && standing.reachable;
        if let (true, Some(batch)) = (nothing, &self.reader.show.batch) {
            self.reader.progress.nothing_of(batch, standing.running);
        }
    }
}

async fn next_of(source: &mut Option<Source>) -> Result<Announcement, QueueError> {
    match source {
        Some(source) => source.next().await,
        None => std::future::pending().await,
    }
}

fn output_closed(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
