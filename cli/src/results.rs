//! `pixfleet results`: results of a batch, of a time, or from now on, as JSON lines, CSV or a table.
//!
//! An announcement's way: `read` (the loop: count, write, commit) with `seen` and `tally` (what is news, and the
//! counts), `gather` (an image's summary), `rows` (text, with `cell`, `csv_rows` and `table_rows`), `writer` (the
//! file or stdout); `ending` decides when it is over. `earlier` continues the file of a run that ended.

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

use std::{
    fs::File,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pixfleet_shared::{
    batch::BatchName,
    fleet::rabbit::RabbitQueue,
    queue::{Filter, From, Queue, Subscription},
    result::Outcome,
};

use crate::{config::Config, worker::on_signal};

use self::{
    ending::Ending,
    read::{Reader, Report},
    rows::{Format, Rows},
    tally::Counts,
    writer::Writer,
};
pub(crate) use self::{
    gather::{Gather, Summary},
    seen::Sight,
    source::Source,
    tally::Tally,
};

/// Reads results: of a batch until it is complete, of the last hours, or from now on.
///
/// Without --name the results come from the replay log, which keeps them for days whoever reads them. With --name
/// they come from a queue of that name: it keeps what this subscriber has not yet written, also while it is away.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "EXAMPLES
  pixfleet results --batch spring                             every result, then the counts
  pixfleet results --batch spring --by-image --format csv --out spring.csv
  pixfleet results --batch spring --json --timeout 2h         wait for a batch in a script
  pixfleet results --name warehouse --out warehouse.jsonl     a durable subscriber; run it again to go on
  pixfleet results --since 2h --outcome dead --format table
  pixfleet results --follow --model re_logo

FORMATS, GUARANTEES AND EXIT CODES
  docs/results.md")]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["batch", "name", "since", "follow"])))]
pub(crate) struct Args {
    /// Only this batch; ends when all its results are here.
    #[arg(long)]
    pub batch: Option<BatchName>,
    /// A durable subscriber's name: goes on where it stopped, and misses nothing while it is away.
    #[arg(long, value_parser = subscriber_name, conflicts_with = "since")]
    pub name: Option<String>,
    /// Replay what was published in this time: `2h`, `3d 12h`. Ends at the present.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub since: Option<Duration>,
    /// Go on for ever (until Ctrl-C), from now or from the end of the replay.
    #[arg(long)]
    pub follow: bool,
    /// Only this provider.
    #[arg(long)]
    pub provider: Option<String>,
    /// Only this model.
    #[arg(long)]
    pub model: Option<String>,
    /// Only this outcome: ok, rejected or dead.
    #[arg(long, value_parser = outcome)]
    pub outcome: Option<Outcome>,
    /// How results are written.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Write results to this file; a durable subscriber continues it. Default: stdout.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// One row an image, with what every model saw.
    #[arg(long)]
    pub by_image: bool,
    /// The models of a summary, in the order of its columns: an image is written with the last of them. Default:
    /// whatever comes, written when the batch is complete.
    #[arg(long, value_name = "MODEL,...", value_delimiter = ',', requires = "by_image")]
    pub models: Vec<String>,
    /// The metadata columns of a CSV, in order. Default: those of the first row.
    #[arg(long, value_name = "COLUMN,...", value_delimiter = ',')]
    pub metadata: Option<Vec<String>>,
    /// Results held for summaries at most; past it, the image that waits longest is written as it is.
    #[arg(
        long,
        value_name = "RESULTS",
        default_value_t = 100_000,
        requires = "by_image"
    )]
    pub hold: usize,
    /// Result ids remembered at most, to know a redelivery: 20 to 40 bytes each, twice.
    #[arg(long, value_name = "IDS", default_value_t = 10_000_000)]
    pub remember: usize,
    /// End when nothing came for this long.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub idle: Option<Duration>,
    /// End after this long; with --batch, the exit code is 4 when it is not complete then.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// Print one JSON object with the counts on stdout at the end; results go to --out, or nowhere.
    #[arg(long)]
    pub json: bool,
}

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
    fn check(&self) -> anyhow::Result<()> {
        if self.name.is_some() && self.by_image {
            bail!(
                "--by-image holds results until their image is complete, and a durable subscriber may only hold what \
                 is written: leave --name out, and give --batch, --since or --follow"
            );
        }
        if self.name.is_some() && self.json && self.out.is_none() {
            bail!("--name with --json would take results and write them nowhere: give --out");
        }
        if self.by_image && self.models.is_empty() && (self.follow || self.batch.is_none()) {
            bail!(
                "--by-image does not know when an image is complete: give --models a,b,c, or --batch without --follow"
            );
        }
        Ok(())
    }

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
    fn subscription(&self, name: Option<String>, from: From) -> Subscription {
        let filter = match &self.batch {
            Some(batch) => Filter {
                batch: Some(batch.clone()),
                ..Filter::default()
            },
            None => self.filter(),
        };
        Subscription { name, from, filter }
    }

    fn filter(&self) -> Filter {
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
        let of = counts
            .expected
            .map_or_else(String::new, |expected| format!(" of {expected}"));
        let what = match &report.batch {
            Some(batch) if report.complete => format!("batch {batch} is complete: "),
            Some(batch) => format!("batch {batch} is not complete: "),
            None => String::new(),
        };
        let Counts {
            results,
            done,
            failed,
            dead,
            ..
        } = *counts;
        let mut lines = vec![format!(
            "{what}{results}{of} results: {done} done, {failed} failed, {dead} dead"
        )];
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
        format!(
            "can't write {}: give --out a file in a folder that you may write",
            path.display()
        )
    })
}

fn subscriber_name(text: &str) -> Result<String, String> {
    text.parse::<BatchName>()
        .map(String::from)
        .map_err(|_| "use 1 to 64 letters, digits, `-` or `_`, for example `warehouse`".to_owned())
}

fn outcome(text: &str) -> Result<Outcome, String> {
    Outcome::ALL
        .into_iter()
        .find(|outcome| outcome.as_str() == text)
        .ok_or_else(|| "give ok, rejected or dead".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: Option<jiff::SignedDuration> = text.parse().ok();
    parsed
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| "give a time such as 90s, 30m, 2h or `1d 12h`".to_owned())
}

#[cfg(test)]
pub(crate) fn sample(
    image: &str,
    model: &str,
    outcome: Outcome,
    call: u32,
) -> pixfleet_shared::result::ImageResult {
    use pixfleet_shared::{
        id::Id,
        job::{Image, Job, Source},
        result::{Answer, Call, Failure, ImageResult, Label},
    };
    let source = Source::Url(format!("https://example.com/{image}.jpg"));
    let job = Job::new(
        "b".parse().unwrap(),
        Image {
            id: image.to_owned(),
            source,
        },
        "restb".into(),
        vec!["a".into(), "b".into()],
    );
    let answer = Answer {
        labels: vec![Label {
            label: "kitchen".into(),
            confidence: Some(0.97),
        }],
        ..Answer::default()
    };
    let failure = Failure {
        class: "transient".into(),
        message: "500 from the provider".into(),
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &str) -> Result<Args, String> {
        let words = std::iter::once("results").chain(line.split_whitespace());
        let args = Cli::try_parse_from(words)
            .map_err(|error| error.to_string())?
            .args;
        args.check().map_err(|error| error.to_string())?;
        Ok(args)
    }

    #[test]
    fn a_reader_must_be_told_what_to_read_and_what_contradicts_itself_is_refused() {
        assert!(args("").unwrap_err().contains("--batch"));
        assert!(args("--follow --by-image").unwrap_err().contains("--models"));
        assert!(
            args("--name n --by-image --batch b")
                .unwrap_err()
                .contains("--name")
        );
        assert!(args("--name n --json").unwrap_err().contains("--out"));
        assert!(args("--since yesterday").unwrap_err().contains("2h"));
        assert!(args("--name a.b").unwrap_err().contains("letters"));
        assert!(args("--batch b --outcome lost").unwrap_err().contains("rejected"));
        assert_eq!(args("--since 2h").unwrap().since, Some(Duration::from_secs(7200)));
    }

    #[test]
    fn a_filter_never_hides_the_end_of_a_batch_and_without_one_the_broker_filters() {
        let batch = args("--batch b --outcome dead").unwrap();
        let whole = batch.subscription(None, From::Beginning).filter;
        assert_eq!((whole.batch, whole.outcome), (batch.batch.clone(), None));
        assert_eq!(batch.filter().outcome, Some(Outcome::Dead));
        let follow = args("--follow --model m").unwrap();
        assert_eq!(
            follow.subscription(None, From::Now).filter.model.as_deref(),
            Some("m")
        );
    }
}
