//! `pixfleet limits`: what the limits mean, where they stand, and changes for the whole fleet while it works.

mod amend;
mod explain;
mod explained;
mod look;
mod reach;
mod show;
pub(crate) mod shown;
mod stacks;

use std::{process::ExitCode, sync::Arc};

use jiff::Timestamp;
use pixfleet_shared::limiter::{Change, LimiterError, Numbers};
use pixfleet_worker::provider::{Catalog, Provider};

pub(crate) use amend::{BY, author};
pub(crate) use look::Look;
pub(crate) use reach::Limiter;
use stacks::Target;

use crate::{
    config::{self, Loaded},
    engine::Choice,
    exit::Exit,
    output,
    results::terminal::stdout_width,
};

/// Explain limits, show where they stand, and change them while the fleet works
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  pixfleet limits explain                          what the limits of the settings mean; asks no server
  pixfleet limits show restb                       where they stand in the fleet
  pixfleet limits show --state spring.pixfleet     and in a state file
  pixfleet limits set restb rate --calls 2         for every worker, at once
  pixfleet limits pause restb

What is changed holds for the whole fleet, until it is reset: workers need no restart. The guide is docs/limits.md.

EXIT CODES
  0 done    1 failed: the limiter is away    2 refused: it names no limit, or a number that can't be")]
pub(crate) struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, clap::Subcommand)]
enum Task {
    /// Say in words and numbers what each limit of the settings means; asks no server
    #[command(after_help = "EXAMPLES
  pixfleet limits explain
  pixfleet limits explain restb --set 'providers.restb.limits[0].judge=fixed'
  pixfleet limits explain --json | jq '.[].stacks[] | {stack, binds, calls_per_s}'")]
    Explain {
        /// The provider [default: every one of the settings]
        provider: Option<String>,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show where the limits stand: what is in force, used, booked, paused and held off
    #[command(after_help = "EXAMPLES
  pixfleet limits show
  pixfleet limits show restb --for 1000000         and when a million calls would be done
  pixfleet limits show restb --history             and who changed what, the newest first
  pixfleet limits show --state spring.pixfleet --json | jq '.stacks[].limits[] | {limit, used, left}'")]
    Show {
        /// The provider [default: every one of the settings]
        provider: Option<String>,
        /// Say when so many calls would be done from here, each with as many models as it may ask
        #[arg(long = "for", value_name = "N")]
        calls: Option<u64>,
        /// Show who changed what
        #[arg(long)]
        history: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Change a limit's numbers for the whole fleet
    #[command(after_help = "EXAMPLES
  pixfleet limits set restb rate --calls 2
  pixfleet limits set restb rate --calls 20 --burst 5 --jitter-ms 4
  pixfleet limits set restb/restb.second day --spent 41250    as the vendor's own page counts
  pixfleet limits set restb rate --calls 2 --by deploy --state spring.pixfleet")]
    Set {
        /// PROVIDER, or one of its stacks: PROVIDER/STACK
        target: Target,
        /// The limit, by its name
        limit: String,
        #[command(flatten)]
        numbers: Wanted,
        #[command(flatten)]
        author: Author,
        #[command(flatten)]
        common: Common,
    },
    /// Make a limit as its settings say again
    #[command(after_help = "EXAMPLES
  pixfleet limits reset restb rate")]
    Reset {
        /// PROVIDER, or one of its stacks: PROVIDER/STACK
        target: Target,
        /// The limit, by its name
        limit: String,
        #[command(flatten)]
        author: Author,
        #[command(flatten)]
        common: Common,
    },
    /// Let no call leave until `resume`; those under way end
    #[command(after_help = "EXAMPLES
  pixfleet limits pause restb
  pixfleet limits pause restb/restb.second         one of several accounts
  pixfleet limits pause restb --by 'night watch'")]
    Pause {
        /// PROVIDER, or one of its stacks: PROVIDER/STACK
        target: Target,
        #[command(flatten)]
        author: Author,
        #[command(flatten)]
        common: Common,
    },
    /// End a pause, and a hold-off
    #[command(after_help = "EXAMPLES
  pixfleet limits resume restb")]
    Resume {
        /// PROVIDER, or one of its stacks: PROVIDER/STACK
        target: Target,
        #[command(flatten)]
        author: Author,
        #[command(flatten)]
        common: Common,
    },
}

/// Where, and how it is shown.
#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    engine: Choice,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Who makes a change.
#[derive(Debug, clap::Args)]
struct Author {
    /// Who changes it, for the history (default: $PIXFLEET_BY, else user@host)
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

/// The numbers of `set`.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct Wanted {
    /// Units in a window, or calls in flight
    #[arg(long, value_name = "N")]
    calls: Option<u32>,
    /// Units that may leave at once
    #[arg(long, value_name = "N")]
    burst: Option<u32>,
    /// The margin that is allowed for, in milliseconds: it is not adapted then
    #[arg(long, value_name = "MS")]
    jitter_ms: Option<f64>,
    /// What is used of a quota in its present window
    #[arg(long, value_name = "UNITS")]
    spent: Option<f64>,
}

/// Does one task of `pixfleet limits`.
///
/// # Errors
/// When the limiter is away, or refuses a change.
pub(crate) async fn run(args: Args, loaded: Loaded, catalog: Catalog) -> anyhow::Result<ExitCode> {
    let (config, catalog) = (&loaded.config, &catalog);
    match args.task {
        Task::Explain { provider, json } => explain(catalog, provider.as_deref(), json)?,
        Task::Show { provider, calls, history, common } => {
            let providers = stacks::providers(catalog, provider.as_deref())?;
            let limiter = Limiter::open(&common.engine, config).await?;
            let look = Look::at(&limiter, catalog, &providers, calls, history).await;
            limiter.close().await;
            look?.print(common.json)?;
        }
        Task::Set { target, limit, numbers, author, common } => {
            let Wanted { calls, burst, jitter_ms, spent } = numbers;
            let changes = amend::changes(&limit, Numbers { calls, burst, jitter_ms }, spent);
            change(config, catalog, &target, &changes, author, &common).await?;
        }
        Task::Reset { target, limit, author, common } => {
            change(config, catalog, &target, &[Change::Reset { limit }], author, &common).await?;
        }
        Task::Pause { target, author, common } => {
            change(config, catalog, &target, &[Change::Pause], author, &common).await?;
        }
        Task::Resume { target, author, common } => {
            change(config, catalog, &target, &[Change::Resume], author, &common).await?;
        }
    }
    Ok(Exit::Done.into())
}

fn explain(catalog: &Catalog, provider: Option<&str>, json: bool) -> anyhow::Result<()> {
    let now = Timestamp::now();
    let all: Vec<Arc<Provider>> = catalog.iter().cloned().collect();
    let meant = stacks::providers(catalog, provider)?;
    let explained = meant.iter().map(|provider| explain::explain(provider, &all, now));
    let explained: Vec<explain::Explained> = explained.collect::<anyhow::Result<_>>()?;
    if json {
        output::json(&explained)?;
        return Ok(());
    }
    let texts: Vec<String> =
        explained.iter().map(|explained| explained::text(explained, now, stdout_width())).collect();
    Ok(output::text(texts.join("\n"))?)
}

async fn change(
    config: &config::Config,
    catalog: &Catalog,
    target: &Target,
    changes: &[Change],
    author: Author,
    common: &Common,
) -> anyhow::Result<()> {
    let meant = stacks::targeted(catalog, target)?;
    let limiter = Limiter::open(&common.engine, config).await?;
    let changed = async {
        let by = amend::author(author.by);
        amend::amend(limiter.limiter.as_ref(), &meant, changes, &by).await?;
        Look::at_stacks(&limiter, &meant).await
    };
    let changed: Result<Look, LimiterError> = changed.await;
    limiter.close().await;
    changed.map_err(refused)?.print(common.json)
}

/// A change that can't be is the user's to mend.
fn refused(error: LimiterError) -> anyhow::Error {
    match error {
        LimiterError::Impossible { .. } => stacks::misused(error.to_string()).into(),
        LimiterError::Away(_) => error.into(),
    }
}
