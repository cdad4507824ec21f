//! `pixfleet results`: results of a batch, of a time, or from now on, as JSON lines, CSV or a table.
//!
//! `args` is what it can be told. An announcement's way: `source` (the queue or the log), `read` (the loop: count,
//! write, commit) with `seen` and `tally` (what is news, and the counts) and `calls` (the statistics), `gather` (an
//! image's summary), `rows` (text, with `cell`, `csv_rows` and `table_rows`), `writer` (the file or stdout); `ending`
//! decides when it is over. `earlier` continues the file of a run that ended.

mod args;
mod calls;
pub(crate) mod cell;
mod csv_rows;
mod earlier;
mod ending;
mod gather;
mod read;
mod rows;
mod seen;
mod source;
mod table_rows;
mod tally;
mod writer;

use std::{fs::File, io::IsTerminal as _, path::Path, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pixfleet_shared::{
    fleet::rabbit::RabbitQueue,
    queue::{Filter, From, Queue, Subscription},
};

use crate::{config::Config, worker::on_signal};

pub(crate) use self::{
    args::Args,
    gather::{Gather, Summary},
    seen::Sight,
    source::Source,
    tally::Tally,
};
use self::{
    ending::Ending,
    read::{Reader, Report},
    rows::{Format, Rows},
    tally::Counts,
    writer::Writer,
};

/// Runs the subcommand.
///
/// # Errors
/// When the arguments contradict each other, the broker is away, or the output can't be written.
pub(crate) async fn run(args: Args, config: Config) -> anyhow::Result<ExitCode> {
    args.check()?;
    let stop = on_signal()?;
    let queue: Arc<dyn Queue> = RabbitQueue::connect(config.rabbitmq).await?;
    let reader = args.reader(&*queue).await?;
    let report = reader.run(queue.clone(), stop).await;
    queue.close().await;
    let report = report?;
    args.tell(&report)?;
    Ok(report.ended.exit(args.batch.is_some() && !args.follow).into())
}

impl Args {
    async fn reader(&self, queue: &dyn Queue) -> anyhow::Result<Reader> {
        let mut tally = Tally::bounded(self.remember);
        let metadata = self.metadata.clone();
        let mut rows = Rows::new(self.format, metadata, self.models.clone());
        let output = self.output(&mut tally, &mut rows)?;
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
            page: Duration::from_millis(if self.format == Format::Table { 1000 } else { 100 }),
            ending: Ending {
                batch: self.batch.is_some() && !self.follow,
                present: self.since.is_some() && self.batch.is_none() && !self.follow,
                idle: self.idle,
                timeout: self.timeout,
            },
            bar: self.bar(),
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

    fn output(&self, tally: &mut Tally, rows: &mut Rows) -> anyhow::Result<Option<Writer>> {
        let Some(path) = &self.out else {
            return Ok((!self.json).then(Writer::stdout));
        };
        if self.name.is_none() {
            return Ok(Some(Writer::file(new_file(path)?)));
        }
        let earlier = earlier::open(path, self.format, &mut |id, outcome| {
            tally.outcome(id, outcome);
        })?;
        if let Some(header) = earlier.header {
            *rows = Rows::following(header);
        }
        Ok(Some(Writer::file(earlier.file)))
    }

    /// A count on a terminal, where it does not run into the results.
    fn bar(&self) -> ProgressBar {
        if self.out.is_none() && !self.json && std::io::stdout().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} results, {msg}, {elapsed}");
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    /// Counts and statistics for people on stderr; with `--json`, for programs on stdout.
    fn tell(&self, report: &Report) -> anyhow::Result<()> {
        for line in self.lines(report) {
            eprintln!("{line}");
        }
        if self.json {
            crate::output::json(report)?;
        }
        Ok(())
    }

    fn lines(&self, report: &Report) -> Vec<String> {
        let counts = &report.counts;
        let of = counts.expected.map_or_else(String::new, |expected| format!(" of {expected}"));
        let what = match &report.batch {
            Some(batch) if report.complete => format!("batch {batch} is complete: "),
            Some(batch) => format!("batch {batch} is not complete: "),
            None => String::new(),
        };
        let Counts { results, done, failed, dead, .. } = *counts;
        let mut lines =
            vec![format!("{what}{results}{of} results: {done} done, {failed} failed, {dead} dead")];
        if report.elsewhere > 0 {
            lines.push(format!(
                "{} of them did not come to this reader: written by an earlier run, or published before it began; \
                 --batch alone replays all",
                report.elsewhere
            ));
        }
        let alone = report.calls.len() == 1;
        lines.extend(report.calls.iter().map(|calls| match alone {
            true => calls.to_string(),
            false => format!("{}: {calls}", calls.provider),
        }));
        lines
    }
}

fn new_file(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| {
        format!("can't write {}: give --out a file in a folder that you may write", path.display())
    })
}

#[cfg(test)]
pub(crate) fn sample(
    image: &str,
    model: &str,
    outcome: pixfleet_shared::result::Outcome,
    call: u32,
) -> pixfleet_shared::result::ImageResult {
    use pixfleet_shared::{
        id::Id,
        job::{Image, Job, Source},
        result::{Answer, Call, Failure, ImageResult, Label, Outcome},
    };
    let source = Source::Url(format!("https://example.com/{image}.jpg"));
    let job = Job::new(
        "b".parse().unwrap(),
        Image { id: image.to_owned(), source },
        "restb".into(),
        vec!["a".into(), "b".into()],
    );
    let answer = Answer {
        labels: vec![Label { label: "kitchen".into(), confidence: Some(0.97) }],
        ..Answer::default()
    };
    let failure = Failure { class: "transient".into(), message: "500 from the provider".into() };
    ImageResult {
        answer: (outcome == Outcome::Ok).then_some(answer),
        failure: (outcome != Outcome::Ok).then_some(failure),
        call: Some(Call {
            id: Id::of(&[b"test.call", &call.to_be_bytes()]),
            sent_at: jiff::Timestamp::from_second(i64::from(call)).unwrap(),
            duration_ms: 100.0,
            status: Some(200),
            attempt: 1,
            throttled: 0,
            cost: 0.1,
            limit_per_s: Some(4.0),
            worker: "w".into(),
        }),
        ..ImageResult::of(&job, model, outcome)
    }
}
