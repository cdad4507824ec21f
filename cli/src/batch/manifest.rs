//! `pixfleet batch manifest`: closes a batch with a line for each image and model, checked against what was promised.
//!
//! `log` replays the results, `lines` keeps the last word on each, on the disk, `missing` names what is not there, and
//! `verdict` says whether all of it agrees.

mod lines;
mod log;
mod missing;
mod verdict;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use jiff::Timestamp;
use pixfleet_shared::{batch::BatchName, batches::Progress};
use tokio::{task::spawn_blocking, time::sleep};

use self::{
    lines::{Format, Lines},
    log::Log,
    missing::Search,
    verdict::{Promise, Verdict},
};
use super::reach::Reach;
use crate::{config::Config, engine::Choice, enqueue::record_folder, output};

/// How often, and how soon again, counts are asked for that lag behind the log.
const COUNTED_TRIES: u32 = 20;
const COUNTED_PAUSE: Duration = Duration::from_millis(100);

/// What `pixfleet batch manifest` can be told.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The batch
    #[arg(value_name = "NAME")]
    batch: BatchName,
    /// Write the lines to this file, .csv or .jsonl; one that holds something is refused
    #[arg(long, value_name = "FILE", value_parser = lines_file)]
    out: Option<PathBuf>,
    /// The manifest that was enqueued, to name what is missing by its rows (repeat it)
    #[arg(long, value_name = "MANIFEST")]
    images: Vec<String>,
    /// The file that records what the queue confirmed (default: where `enqueue` keeps it)
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    #[command(flatten)]
    engine: Choice,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn lines_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    Format::of(&path).map(|_| path)
}

/// Replays the batch, writes its lines, and says whether they agree with what was promised.
///
/// # Errors
/// When the servers are away, or a file can't be written.
pub(super) async fn run(args: Args, config: &Config) -> anyhow::Result<ExitCode> {
    if let Some(out) = &args.out {
        lines::refuse_what_holds_something(out)?;
    }
    let reach = Reach::open(&args.engine, config, Some(&args.batch)).await?;
    let verdict = close(&args, &reach, config).await;
    reach.close().await;
    let verdict = verdict?;
    if args.json {
        output::json(&verdict)?;
    } else {
        verdict.lines().iter().try_for_each(output::line)?;
    }
    Ok(verdict.exit().into())
}

async fn close(args: &Args, reach: &Reach, config: &Config) -> anyhow::Result<Verdict> {
    let mut lines = Lines::begin(args.out.as_deref())?;
    let log = Log::open(reach, config).await?;
    // Before the log: what is counted was published first, so the log has it.
    let progress = reach.batches.progress(&args.batch).await?;
    let events = log.read(&args.batch, &mut lines).await?;
    let progress = counted(reach, &args.batch, progress, lines.len()).await?;
    if lines.is_empty() && progress.is_none() && events.is_silent() {
        anyhow::bail!(super::unknown(&args.batch));
    }
    let promise = Promise::of(progress, &events);
    let search = Search {
        batch: args.batch.clone(),
        images: args.images.clone(),
        record: args.record.clone().or_else(|| record_of(reach, config, &args.batch)),
        state: reach.state().is_some(),
    };
    let out = args.out.clone();
    // Files of any size: not on a thread of the runtime.
    let closed = spawn_blocking(move || -> anyhow::Result<Verdict> {
        let mut lines = lines.written()?;
        let mut verdict = Verdict::of(search.batch.clone(), &promise, &lines);
        // Of a batch that is still running, what is not there comes.
        if (verdict.missing > 0 && !verdict.running) || !search.images.is_empty() {
            verdict.name(search.look(&mut lines, verdict.missing)?);
        }
        if let Some(out) = out {
            lines.finish(&out)?;
            verdict.out = Some(out);
        }
        Ok(verdict)
    });
    closed.await.context("the thread that writes the lines ended badly; see the log above")?
}

/// What the fleet knows once it has counted `lines`, where it was not through with them before: a count follows its result
/// within milliseconds.
async fn counted(
    reach: &Reach,
    batch: &BatchName,
    mut progress: Option<Progress>,
    lines: u64,
) -> anyhow::Result<Option<Progress>> {
    for _ in 0..COUNTED_TRIES {
        match &progress {
            Some(known) if known.closed && lines >= known.expected && !known.is_complete() => {}
            _ => break,
        }
        sleep(COUNTED_PAUSE).await;
        progress = reach.batches.progress(batch).await?;
    }
    Ok(progress)
}

/// Where the record of the enqueue is, if it is on this machine.
fn record_of(reach: &Reach, config: &Config, batch: &BatchName) -> Option<PathBuf> {
    match reach.state() {
        Some(embedded) => Some(embedded.store().path().to_owned()),
        None => record_folder(&config.enqueue).map(|folder| folder.join(format!("{batch}.sqlite"))),
    }
}

/// A file beside `path`, or one of the system's for temporary files.
fn beside(path: Option<&Path>, ending: &str) -> PathBuf {
    match path {
        Some(path) => {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        }
        None => {
            let unique = Timestamp::now().as_nanosecond();
            std::env::temp_dir().join(format!("pixfleet-{}-{unique}{ending}", std::process::id()))
        }
    }
}
