//! The replay of the results log, from its beginning to the present.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::bail;
use jiff::{SignedDuration, Timestamp};
use pixfleet_shared::{
    batch::{BatchEvent, BatchName, BatchState},
    embedded::Store,
    queue::{Filter, From, Subscription},
    result::Announcement,
};
use tokio::time::timeout;

use super::lines::Lines;
use crate::{
    batch::reach::{Lanes, Reach},
    config::Config,
    enqueue::view::say,
    results::Source,
    words::count,
};

/// A log that is silent for so long has been read to its end.
const SILENT: Duration = Duration::from_secs(3);
/// A broker that is away for so long is not waited for any more.
const AWAY: Duration = Duration::from_secs(60);
/// What was made so long after the reading began is after its end, also by a clock that is ahead.
const AHEAD: SignedDuration = SignedDuration::from_secs(2);
/// Announcements of a state file that are read at once.
const PAGE: usize = 512;
/// How often it is said how far the reading is.
const SAID_EVERY: Duration = Duration::from_secs(5);

/// A results log.
pub(super) enum Log {
    /// Of a state file: its end is known.
    State(Arc<Store>),
    /// Of the broker: its end is where nothing more comes.
    Broker(Box<Source>, Lanes),
}

/// The news of the batch as a whole that the log has.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// The last word of an enqueue.
    pub(super) enqueue: Option<BatchEvent>,
    /// The last word on its end.
    pub(super) complete: Option<BatchEvent>,
}

impl Events {
    fn note(&mut self, event: BatchEvent) {
        match event.state {
            BatchState::Complete => self.complete = Some(event),
            BatchState::Opened | BatchState::Closed => self.enqueue = Some(event),
        }
    }

    /// Whether there was none.
    pub(super) fn is_silent(&self) -> bool {
        self.enqueue.is_none() && self.complete.is_none()
    }
}

impl Log {
    /// Opens the log of the state file, or of the broker.
    ///
    /// # Errors
    /// When the broker is away.
    pub(super) async fn open(reach: &Reach, config: &Config) -> anyhow::Result<Self> {
        if let Some(embedded) = reach.state() {
            return Ok(Self::State(embedded.store().clone()));
        }
        let lanes = reach.queue(config).await?;
        // All of it, so that silence is its end: of one batch alone there may be nothing for long.
        let all = Subscription { name: None, from: From::Beginning, filter: Filter::default() };
        match Source::open(&*lanes.queue, all).await {
            Ok(source) => Ok(Self::Broker(Box::new(source), lanes)),
            Err(error) => {
                lanes.close().await;
                Err(error.into())
            }
        }
    }

    /// Takes every result of `batch` into `lines`.
    ///
    /// # Errors
    /// When the log can't be read to its end, or the lines can't be kept.
    pub(super) async fn read(self, batch: &BatchName, lines: &mut Lines) -> anyhow::Result<Events> {
        let mut reading = Reading { batch, lines, events: Events::default(), said: Instant::now() };
        match self {
            Self::State(store) => {
                let filter = Filter { batch: Some(batch.clone()), ..Filter::default() };
                let mut position = 0;
                loop {
                    let (page, end) = store.log(position, PAGE, filter.clone()).await?;
                    page.into_iter().try_for_each(|announcement| reading.take(announcement))?;
                    if end == position {
                        return Ok(reading.events);
                    }
                    position = end;
                }
            }
            Self::Broker(mut source, lanes) => {
                let read = reading.follow(&mut source, &lanes).await;
                drop(source);
                let events = reading.events;
                lanes.close().await;
                read.map(|()| events)
            }
        }
    }
}

struct Reading<'a> {
    batch: &'a BatchName,
    lines: &'a mut Lines,
    events: Events,
    said: Instant,
}

impl Reading<'_> {
    async fn follow(&mut self, source: &mut Source, lanes: &Lanes) -> anyhow::Result<()> {
        let present = Timestamp::now() + AHEAD;
        let mut heard = Instant::now();
        loop {
            match timeout(SILENT, source.next()).await {
                Ok(announcement) => {
                    let announcement = announcement?;
                    heard = Instant::now();
                    let at = match &announcement {
                        Announcement::Result(result, _) => result.completed_at,
                        Announcement::Batch(event) => event.at,
                    };
                    self.take(announcement)?;
                    if at > present {
                        return Ok(());
                    }
                }
                Err(_) => match lanes.queue.health() {
                    Ok(()) => return Ok(()),
                    Err(why) if heard.elapsed() > AWAY => {
                        bail!("the log was not read to its end, because the queue is away: {why}")
                    }
                    Err(_) => {}
                },
            }
        }
    }

    fn take(&mut self, announcement: Announcement) -> anyhow::Result<()> {
        match announcement {
            Announcement::Result(result, _) if result.batch == *self.batch => self.lines.add(&result)?,
            Announcement::Batch(event) if event.batch == *self.batch => self.events.note(event),
            Announcement::Result(..) | Announcement::Batch(_) => {}
        }
        if self.said.elapsed() >= SAID_EVERY {
            self.said = Instant::now();
            say(&format!("batch {}: {} lines read so far", self.batch, count(self.lines.len())));
        }
        Ok(())
    }
}
