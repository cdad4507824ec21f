//! `pixfleet enqueue`: manifests of images become jobs on the queue, confirmed, each once.

pub(crate) mod held;
mod report;
pub(crate) mod view;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context, anyhow, bail};
use pixfleet_producer::{
    Config, Destination, Order, Stopped, Summary, Tally, Why,
    manifest::Manifest,
    plan::Plan,
    record::{Identity, Record, RecordError},
};
use pixfleet_shared::{
    batch::BatchName,
    batches::Held,
    embedded::Embedded,
    fleet::rabbit,
    job::{MOST_WEIGHT, Priority},
    limiter::Stack,
    trace::TraceParent,
};
use pixfleet_worker::provider::{Catalog, Provider};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    budget::{Coverage, Spending},
    config::{self, Loaded},
    engine::{Begin, Choice, Engine, Place},
    exit::Exit,
    order::{Ask, Conditions, Rows, ambient_trace, on_terminal},
    worker::on_signal,
};

/// Put images on the queue, once each, however often it is run
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  pixfleet enqueue images.csv --provider restb --models re_roomtype_global_v2 --batch spring
  pixfleet enqueue images.csv --provider restb --models re_logo --batch spring --dry-run
  pixfleet enqueue images.csv --provider restb --models re_logo --batch spring --budget 500 --weight 3
  pixfleet enqueue export.csv.gz --column id=listing,url=photo --models re_logo --batch spring
  pixfleet enqueue 'photos/**/*.jpg' --by-path --models text --batch scans
  psql -c \"copy (select id, url from photos) to stdout csv header\" |
    pixfleet enqueue - --models re_logo --batch db --bad-rows left-out.jsonl --json

A killed enqueue is run again by the same command: what the queue has confirmed is on record, and
adds nothing. A dry run says how many calls, what they cost, and when they would be done.

EXIT CODES
  0 all is enqueued    1 failed    3 all is enqueued but bad rows    4 stopped on request")]
pub(crate) struct Args {
    #[command(flatten)]
    rows: Rows,
    /// The batch's name: letters, digits, `-` and `_`. The same name goes on with the same batch
    #[arg(long, value_name = "NAME")]
    batch: BatchName,
    /// The provider, by its name in the settings [default: the only one there]
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    #[command(flatten)]
    ask: Ask,
    /// The class in which its jobs wait: high, normal or bulk
    #[arg(long, value_name = "CLASS", default_value = "normal", value_parser = priority)]
    priority: Priority,
    /// Turns of the batch for each of one of weight 1, where both wait in the same class
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_WEIGHT)))]
    weight: u8,
    #[command(flatten)]
    spending: Spending,
    #[command(flatten)]
    conditions: Conditions,
    /// Files travel as their absolute path, which the workers read, not as their bytes
    #[arg(long, help_heading = "Reading")]
    by_path: bool,
    #[command(flatten)]
    engine: Choice,

    /// Count, price and forecast; enqueue nothing and ask no server
    #[arg(long)]
    dry_run: bool,
    /// The file that records what the queue has confirmed [default: below the state folder, by batch; a state file
    /// keeps its own]
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    record: Option<PathBuf>,
    /// The W3C trace that the jobs continue [default: $TRACEPARENT, else a new one]
    #[arg(long, value_name = "TRACEPARENT")]
    traceparent: Option<TraceParent>,
    /// Print one JSON line at the end
    #[arg(long)]
    json: bool,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
}

/// Enqueues, or tells what it would, and reports.
pub(crate) async fn run(args: Args, loaded: Loaded, catalog: Catalog) -> anyhow::Result<ExitCode> {
    let provider = provider(&catalog, args.provider.as_deref())?;
    let config = loaded.config.enqueue.clone();
    let plan = args.ask.plan(&provider, &config)?;
    // A call that no limit will ever let go would wait in the queue for ever.
    pixfleet_producer::forecast(&plan, &accounts(&provider), 0, jiff::Timestamp::now())?;
    let budget = args.spending.checked(&provider, &plan)?;
    let place = args.engine.place(&loaded.config.engine, Some(&args.batch))?;
    let shelf = Shelf::of(&place, &args, &loaded.config)?;
    let identity = Identity::new(&args.batch, &plan, args.priority, &shelf.queue).with_budget(budget);
    let manifest = args.rows.open(args.by_path)?;
    let order = Order {
        batch: args.batch.clone(),
        priority: args.priority,
        weight: args.weight,
        budget,
        deadline: args.conditions.deadline,
        refresh: args.conditions.refresh,
        plan: plan.clone(),
        trace: Some(args.traceparent.unwrap_or_else(ambient_trace)),
        bad_rows: args.rows.bad_rows.clone(),
        same_manifest: false,
    };
    let stop = on_signal()?;
    let (progress, shown) = watch::channel(Tally::default());
    let view = view::show(view::style(args.quiet, on_terminal()), manifest.extent(), shown, stop.clone());
    let mut paused = None;
    let outcome = if args.dry_run {
        let record = shelf.rehearse(&identity)?;
        pixfleet_producer::rehearse(manifest, record, order, &config, stop, &progress).await
    } else {
        let engine = Engine::open(&place, &loaded.config, Begin::Allowed).await?;
        let batches = held::batches(&engine, &loaded.config).await?;
        paused = held::heed(&*batches, &args.batch).await?;
        let record = shelf.open(&engine, &identity).await?;
        let to = Destination { queue: engine.queue(), batches: Some(batches) };
        let outcome = enqueue(to, manifest, record, order, &config, stop, &progress).await;
        engine.close().await;
        outcome
    };
    drop(progress);
    view.await?;
    report(&args, &plan, &provider, outcome, paused)
}

async fn enqueue(
    to: Destination,
    manifest: Manifest,
    record: Record,
    order: Order,
    config: &Config,
    stop: CancellationToken,
    progress: &watch::Sender<Tally>,
) -> Result<Summary, Box<Stopped>> {
    pixfleet_producer::enqueue(to, manifest, record, order, config, stop, progress).await
}

/// Says what was done, on stdout, and why not all of it was, on stderr.
fn report(
    args: &Args,
    plan: &Plan,
    provider: &Provider,
    outcome: Result<Summary, Box<Stopped>>,
    paused: Option<Held>,
) -> anyhow::Result<ExitCode> {
    let (summary, stopped) = match outcome {
        Ok(summary) => (summary, None),
        Err(stopped) => (stopped.summary.clone(), Some(stopped)),
    };
    let report = report::Report {
        forecast: args.dry_run.then(|| report::forecast(plan, provider, &summary)).transpose()?,
        coverage: coverage(args, plan, provider, &summary),
        currency: &provider.tariff().currency,
        stopped: stopped.as_ref().map(ToString::to_string),
        paused,
        summary,
    };
    report.print(args.json)?;
    match stopped.map(|stopped| *stopped) {
        None if report.summary.tally.bad_rows > 0 => Ok(Exit::RowsLeftOut.into()),
        None => Ok(Exit::Done.into()),
        Some(Stopped { why: Why::Interrupted, .. }) => {
            view::say(report.stopped.as_deref().unwrap_or_default());
            Ok(Exit::WorkLeft.into())
        }
        Some(stopped) => Err(anyhow!("{stopped}")),
    }
}

fn coverage(args: &Args, plan: &Plan, provider: &Provider, summary: &Summary) -> Option<Coverage> {
    let budget = args.spending.budget.filter(|_| args.dry_run)?;
    let images = summary.batch_jobs.div_ceil(plan.calls().len() as u64);
    Some(Coverage::of(budget, plan, &provider.tariff().currency, images))
}

/// The limit stacks of a provider, one for each account.
pub(crate) fn accounts(provider: &Provider) -> Vec<Stack> {
    provider.stacks().cloned().collect()
}

fn provider(catalog: &Catalog, name: Option<&str>) -> anyhow::Result<Arc<Provider>> {
    if let Some(name) = name {
        return catalog.get(name).cloned().map_err(|reason| anyhow!(reason));
    }
    let mut all = catalog.iter();
    match (all.next(), all.next()) {
        (Some(only), None) => Ok(only.clone()),
        (None, _) => bail!(
            "the settings name no provider: add [providers.NAME] with preset = \"...\" (docs/providers.md)"
        ),
        _ => {
            let names: Vec<_> = catalog.iter().map(|provider| provider.name()).collect();
            bail!("the settings name several providers: say which, --provider {}", names.join("|"))
        }
    }
}

/// Where the record of what was confirmed is kept.
struct Shelf {
    path: PathBuf,
    /// Whether that is the state file of the jobs themselves.
    state: bool,
    /// The queue's name in the record: where it is, without a password.
    queue: String,
}

impl Shelf {
    fn of(place: &Place, args: &Args, config: &config::Config) -> anyhow::Result<Self> {
        match place {
            Place::Servers => Ok(Self {
                path: record_path(args, &config.enqueue)?,
                state: false,
                queue: place_of(&config.rabbitmq),
            }),
            Place::State(path) => Ok(Self { path: path.clone(), state: true, queue: STATE_FILE.to_owned() }),
        }
    }

    fn rehearse(&self, identity: &Identity) -> Result<Record, RecordError> {
        let of = if self.state { Record::rehearse_within } else { Record::rehearse };
        of(&self.path, identity)
    }

    async fn open(&self, engine: &Engine, identity: &Identity) -> anyhow::Result<Record> {
        match engine {
            Engine::Servers(_) => Ok(Record::open(&self.path, identity)?),
            Engine::State(embedded) => Ok(record_within(embedded, identity).await?),
        }
    }
}

/// The name of a state file's queue in its own records: it may be moved.
pub(crate) const STATE_FILE: &str = "the state file";

/// The record of a batch in a state file. Opening it reads all of it, so a thread that may block does.
pub(crate) async fn record_within(embedded: &Embedded, identity: &Identity) -> anyhow::Result<Record> {
    let (store, identity) = (embedded.store().clone(), identity.clone());
    Ok(tokio::task::spawn_blocking(move || Record::within(store, &identity)).await??)
}

fn place_of(config: &rabbit::Config) -> String {
    config.url_file.as_ref().map_or_else(|| config.endpoint(), |file| format!("the broker of {file}"))
}

fn record_path(args: &Args, config: &Config) -> anyhow::Result<PathBuf> {
    if let Some(path) = &args.record {
        return Ok(path.clone());
    }
    let folder = record_folder(config)
        .context("neither XDG_STATE_HOME nor HOME is set: say where the record is kept, --record FILE")?;
    Ok(folder.join(format!("{}.sqlite", args.batch)))
}

/// Where records are kept, by batch, where nobody says it.
pub(crate) fn record_folder(config: &Config) -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    config.record_folder.clone().or_else(|| {
        let state = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")))?;
        Some(state.join("pixfleet/enqueue"))
    })
}

fn priority(text: &str) -> Result<Priority, String> {
    let found = Priority::ALL.into_iter().find(|priority| priority.as_str() == text);
    found.ok_or_else(|| "say high, normal or bulk".to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(further: &[&str]) -> Result<Args, clap::Error> {
        let line = ["enqueue", "a.csv", "--batch", "b", "--models", "m,n"];
        Cli::try_parse_from(line.iter().chain(further)).map(|cli| cli.args)
    }

    #[test]
    fn arguments_have_their_documented_defaults() {
        let args = parsed(&[]).unwrap();
        assert_eq!((args.priority, args.ask.models.len()), (Priority::Normal, 2));
    }

    #[test]
    fn a_wrong_word_is_refused_by_the_command_line() {
        let wrong = [
            ["--priority", "urgent"],
            ["--traceparent", "x"],
            ["--weight", "0"],
            ["--weight", "101"],
            ["--budget", "0"],
            ["--budget", "-5"],
            ["--budget", "500EUR"],
            ["--budget", "much"],
            ["--deadline", "soon"],
            ["--deadline", "-2h"],
        ];
        for wrong in wrong {
            assert!(parsed(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_record_is_found_by_its_batch_in_the_folder_of_the_settings() {
        let config = Config { record_folder: Some("/var/lib/pixfleet".into()), ..Config::default() };
        let path = |further: &[&str]| record_path(&parsed(further).unwrap(), &config).unwrap();
        assert_eq!(path(&[]), Path::new("/var/lib/pixfleet/b.sqlite"));
        assert_eq!(path(&["--record", "r.sqlite"]), Path::new("r.sqlite"));
    }
}
