//! `pixfleet ledger`: calls that were never answered, what somebody found out about them, and what invoices have to agree with.

mod export;
mod list;
mod moment;
mod money;
mod resolve;
#[cfg(test)]
mod sample;
mod select;

use std::{path::PathBuf, process::ExitCode};

use jiff::{Timestamp, civil::Date};

use self::{export::Export, moment::day_of, select::Filters};
use crate::{
    batch::reach::Reach, config::Config, engine::Choice, enqueue::view::say, exit::Exit, limits, output,
};

/// List calls that were never answered, resolve them, and export what an invoice has to agree with
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  pixfleet ledger list                             calls of the last 7 days that nobody resolved
  pixfleet ledger resolve 5f0c9a1be2d3 --charged   what the vendor's page says of one
  pixfleet ledger export october.csv --from 2026-10-01 --to 2026-10-31
  pixfleet ledger list --state spring.pixfleet     and in a state file

A call that left and whose answer never came may have been paid for. The guide is docs/ledger.md.

EXIT CODES
  0 done    1 failed: the ledger is away    2 refused: a call that is not listed, or --yes is missing")]
pub(crate) struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, clap::Subcommand)]
enum Task {
    /// List calls that were never answered: of the last 7 days, and that nobody resolved
    #[command(after_help = "EXAMPLES
  pixfleet ledger list
  pixfleet ledger list --batch spring --since 2026-11-20 --until 2026-11-22
  pixfleet ledger list --all --json | jq 'select(.resolution == null) | .call'

EXIT CODES
  0 listed, however many    1 failed: the ledger is away    2 wrong command line")]
    List {
        #[command(flatten)]
        filters: Filters,
        #[command(flatten)]
        engine: Choice,
        /// Print one JSON line a call; the sum goes to stderr
        #[arg(long)]
        json: bool,
    },
    /// Keep what somebody found out about calls: whether the vendor charged them
    #[command(
        group = clap::ArgGroup::new("verdict").required(true).args(["charged", "not_charged"]),
        after_help = "EXAMPLES
  pixfleet ledger resolve 5f0c9a1be2d3 8e11d0c47aa2 --charged
  pixfleet ledger resolve --batch spring --not-charged           says how many it would be
  pixfleet ledger resolve --batch spring --not-charged --yes --by 'invoice 4711'

EXIT CODES
  0 resolved    1 failed: the ledger is away    2 refused: a call that is not listed, or --yes is missing"
    )]
    Resolve {
        /// Calls by their id, or by the beginning of it that `ledger list` shows
        #[arg(value_name = "CALL", conflicts_with_all = ["batch", "provider", "account", "model", "since", "until", "all"])]
        calls: Vec<String>,
        /// The vendor charged them
        #[arg(long)]
        charged: bool,
        /// The vendor did not charge them
        #[arg(long)]
        not_charged: bool,
        #[command(flatten)]
        filters: Filters,
        /// Resolve all that the filters let through
        #[arg(long)]
        yes: bool,
        /// Who says so (default: $PIXFLEET_BY, else user@host)
        #[arg(long, value_name = "NAME")]
        by: Option<String>,
        #[command(flatten)]
        engine: Choice,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write what was answered and charged, and what may have been, by day, account and model
    #[command(after_help = "EXAMPLES
  pixfleet ledger export --from 2026-11-01 --to 2026-11-30
  pixfleet ledger export november.csv --from 2026-11-01 --to 2026-11-30
  pixfleet ledger export --from 2026-11-26 --json | jq 'select(.model == \"*\")'

A vendor's invoice for a day (UTC), a key and a model lies between charged_at_least and charged_at_most.

EXIT CODES
  0 written    1 failed: the ledger is away, or the file can't be written    2 wrong command line")]
    Export {
        /// The file (default: stdout)
        file: Option<PathBuf>,
        /// The first day (UTC)
        #[arg(long, value_name = "DAY", value_parser = moment::day)]
        from: Date,
        /// The last day (UTC) (default: today)
        #[arg(long, value_name = "DAY", value_parser = moment::day)]
        to: Option<Date>,
        #[command(flatten)]
        engine: Choice,
        /// Write JSON lines instead of CSV
        #[arg(long)]
        json: bool,
    },
}

/// Does one task of `pixfleet ledger`.
///
/// # Errors
/// When the ledger is away, or a call is named that is not listed.
pub(crate) async fn run(args: Args, config: Config) -> anyhow::Result<ExitCode> {
    args.task.check()?;
    let (Task::List { engine, .. } | Task::Resolve { engine, .. } | Task::Export { engine, .. }) = &args.task;
    let reach = Reach::open(engine, &config, None).await?;
    let done = args.task.run(&reach).await;
    reach.close().await;
    done.map(|()| Exit::Done.into())
}

impl Task {
    /// What contradicts itself, before anything is asked.
    fn check(&self) -> Result<(), clap::Error> {
        let way_out = match self {
            Self::Resolve { calls, filters, .. } if calls.is_empty() && !filters.say_something() => {
                "name calls, or say which by filters: --batch NAME, --since WHEN\n".to_owned()
            }
            Self::Export { from, to: Some(to), .. } if to < from => {
                format!("--to {to} is before --from {from}: give the first day first\n")
            }
            _ => return Ok(()),
        };
        Err(clap::Error::raw(clap::error::ErrorKind::ValueValidation, way_out))
    }

    async fn run(self, reach: &Reach) -> anyhow::Result<()> {
        let ledger = reach.ledger.as_ref();
        match self {
            Self::List { filters, json, .. } => {
                let found = filters.find(ledger, Timestamp::now()).await?;
                list::print(&found, json)
            }
            Self::Resolve { calls, charged, filters, yes, by, json, .. } => {
                let meant = resolve::meant(ledger, &calls, &filters).await?;
                if calls.is_empty() && !meant.is_empty() && !yes {
                    return Err(resolve::unsure(&meant, charged).into());
                }
                resolve::resolve(ledger, &meant, charged, limits::author(by), json).await
            }
            Self::Export { file, from, to, json, .. } => {
                let to = to.unwrap_or_else(|| day_of(Timestamp::now()));
                let export = Export::read(ledger, from, to).await?;
                let bytes = if json { export.jsonl()? } else { export.csv()? };
                match file.filter(|file| file.as_os_str() != "-") {
                    None => Ok(output::text(String::from_utf8_lossy(&bytes))?),
                    Some(file) => {
                        export::write(&file, &bytes)?;
                        say(&format!("{} lines from {from} to {to} in {}", export.len(), file.display()));
                        Ok(())
                    }
                }
            }
        }
    }
}
