//! The reader: a thread that turns rows into chunks of planned jobs, and deals with the rows that can't be.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use pixfleet_shared::job::Job;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Order, READ_AHEAD, Why};
use crate::{
    manifest::{BadRow, Fault, Manifest, Row},
    plan::{self, Plan, Stamp},
    settings::Config,
};

/// A chunk is handed on when its jobs weigh this much, however few they are: pictures may travel in them.
const CHUNK_BYTES: usize = 512 * 1024;
/// A chunk is handed on at the next row after this, however few jobs it has: a slow pipe is no reason to wait.
const CHUNK_AGE: Duration = Duration::from_millis(250);
/// Bad rows that are logged one by one; the others are counted.
const LOGGED: u64 = 20;

/// What becomes of rows that can't be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BadRows {
    /// The enqueue stops at the first.
    #[default]
    Stop,
    /// They are left out, counted and logged.
    Skip,
    /// They are left out, and written to this file as JSONL, each with its place and reason.
    Keep(PathBuf),
}

/// Some planned jobs, all of an image's together.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) jobs: Vec<Job>,
    /// Rows left out since the last draft.
    pub(super) bad_rows: u64,
    /// Nothing comes after it.
    pub(super) end: Option<End>,
}

/// How the reading ended.
#[derive(Debug)]
pub(super) enum End {
    /// The manifest was read to its end.
    Complete,
    /// It was not.
    Early(Why),
}

impl Draft {
    /// What is taken for a draft when the reader has gone without a word: never for the manifest's end.
    pub(super) fn of_no_reader() -> Self {
        Self { end: Some(End::Early(Why::NoReader)), ..Self::default() }
    }
}

/// Starts to read. The thread ends with the manifest, with `stop`, or when nobody takes its drafts; it is not waited
/// for, because stdin may keep it for ever.
pub(super) fn start(
    manifest: Manifest,
    order: &Order,
    stamp: Stamp,
    config: &Config,
    stop: CancellationToken,
) -> Result<mpsc::Receiver<Draft>, Why> {
    let outcast = Outcast::new(&order.bad_rows)?;
    let (drafts, taken) = mpsc::channel(READ_AHEAD);
    let mut reader = Reader {
        plan: order.plan.clone(),
        stamp,
        chunk_jobs: config.chunk_jobs.get() as usize,
        outcast,
        draft: Draft::default(),
        weight: 0,
        since: Instant::now(),
        drafts,
    };
    thread::spawn(move || reader.read(manifest, &stop));
    Ok(taken)
}

struct Reader {
    plan: Plan,
    stamp: Stamp,
    chunk_jobs: usize,
    outcast: Outcast,
    draft: Draft,
    weight: usize,
    since: Instant,
    drafts: mpsc::Sender<Draft>,
}

impl Reader {
    fn read(&mut self, manifest: Manifest, stop: &CancellationToken) {
        let mut end = End::Complete;
        for item in manifest {
            if stop.is_cancelled() {
                end = End::Early(Why::Interrupted);
                break;
            }
            match self.take(item) {
                Ok(true) => {}
                Ok(false) => return, // nobody takes drafts any more
                Err(why) => {
                    end = End::Early(why);
                    break;
                }
            }
        }
        if let Err(why) = self.outcast.finish() {
            end = End::Early(why);
        }
        self.draft.end = Some(end);
        self.hand_on();
    }

    /// Takes one item; hands the draft on once it is full. False when nobody takes drafts any more.
    fn take(&mut self, item: Result<Row, Fault>) -> Result<bool, Why> {
        match item {
            Ok(row) => match self.plan.jobs(&self.stamp, &row.image, &row.metadata) {
                Ok(jobs) => {
                    self.weight += jobs.iter().map(plan::weight).sum::<usize>();
                    self.draft.jobs.extend(jobs);
                }
                Err(unfit) => self.leave_out(BadRow {
                    raw: row.image.id,
                    place: row.place,
                    field: None,
                    reason: unfit.to_string(),
                })?,
            },
            Err(Fault::Row(bad)) => self.leave_out(bad)?,
            Err(Fault::Broken(broken)) => return Err(broken.into()),
        }
        let full = self.draft.jobs.len() >= self.chunk_jobs
            || self.weight >= CHUNK_BYTES
            || self.draft.bad_rows >= self.chunk_jobs as u64
            || self.since.elapsed() >= CHUNK_AGE;
        Ok(!full || self.hand_on())
    }

    fn leave_out(&mut self, bad: BadRow) -> Result<(), Why> {
        self.outcast.take(bad)?;
        self.draft.bad_rows += 1;
        Ok(())
    }

    fn hand_on(&mut self) -> bool {
        let draft = std::mem::take(&mut self.draft);
        self.weight = 0;
        let taken = self.drafts.blocking_send(draft).is_ok();
        self.since = Instant::now();
        taken
    }
}

/// Where rows that can't be used go.
enum Outcast {
    Stop,
    Skip(u64),
    File(String, BufWriter<File>),
}

impl Outcast {
    fn new(bad_rows: &BadRows) -> Result<Self, Why> {
        match bad_rows {
            BadRows::Stop => Ok(Self::Stop),
            BadRows::Skip => Ok(Self::Skip(0)),
            BadRows::Keep(path) => {
                let name = path.display().to_string();
                match File::create(path) {
                    Ok(file) => Ok(Self::File(name, BufWriter::new(file))),
                    Err(cause) => Err(Why::BadRowsFile { file: name, cause }),
                }
            }
        }
    }

    fn take(&mut self, bad: BadRow) -> Result<(), Why> {
        match self {
            Self::Stop => return Err(Why::BadRow(bad)),
            Self::Skip(count) => {
                *count += 1;
                if *count <= LOGGED {
                    warn!(row.place = %bad.place, row.field = bad.field, row.reason = bad.reason, "a row is left out");
                }
                if *count == LOGGED {
                    warn!("further rows that are left out are only counted: --bad-rows FILE keeps them all");
                }
            }
            Self::File(name, file) => {
                let written = serde_json::to_writer(&mut *file, &bad).map_err(Into::into);
                written
                    .and_then(|()| file.write_all(b"\n"))
                    .map_err(|cause| Why::BadRowsFile { file: name.clone(), cause })?;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Why> {
        match self {
            Self::File(name, file) => {
                file.flush().map_err(|cause| Why::BadRowsFile { file: name.clone(), cause })
            }
            _ => Ok(()),
        }
    }
}
