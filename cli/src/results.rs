//! `pixfleet results`: results of a batch, of a time, or from now on, as JSON lines, CSV or a table,
//! and into files of four kinds.
//!
//! `args` is what it can be told. An announcement's way: `source` (the queue or the log), `read` (the loop: count,
//! write, commit) with `seen` and `tally` (what is news, and the counts) and `calls` (the statistics), `gather` (an
//! image's summary), `rows` (text, with `cell`, `csv_rows`, `table_rows` and its `grid`), `writer` (the file or stdout) and
//! `files` (those of `--into`), both behind `outputs`;
//! `ending` decides when it is over, `progress` shows how far it is, and `report` says what came of it. `terminal`
//! knows how much fits on a line. `earlier` continues the file of a run that ended.

mod args;
mod calls;
mod cell;
mod csv_rows;
mod earlier;
mod ending;
mod files;
mod gather;
pub(crate) mod grid;
mod outputs;
mod progress;
mod read;
mod report;
mod rows;
#[cfg(test)]
mod sample;
mod seen;
mod source;
mod table_rows;
mod tally;
pub(crate) mod terminal;
mod writer;

use std::{fs::File, io::IsTerminal as _, path::Path, process::ExitCode, time::Duration};

use anyhow::Context as _;
use pixfleet_shared::queue::{Filter, From, Queue, Subscription};
use pixfleet_sinks::Options;

use crate::{
    config::Config,
    engine::{Begin, Engine},
    worker::on_signal,
};

#[cfg(test)]
pub(crate) use self::sample::sample;
pub(crate) use self::{
    args::Args,
    calls::CallStatistics,
    gather::{Gather, Summary},
    seen::Sight,
    source::Source,
    table_rows::TableRows,
    tally::Tally,
};
use self::{
    ending::Ending,
    files::Files,
    progress::Progress,
    read::Reader,
    rows::{Format, Rows},
    writer::Writer,
};

/// Runs the subcommand.
///
/// # Errors
/// When the arguments contradict each other, the broker is away, or the output can't be written.
pub(crate) async fn run(args: Args, config: Config) -> anyhow::Result<ExitCode> {
    args.check()?;
    let stop = on_signal()?;
    let place = args.engine.place(&config.engine, args.batch.as_ref())?;
    let engine = Engine::open(&place, &config, Begin::Refused).await?;
    let queue = engine.queue();
    let reader = args.reader(&*queue).await?;
    let report = reader.run(queue, stop).await;
    engine.close().await;
    let report = report?;
    report.tell();
    if args.json {
        crate::output::json(&report)?;
    }
    Ok(report.ended.exit(args.batch.is_some() && !args.follow).into())
}

impl Args {
    async fn reader(&self, queue: &dyn Queue) -> anyhow::Result<Reader> {
        let mut tally = Tally::bounded(self.remember);
        let metadata = self.metadata.clone();
        let terminal = self.prints().then(terminal::stdout_width).flatten();
        let mut rows = Rows::new(self.format, metadata, self.models.clone(), terminal);
        let output = self.output(&mut tally, &mut rows)?;
        let options = Options { metadata: self.metadata.clone() };
        let files = match self.into.is_empty() {
            true => None,
            false => Some(Files::open(&self.into, &options)?),
        };
        // The census first: what it has not seen can't have reached the source either.
        let counts_elsewhere = self.batch.is_some() && (self.name.is_some() || self.since.is_some());
        let census = match counts_elsewhere {
            true => Some(Source::open(queue, self.subscription(None, From::Beginning)).await?),
            false => None,
        };
        let from = match (self.since, &self.batch) {
            (Some(ago), _) => From::Ago(ago),
            (None, Some(_)) => From::Beginning,
            (None, None) => From::Now,
        };
        Ok(Reader {
            source: Source::open(queue, self.subscription(self.name.clone(), from)).await?,
            census,
            tally,
            counted: Tally::bounded(self.remember),
            show: self.filter(),
            gather: self.by_image.then(|| Gather::new(self.models.clone(), self.hold)),
            rows,
            output,
            files,
            page: Duration::from_millis(if self.format == Format::Table { 1000 } else { 100 }),
            ending: Ending {
                batch: self.batch.is_some() && !self.follow,
                present: self.since.is_some() && self.batch.is_none() && !self.follow,
                idle: self.idle,
                timeout: self.timeout,
            },
            // Where it does not run into the results.
            progress: Progress::start(!self.prints() || !std::io::stdout().is_terminal()),
        })
    }

    /// The whole batch is asked for, whatever is shown of it: its end must be seen.
    pub(super) fn subscription(&self, name: Option<String>, from: From) -> Subscription {
        let filter = match &self.batch {
            Some(batch) => Filter { batch: Some(batch.clone()), ..Filter::default() },
            None => self.filter(),
        };
        Subscription { name, from, filter }
    }

    pub(super) fn filter(&self) -> Filter {
        Filter {
            batch: self.batch.clone(),
            provider: self.provider.clone(),
            model: self.model.clone(),
            outcome: self.outcome,
        }
    }

    /// Whether results are printed on stdout.
    fn prints(&self) -> bool {
        self.out.is_none() && self.into.is_empty() && !self.json
    }

    fn output(&self, tally: &mut Tally, rows: &mut Rows) -> anyhow::Result<Option<Writer>> {
        let Some(path) = &self.out else {
            return Ok(self.prints().then(Writer::stdout));
        };
        if self.name.is_none() {
            return Ok(Some(Writer::file(new_file(path)?)));
        }
        let earlier = earlier::open(path, self.format, &mut |id, outcome| {
            tally.outcome(id, outcome);
        })?;
        if let Some(header) = earlier.header {
            *rows = Rows::following(&header);
        }
        Ok(Some(Writer::file(earlier.file)))
    }
}

fn new_file(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| {
        format!("can't write {}: give --out a file in a folder that you may write", path.display())
    })
}
