//! `pixfleet run`: the whole job on one machine, in one process, with no server.
//!
//! A run is a producer, a worker and a collector over one state file: `names` calls the things by their names, `files`
//! and `reach` look whether the files can be there and the API is, `parts` starts them and ends them in their order,
//! `collect` takes results to the outputs, `meter` and `view` show how it goes, and `report` says what came of it.

mod collect;
mod files;
mod meter;
mod names;
mod parts;
mod reach;
mod report;
mod view;

use std::{num::NonZeroU32, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::bail;
use pixfleet_producer::{
    Order, Tally,
    manifest::Manifest,
    plan::Plan,
    record::{Identity, Record},
};
use pixfleet_shared::{
    batch::BatchName,
    batches::{Held, Hold},
    budget::Budget,
    embedded::{BatchCounts, Embedded},
    job::Priority,
};
use pixfleet_worker::{Board, provider::Provider};
use tokio_util::sync::CancellationToken;

use crate::{
    budget::Spending,
    config::{Config, Loaded},
    engine::engines_of,
    enqueue::{STATE_FILE, record_within, view::say},
    exit::Exit,
    order::{Ask, Conditions, Rows, ambient_trace, on_terminal},
    worker::on_signal,
};

use self::{
    collect::Collector,
    meter::Meter,
    parts::Ended,
    report::{Frame, Report},
    view::{Style, View},
};

/// Do the whole job on this machine: ask a provider about images, and collect the answers in files
///
/// Nothing has to be installed: jobs, limits and what is settled are kept in one state file beside the output. A run
/// that was stopped or killed goes on by the same command; nothing that was answered is paid for again, and each
/// result is in the output once.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  pixfleet run images.csv --provider restb --models re_roomtype_global_v2,re_logo
  pixfleet run images.csv --provider restb --models re_logo --out spring.csv --out spring.parquet --batch spring
  pixfleet run images.csv --provider restb --models re_logo --budget 12.50
  pixfleet run scans/ --provider rapidocr --out texts.jsonl
  pixfleet run export.csv.gz --column id=listing,url=photo --provider restb --models re_logo --json --quiet

Outputs are .jsonl, .csv, .parquet or .sqlite files. Ctrl-C drains: calls in flight are finished, and
the same command goes on later; a second Ctrl-C stops at once, and so it goes on, too.

EXIT CODES
  0 every image has its results    1 failed    3 all but bad rows    4 stopped; run it again to go on")]
pub(crate) struct Args {
    #[command(flatten)]
    rows: Rows,
    /// The provider: a preset, or one of the settings [default: the only one of the settings]
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    spending: Spending,
    #[command(flatten)]
    conditions: Conditions,
    /// A file for the results, .jsonl, .csv, .parquet or .sqlite (repeat it) [default: BATCH.jsonl]
    #[arg(long, value_name = "FILE")]
    out: Vec<PathBuf>,
    /// The run's name: letters, digits, `-` and `_` [default: that of the manifest]
    #[arg(long, value_name = "NAME")]
    batch: Option<BatchName>,
    /// The file that keeps the state of the run [default: BATCH.pixfleet, beside the output]
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Print one JSON line at the end
    #[arg(long)]
    json: bool,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
}

impl Args {
    /// The provider that is asked for.
    pub(crate) fn provider(&self) -> Option<&str> {
        self.provider.as_deref()
    }
}

/// Runs, and reports.
///
/// # Errors
/// What is wrong with the order, the API, a file or a disk. What was answered until then is kept.
pub(crate) async fn run(args: Args, loaded: Loaded, provider: Provider) -> anyhow::Result<ExitCode> {
    let task = Task::of(&args, loaded.config, provider)?;
    // Before the state file is begun: a mistyped name leaves nothing behind.
    let manifest = args.rows.open(true)?;
    let stop = on_signal()?;
    reach::check(&task.provider).await?;
    let embedded = Embedded::open(&task.state).await?;
    let ended = task.run(&args, manifest, &embedded, stop).await;
    let counts = embedded.store().batch(&task.batch).await;
    embedded.close().await;
    let ended = ended?;
    let counts = match (counts, ended.why) {
        // Nothing came of it, and why is all that there is to say.
        (Ok(Some(BatchCounts { jobs: 0, .. }) | None) | Err(_), Some(why)) => return Err(why),
        (Ok(Some(counts)), why) => (counts, why),
        (Err(error), None) => return Err(error.into()),
        (Ok(None), None) => bail!("the state file does not know its own batch"),
    };
    conclude(&task, &args, counts, ended.tally)
}

fn conclude(
    task: &Task,
    args: &Args,
    (counts, why): (BatchCounts, Option<anyhow::Error>),
    tally: Tally,
) -> anyhow::Result<ExitCode> {
    let frame = Frame {
        tally,
        stopped: why.as_ref().map(|why| format!("{why:#}")),
        currency: task.provider.tariff().currency.clone(),
        outputs: task.outputs.clone(),
        state: task.state.clone(),
    };
    let report = Report::of(counts, frame);
    report.print(args.json)?;
    match why {
        Some(why) => Err(why),
        None if !report.complete => {
            say("stopped; run the same command again to go on");
            Ok(Exit::WorkLeft.into())
        }
        None if report.bad_rows > 0 => Ok(Exit::RowsLeftOut.into()),
        None => Ok(Exit::Done.into()),
    }
}

/// Chunks of jobs on their way into the state file at once.
const CHUNKS: NonZeroU32 = match NonZeroU32::new(2) {
    Some(chunks) => chunks,
    None => NonZeroU32::MIN,
};
/// The longest pause after a refusal of the account, in milliseconds.
const REFUSED_MS: u64 = 1_000;

/// Everything that a run is told, checked before anything is begun.
struct Task {
    batch: BatchName,
    budget: Option<Budget>,
    plan: Plan,
    provider: Arc<Provider>,
    config: Config,
    outputs: Vec<PathBuf>,
    state: PathBuf,
}

impl Task {
    fn of(args: &Args, mut config: Config, provider: Provider) -> anyhow::Result<Self> {
        let batch = match &args.batch {
            Some(batch) => batch.clone(),
            None => names::batch(&args.rows.manifests)?,
        };
        let plan = args.ask.plan(&provider, &config.enqueue)?;
        // A call that no limit will ever let go would wait for ever.
        pixfleet_producer::forecast(&plan, &crate::enqueue::accounts(&provider), 0, jiff::Timestamp::now())?;
        let budget = args.spending.checked(&provider, &plan)?;
        let outputs = names::outputs(&args.out, &batch);
        let state = args.state.clone().unwrap_or_else(|| names::state(&outputs, &batch));
        files::check(&args.rows, &outputs, &state)?;
        if config.worker.fetch.roots.is_empty() {
            // Whoever runs this names the files, and may read them anyway.
            config.worker.fetch.roots = vec![PathBuf::from("/")];
        }
        // One thread puts them in: more chunks at once would only wait in memory.
        config.enqueue.chunks_in_flight = config.enqueue.chunks_in_flight.min(CHUNKS);
        // It ends at the first refusal of the account: a longer pause would only keep the next run waiting, which
        // comes once that is mended.
        config.worker.refused_ms = config.worker.refused_ms.min(REFUSED_MS);
        Ok(Self { batch, budget, plan, provider: Arc::new(provider), config, outputs, state })
    }

    /// Opens everything, then starts the parts and sees them to their end.
    async fn run(
        &self,
        args: &Args,
        manifest: Manifest,
        embedded: &Embedded,
        stop: CancellationToken,
    ) -> anyhow::Result<Ended> {
        let (store, batch) = (embedded.store().clone(), self.batch.clone());
        tokio::task::spawn_blocking(move || Record::run_alone(&store, &batch)).await??;
        let identity =
            Identity::new(&self.batch, &self.plan, Priority::Normal, STATE_FILE).with_budget(self.budget);
        self.heed(embedded).await?;
        let record = record_within(embedded, &identity).await?;
        let mut collectors = Vec::new();
        for output in &self.outputs {
            collectors.push(Collector::open(embedded.store().clone(), &self.batch, output).await?);
        }
        let board = Arc::new(Board::default());
        let shown = CancellationToken::new();
        let view = tokio::spawn(self.view(args, embedded, &board).show(stop.clone(), shown.clone()));
        let order = Order {
            batch: self.batch.clone(),
            priority: Priority::Normal,
            weight: 1,
            budget: self.budget,
            deadline: args.conditions.deadline,
            refresh: args.conditions.refresh,
            plan: self.plan.clone(),
            trace: Some(ambient_trace()),
            bad_rows: args.rows.bad_rows.clone(),
            same_manifest: true,
        };
        let job = parts::Job {
            provider: self.provider.clone(),
            config: &self.config,
            manifests: &args.rows.manifests,
            batch: &self.batch,
            engines: engines_of(embedded, vec![self.provider.name().to_owned()]),
            store: embedded.store().clone(),
            board,
        };
        let ended = job.run(manifest, record, order, collectors, stop.child_token()).await;
        shown.cancel();
        let _ = view.await;
        Ok(ended)
    }

    /// A batch that is paused would wait for ever; of one that is cancelled the rest is settled, without a call.
    async fn heed(&self, embedded: &Embedded) -> anyhow::Result<()> {
        let held = embedded.batches().progress(&self.batch).await?.and_then(|progress| progress.held);
        let Some(Held { hold, by, .. }) = held else {
            return Ok(());
        };
        let (batch, state) = (&self.batch, self.state.display());
        match hold {
            Hold::Paused => bail!(
                "batch `{batch}` is paused by {by}: let it go on, `pixfleet batch resume {batch} --state {state}`, and run \
                 the same command again"
            ),
            Hold::Cancelled => {
                say(&format!(
                    "batch `{batch}` was cancelled by {by}: its rest is settled so, and no call is made"
                ));
            }
        }
        Ok(())
    }

    fn view(&self, args: &Args, embedded: &Embedded, board: &Arc<Board>) -> View {
        let models = self.plan.calls().iter().map(Vec::len).max().unwrap_or(1);
        View {
            style: match (args.quiet, on_terminal()) {
                (true, _) => Style::None,
                (false, true) => Style::Live,
                (false, false) => Style::Lines,
            },
            store: embedded.store().clone(),
            batch: self.batch.clone(),
            board: board.clone(),
            meter: Meter::new(&self.provider, u32::try_from(models).unwrap_or(u32::MAX)),
        }
    }
}
