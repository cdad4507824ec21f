//! `pixfleet batch`: the batches of the fleet or of a state file, the word that stops one, and what came of each image.
//!
//! `reach` opens the engines, `shown` is what is shown of a batch, `hold` pauses, resumes and cancels, and `manifest` closes a
//! batch: a line for each image and model, checked against what was promised.

mod hold;
mod manifest;
pub(crate) mod reach;
pub(crate) mod shown;

use std::process::ExitCode;

use anyhow::bail;
use jiff::Timestamp;
use pixfleet_shared::batch::BatchName;

use self::{
    hold::Order,
    reach::Reach,
    shown::{Shown, ShownAlone},
};
use crate::{
    config::Config, engine::Choice, enqueue::view::say, exit::Exit, limits, output,
    results::terminal::stdout_width,
};

/// List and show batches, pause, resume and cancel them, and close each with a line for every image and model
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  pixfleet batch list
  pixfleet batch pause spring                      no call leaves any more, within a second
  pixfleet batch resume spring
  pixfleet batch manifest spring --out spring-closed.csv
  pixfleet batch list --state spring.pixfleet      of a state file

The guide is docs/batches.md.

EXIT CODES
  0 done    1 failed, or something is missing    2 wrong command line    4 the batch is still running (manifest)")]
pub(crate) struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, clap::Subcommand)]
enum Task {
    /// List every batch, the youngest first
    #[command(after_help = "EXAMPLES
  pixfleet batch list
  pixfleet batch list --json | jq 'select(.complete | not) | {batch, done, missing}'

EXIT CODES
  0 listed    1 failed: the servers are away    2 wrong command line")]
    List {
        #[command(flatten)]
        engine: Choice,
        /// Print one JSON line a batch
        #[arg(long)]
        json: bool,
    },
    /// Show all that is known of a batch: its counts, what is missing or set aside, who keeps it
    #[command(after_help = "EXAMPLES
  pixfleet batch show spring
  pixfleet batch show spring --json | jq .tally

EXIT CODES
  0 shown    1 failed: no such batch, or the servers are away    2 wrong command line")]
    Show(#[command(flatten)] One),
    /// Let no call of a batch leave until `resume`; those under way end
    #[command(after_help = "EXAMPLES
  pixfleet batch pause spring
  pixfleet batch pause spring --by 'night watch'

Within a second no worker makes a call for it; its jobs are set aside, and cost nothing. Other batches go on.

EXIT CODES
  0 paused    1 failed: it is cancelled, not known, or a server is away    2 wrong command line")]
    Pause(#[command(flatten)] Word),
    /// Let a paused batch go on
    #[command(after_help = "EXAMPLES
  pixfleet batch resume spring

What was set aside is put back into the queue. Killed half-way it is run again, and goes on.

EXIT CODES
  0 resumed    1 failed: it is cancelled, not known, or a server is away    2 wrong command line")]
    Resume(#[command(flatten)] Word),
    /// Settle what is left of a batch as cancelled, for good: no call is made for it any more
    #[command(after_help = "EXAMPLES
  pixfleet batch cancel spring
  pixfleet batch cancel spring --by 'wrong folder'

Each image and model that has no result yet gets one with the outcome `cancelled`, which costs nothing.

EXIT CODES
  0 cancelled    1 failed: it is not known, or a server is away    2 wrong command line")]
    Cancel(#[command(flatten)] Word),
    /// Close a batch: a line for each image and model, checked against what was promised
    #[command(after_help = "EXAMPLES
  pixfleet batch manifest spring                           the checks alone
  pixfleet batch manifest spring --out spring-closed.csv   and the lines
  pixfleet batch manifest spring --images images.csv       names what is missing by its rows

EXIT CODES
  0 every line is there and agrees    1 something is missing, or contradicts; or the servers are away
  2 wrong command line    4 the batch is still running")]
    Manifest(manifest::Args),
}

/// A batch, and how it is shown.
#[derive(Debug, clap::Args)]
struct One {
    /// The batch
    #[arg(value_name = "NAME")]
    batch: BatchName,
    #[command(flatten)]
    engine: Choice,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A word to a batch.
#[derive(Debug, clap::Args)]
struct Word {
    #[command(flatten)]
    one: One,
    /// Who says so (default: $PIXFLEET_BY, else user@host)
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Also where nothing is known of a batch of this name
    #[arg(long)]
    anyway: bool,
}

#[derive(Clone, Copy, Debug)]
enum Verb {
    Pause,
    Resume,
    Cancel,
}

/// Does one task of `pixfleet batch`.
///
/// # Errors
/// When the servers are away, or the batch can't be what is asked.
pub(crate) async fn run(args: Args, config: Config) -> anyhow::Result<ExitCode> {
    match args.task {
        Task::List { engine, json } => {
            let reach = Reach::open(&engine, &config, None).await?;
            let list = reach.batches.list().await;
            reach.close().await;
            print_list(list?.into_iter().map(Shown::of).collect(), json)?;
        }
        Task::Show(one) => {
            let reach = Reach::open(&one.engine, &config, Some(&one.batch)).await?;
            let shown = show(&reach, &config, &one.batch).await;
            reach.close().await;
            print(&shown?, one.json)?;
        }
        Task::Pause(word) => speak(word, &config, Verb::Pause).await?,
        Task::Resume(word) => speak(word, &config, Verb::Resume).await?,
        Task::Cancel(word) => speak(word, &config, Verb::Cancel).await?,
        Task::Manifest(args) => return manifest::run(args, &config).await,
    }
    Ok(Exit::Done.into())
}

fn print_list(batches: Vec<Shown>, json: bool) -> anyhow::Result<()> {
    if json {
        return Ok(batches.iter().try_for_each(output::json)?);
    }
    if batches.is_empty() {
        say("no batch is known");
        return Ok(());
    }
    Ok(output::text(shown::table(&batches).fitted(stdout_width()))?)
}

fn print(shown: &ShownAlone, json: bool) -> anyhow::Result<()> {
    if json {
        return Ok(output::json(shown)?);
    }
    let lines = shown.lines(Timestamp::now(), stdout_width());
    Ok(lines.iter().try_for_each(output::line)?)
}

/// What is known of a batch; the queue may be away.
async fn show(reach: &Reach, config: &Config, batch: &BatchName) -> anyhow::Result<ShownAlone> {
    let Some(progress) = reach.batches.progress(batch).await? else { bail!(unknown(batch)) };
    let shown = Shown::of(progress);
    let set_aside = async {
        let lanes = reach.queue(config).await?;
        let parked = lanes.queue.parked(batch).await;
        lanes.close().await;
        anyhow::Ok(parked?)
    };
    Ok(match set_aside.await {
        Ok(jobs) => ShownAlone { shown, set_aside: Some(jobs), queue_away: None },
        Err(error) => ShownAlone { shown, set_aside: None, queue_away: Some(format!("{error:#}")) },
    })
}

async fn speak(word: Word, config: &Config, verb: Verb) -> anyhow::Result<()> {
    let One { batch, engine, json } = word.one;
    let reach = Reach::open(&engine, config, Some(&batch)).await?;
    let spoken = async {
        if !word.anyway && reach.batches.progress(&batch).await?.is_none() {
            bail!("{}; --anyway holds the name all the same", unknown(&batch));
        }
        let lanes = reach.queue(config).await?;
        let order = Order { reach: &reach, queue: &lanes.queue, batch: &batch, by: limits::author(word.by) };
        let done = match verb {
            Verb::Pause => order.pause().await,
            Verb::Resume => order.resume().await,
            Verb::Cancel => order.cancel().await,
        };
        lanes.close().await;
        done?;
        show(&reach, config, &batch).await
    };
    let spoken: anyhow::Result<ShownAlone> = spoken.await;
    reach.close().await;
    print(&spoken?, json)
}

/// What is said of a batch that nobody has heard of.
fn unknown(batch: &BatchName) -> String {
    format!("no batch `{batch}` is known: `pixfleet batch list` shows those that are")
}
