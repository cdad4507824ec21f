//! `pixfleet dead`: the jobs that will not be tried again by themselves; looked at, sent again, thrown away, exported.

mod consent;
mod export;
mod filter;
mod letter;
mod list;
mod look;
mod price;
mod purge;
mod replay;

use std::{path::PathBuf, process::ExitCode};

use pixfleet_shared::budget::Budget;
use pixfleet_worker::provider::Catalog;

use crate::{
    config::Config,
    engine::{Begin, Choice, Engine},
};
use filter::Filter;

/// Look at the jobs that were given up, and send them again
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  pixfleet dead list --batch spring
  pixfleet dead show 3f9a0c
  pixfleet dead replay --batch spring --reason attempts-exhausted
  pixfleet dead export letters.jsonl

Every reason, what a letter holds, and what is safe: docs/dead-letters.md.

EXIT CODES
  0 done    1 failed    2 wrong command line, or nobody said --yes    4 stopped or declined: the rest is still there")]
pub(crate) struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, clap::Subcommand)]
enum Task {
    /// List them, the oldest first, and count them by reason
    #[command(after_help = "EXAMPLES
  pixfleet dead list
  pixfleet dead list --reason rejected --since 2h --limit 200
  pixfleet dead list --json | jq -r 'select(.status == 400) | .image'")]
    List {
        #[command(flatten)]
        filter: Filter,
        /// Show so many; all are counted (default: 50, with --json all)
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        #[command(flatten)]
        common: Common,
    },
    /// Show everything about one: why it died, and its job
    #[command(after_help = "EXAMPLES
  pixfleet dead show 3f9a0c
  pixfleet dead show 3f9a0c --json | jq .job.metadata")]
    Show {
        /// The job's id, or its first digits (4 or more)
        #[arg(value_parser = filter::id_prefix)]
        id: String,
        #[command(flatten)]
        common: Common,
    },
    /// Send them again, as new jobs of the same batch, after saying what that costs
    #[command(after_help = "EXAMPLES
  pixfleet dead replay --batch spring --dry-run              how many, and at what price
  pixfleet dead replay --batch spring --reason rejected --yes
  pixfleet dead replay --reason budget-spent --budget 800 --yes
  pixfleet dead replay --id 3f9a0c --yes

A letter is replayed whole, with all models that have no answer, where one of them matches --model.
Broken off, it is run again: nothing is lost, and nothing replayed is paid for twice.")]
    Replay {
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        changes: Changes,
        /// Count and price; replay nothing
        #[arg(long, conflicts_with = "yes")]
        dry_run: bool,
        #[command(flatten)]
        assent: Assent,
        #[command(flatten)]
        common: Common,
    },
    /// Throw them away, for good
    #[command(after_help = "EXAMPLES
  pixfleet dead purge --batch spring --reason rejected --yes
  pixfleet dead purge --until 30d --yes                      those that died more than 30 days ago
  pixfleet dead purge --all --yes")]
    Purge {
        #[command(flatten)]
        filter: Filter,
        /// Every one, with no filter
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        assent: Assent,
        #[command(flatten)]
        common: Common,
    },
    /// Write them to a file as JSON lines; they stay where they are
    #[command(after_help = "EXAMPLES
  pixfleet dead export letters.jsonl --batch spring
  pixfleet dead export - | gzip > letters.jsonl.gz

A line holds the whole job: pictures that it carries, and signatures of its URL.")]
    Export {
        /// The file, replaced when all is written; `-` is stdout
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        common: Common,
    },
}

/// Where, and how it is shown.
#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    engine: Choice,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Whether somebody wants it.
#[derive(Debug, clap::Args)]
struct Assent {
    /// Do it without asking: needed where nobody can be asked
    #[arg(long, short)]
    yes: bool,
}

/// What is different about the jobs that are sent again.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Changes {
    /// What their batch may spend from now on, what it spent before included
    #[arg(long, value_name = "AMOUNT|NUMBERcalls")]
    budget: Option<Budget>,
    /// Without the deadline that they had
    #[arg(long)]
    no_deadline: bool,
}

impl Task {
    fn common(&self) -> &Common {
        match self {
            Self::List { common, .. }
            | Self::Show { common, .. }
            | Self::Replay { common, .. }
            | Self::Purge { common, .. }
            | Self::Export { common, .. } => common,
        }
    }
}

/// Does one task of `pixfleet dead`. What is sent again is priced by the providers in `catalog`.
///
/// # Errors
/// When the queue or the ledger is away, or the command line says too little.
pub(crate) async fn run(args: Args, config: Config, catalog: Catalog) -> anyhow::Result<ExitCode> {
    if let Task::Purge { filter, all, .. } = &args.task {
        purge::check(filter, *all)?;
    }
    let place = args.task.common().engine.place(&config.engine, None)?;
    let engine = Engine::open(&place, &config, Begin::Refused).await?;
    let ended = task(args.task, &engine, &config, &catalog).await;
    engine.close().await;
    Ok(ended?.into())
}

async fn task(
    task: Task,
    engine: &Engine,
    config: &Config,
    catalog: &Catalog,
) -> anyhow::Result<crate::exit::Exit> {
    let queue = engine.queue();
    match task {
        Task::List { filter, limit, common } => list::list(&*queue, &filter, limit, common.json).await,
        Task::Show { id, common } => list::show(&*queue, &id, common.json).await,
        Task::Export { file, filter, common } => export::export(&*queue, &filter, &file, common.json).await,
        Task::Purge { filter, assent, common, .. } => {
            purge::purge(&*queue, &filter, assent.yes, common.json).await
        }
        Task::Replay { filter, changes, dry_run, assent, common } => {
            let wish = replay::Wish { filter: &filter, changes, dry_run, yes: assent.yes, json: common.json };
            replay::replay(engine, config, catalog, &wish).await
        }
    }
}
