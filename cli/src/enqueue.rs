//! `pixfleet enqueue`: manifests of images become jobs on the queue, confirmed, each once.

mod report;
mod view;

use std::{
    io::{self, IsTerminal},
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, anyhow, bail};
use pixfleet_producer::{
    BadRows, Config, Order, Stopped, Summary, Tally, Why,
    manifest::{ColumnNames, Format, Manifest, Reading},
    plan::{Plan, Tariff},
    record::{Identity, Record},
};
use pixfleet_shared::{
    batch::BatchName,
    fleet::rabbit::{self, RabbitQueue},
    job::Priority,
    queue::Queue,
    trace::TraceParent,
};
use pixfleet_worker::provider::{Catalog, Provider, definition::Count};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{config::Loaded, exit::Exit, worker::on_signal};

/// Put images on the queue, once each, however often it is run
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  pixfleet enqueue images.csv --provider restb --models re_roomtype_global_v2 --batch spring
  pixfleet enqueue images.csv --provider restb --models re_logo --batch spring --dry-run
  pixfleet enqueue export.csv.gz --column id=listing,url=photo --models re_logo --batch spring
  pixfleet enqueue 'photos/**/*.jpg' --by-path --models text --batch scans
  psql -c \"copy (select id, url from photos) to stdout csv header\" |
    pixfleet enqueue - --models re_logo --batch db --bad-rows left-out.jsonl --json

A killed enqueue is run again by the same command: what the queue has confirmed is on record, and
adds nothing. A dry run says how many calls, what they cost, and when they would be done.

EXIT CODES
  0 all is enqueued    1 failed    3 all is enqueued but bad rows    4 stopped on request")]
pub(crate) struct Args {
    /// CSV with a header, JSONL, lists of URLs (each also .gz or .zst), pictures, folders, patterns, URLs; - is stdin
    #[arg(value_name = "MANIFEST", required = true)]
    manifests: Vec<String>,
    /// The batch's name: letters, digits, `-` and `_`. The same name goes on with the same batch
    #[arg(long, value_name = "NAME")]
    batch: BatchName,
    /// The provider, by its name in the settings [default: the only one there]
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// What each image is asked, separated by commas
    #[arg(long, value_name = "MODEL,...", required = true, value_delimiter = ',')]
    models: Vec<String>,
    /// The class in which its jobs wait: high, normal or bulk
    #[arg(long, value_name = "CLASS", default_value = "normal", value_parser = priority)]
    priority: Priority,
    /// The most models of one call, where that is fewer than the provider allows
    #[arg(long, value_name = "N")]
    models_per_call: Option<NonZeroU32>,

    /// The format of every manifest: csv, jsonl or list [default: told by its content]
    #[arg(long, value_name = "FORMAT", help_heading = "Reading")]
    format: Option<Format>,
    /// Which column is what, with the roles id, url, path and base64 [default: by their names]
    #[arg(long, value_name = "ROLE=COLUMN,...", default_value = "", hide_default_value = true, value_parser = columns, help_heading = "Reading")]
    column: ColumnNames,
    /// Files travel as their absolute path, which the workers read, not as their bytes
    #[arg(long, help_heading = "Reading")]
    by_path: bool,
    /// What becomes of a row that can't be used: `stop`, `skip`, or a file that takes it with the reason, as JSONL
    #[arg(long, value_name = "stop|skip|FILE", default_value = "stop", value_parser = bad_rows, help_heading = "Reading")]
    bad_rows: BadRows,

    /// Count, price and forecast; enqueue nothing and ask no server
    #[arg(long)]
    dry_run: bool,
    /// The file that records what the queue has confirmed [default: below the state folder, by batch]
    #[arg(long, value_name = "FILE")]
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
    let config = loaded.config.enqueue;
    let plan = plan(&args, &provider, &config)?;
    // A call that no limit will ever let go would wait in the queue for ever.
    pixfleet_producer::forecast(&plan, &provider.limits(), 0)?;
    let path = record_path(&args, &config)?;
    let identity = Identity::new(&args.batch, &plan, args.priority, &place(&loaded.config.rabbitmq));
    not_an_input(&args.bad_rows, &args.manifests)?;
    let reading = Reading { format: args.format, columns: args.column.clone(), by_path: args.by_path };
    let manifest = Manifest::open(&args.manifests, reading)?;
    let order = Order {
        batch: args.batch.clone(),
        priority: args.priority,
        plan: plan.clone(),
        trace: Some(args.traceparent.unwrap_or_else(ambient_trace)),
        bad_rows: args.bad_rows.clone(),
    };
    let stop = on_signal()?;
    let (progress, shown) = watch::channel(Tally::default());
    let view = view::show(
        view::style(args.quiet, io::stderr().is_terminal()),
        manifest.extent(),
        shown,
        stop.clone(),
    );
    let outcome = if args.dry_run {
        let record = Record::rehearse(&path, &identity)?;
        pixfleet_producer::rehearse(manifest, record, order, &config, stop, &progress).await
    } else {
        let record = Record::open(&path, &identity)?;
        let queue = RabbitQueue::connect(loaded.config.rabbitmq).await?;
        let outcome = enqueue(queue.clone(), manifest, record, order, &config, stop, &progress).await;
        queue.close().await;
        outcome
    };
    drop(progress);
    view.await?;
    report(&args, &plan, &provider, outcome)
}

async fn enqueue(
    queue: Arc<dyn Queue>,
    manifest: Manifest,
    record: Record,
    order: Order,
    config: &Config,
    stop: CancellationToken,
    progress: &watch::Sender<Tally>,
) -> Result<Summary, Box<Stopped>> {
    pixfleet_producer::enqueue(queue, manifest, record, order, config, stop, progress).await
}

/// Says what was done, on stdout, and why not all of it was, on stderr.
fn report(
    args: &Args,
    plan: &Plan,
    provider: &Provider,
    outcome: Result<Summary, Box<Stopped>>,
) -> anyhow::Result<ExitCode> {
    let (summary, stopped) = match outcome {
        Ok(summary) => (summary, None),
        Err(stopped) => (stopped.summary.clone(), Some(stopped)),
    };
    let report = report::Report {
        forecast: args.dry_run.then(|| report::forecast(plan, provider, &summary)).transpose()?,
        currency: &provider.tariff().currency,
        stopped: stopped.as_ref().map(ToString::to_string),
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

fn plan(args: &Args, provider: &Provider, config: &Config) -> anyhow::Result<Plan> {
    for model in &args.models {
        provider.accepts(model).map_err(|reason| anyhow!(reason))?;
    }
    let caps = [config.models_per_call, args.models_per_call];
    let models_per_call =
        caps.into_iter().flatten().map(|cap| cap.get() as usize).fold(provider.models_per_call(), usize::min);
    let cost = provider.tariff();
    let tariff = match cost.count {
        Count::PerCall => Tariff { per_call: cost.price, per_model: 0.0 },
        Count::PerModel => Tariff { per_call: 0.0, per_model: cost.price },
    };
    Ok(Plan::new(provider.name(), &args.models, models_per_call, tariff)?)
}

/// The queue's name in a record: where it is, without a password.
fn place(config: &rabbit::Config) -> String {
    config.url_file.as_ref().map_or_else(|| config.endpoint(), |file| format!("the broker of {file}"))
}

/// The trace that the environment says; whoever set it wrongly meant another program, so a new one then.
fn ambient_trace() -> TraceParent {
    let ambient = std::env::var("TRACEPARENT").ok().and_then(|text| text.parse().ok());
    ambient.unwrap_or_else(TraceParent::random)
}

fn record_path(args: &Args, config: &Config) -> anyhow::Result<PathBuf> {
    if let Some(path) = &args.record {
        return Ok(path.clone());
    }
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = config.record_folder.clone().or_else(|| {
        let state = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")))?;
        Some(state.join("pixfleet/enqueue"))
    });
    let folder = folder
        .context("neither XDG_STATE_HOME nor HOME is set: say where the record is kept, --record FILE")?;
    Ok(folder.join(format!("{}.sqlite", args.batch)))
}

/// A mistyped `--bad-rows images.csv` must not empty the manifest.
fn not_an_input(bad_rows: &BadRows, manifests: &[String]) -> anyhow::Result<()> {
    let BadRows::Keep(file) = bad_rows else {
        return Ok(());
    };
    let same = |manifest: &String| match (file.canonicalize(), Path::new(manifest).canonicalize()) {
        (Ok(file), Ok(manifest)) => file == manifest,
        _ => false,
    };
    if manifests.iter().any(same) {
        bail!(
            "--bad-rows {} is a manifest itself, and would be overwritten: name another file",
            file.display()
        );
    }
    Ok(())
}

fn priority(text: &str) -> Result<Priority, String> {
    let found = Priority::ALL.into_iter().find(|priority| priority.as_str() == text);
    found.ok_or_else(|| "say high, normal or bulk".to_owned())
}

fn columns(text: &str) -> Result<ColumnNames, String> {
    if text.is_empty() {
        return Ok(ColumnNames::default());
    }
    text.parse().map_err(|error: pixfleet_producer::manifest::BadMapping| error.to_string())
}

fn bad_rows(text: &str) -> Result<BadRows, String> {
    match text {
        "" => Err("say stop, skip or a file".to_owned()),
        "stop" => Ok(BadRows::Stop),
        "skip" => Ok(BadRows::Skip),
        file => Ok(BadRows::Keep(file.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

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
        assert_eq!((args.priority, args.bad_rows), (Priority::Normal, BadRows::Stop));
        assert_eq!((args.models.len(), args.column), (2, ColumnNames::default()));
    }

    #[test]
    fn a_wrong_word_is_refused_by_the_command_line() {
        for wrong in [
            ["--priority", "urgent"],
            ["--column", "photo"],
            ["--format", "xml"],
            ["--models-per-call", "0"],
            ["--traceparent", "x"],
        ] {
            assert!(parsed(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn bad_rows_never_overwrite_a_manifest() {
        let here = file!().rsplit('/').next().unwrap();
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(here);
        let name = manifest.to_str().unwrap().to_owned();
        assert!(not_an_input(&BadRows::Keep(manifest), std::slice::from_ref(&name)).is_err());
        assert!(not_an_input(&BadRows::Keep("other.jsonl".into()), &[name]).is_ok());
    }

    #[test]
    fn a_record_is_found_by_its_batch_in_the_folder_of_the_settings() {
        let config = Config { record_folder: Some("/var/lib/pixfleet".into()), ..Config::default() };
        let path = |further: &[&str]| record_path(&parsed(further).unwrap(), &config).unwrap();
        assert_eq!(path(&[]), Path::new("/var/lib/pixfleet/b.sqlite"));
        assert_eq!(path(&["--record", "r.sqlite"]), Path::new("r.sqlite"));
    }
}
