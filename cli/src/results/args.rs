//! What `pixfleet results` can be told, and what of it contradicts itself.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use pixfleet_shared::{batch::BatchName, result::Outcome};
use pixfleet_sinks::Kind;

use super::rows::Format;
use crate::{engine::Choice, spans};

/// Reads results: of a batch until it is complete, of the last hours, or from now on.
///
/// Without --name the results come from the replay log, which keeps them for days whoever reads them. With --name
/// they come from a queue of that name: it keeps what this subscriber has not yet written, also while it is away.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "EXAMPLES
  pixfleet results --batch spring                             every result, then the counts
  pixfleet results --batch spring --by-image --format csv --out spring.csv
  pixfleet results --batch spring --json --timeout 2h         wait for a batch in a script
  pixfleet results --batch spring --into spring.parquet --into spring.sqlite
  pixfleet results --name warehouse --out warehouse.jsonl     a durable subscriber; run it again to go on
  pixfleet results --since 2h --outcome dead --format table
  pixfleet results --follow --model re_logo
  pixfleet results --state spring.pixfleet --batch spring     of a run on this machine

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
    /// Only this outcome: ok, rejected, dead, cancelled or ambiguous.
    #[arg(long, value_parser = outcome)]
    pub outcome: Option<Outcome>,
    /// How results are written.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Write results to this file; a durable subscriber continues it. Default: stdout.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Write results to this file, too, of the kind that its name says: .jsonl, .csv, .parquet or .sqlite; may be given
    /// several times. Without --out, nothing is printed then. A database is gone on with; of the others, only new ones.
    #[arg(long, value_name = "FILE", value_parser = results_file)]
    pub into: Vec<PathBuf>,
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
    #[arg(long, value_name = "RESULTS", default_value_t = 100_000, requires = "by_image")]
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
    #[command(flatten)]
    pub engine: Choice,
    /// Print one JSON object with the counts on stdout at the end; results go to --out and --into, or nowhere.
    #[arg(long)]
    pub json: bool,
}

impl Args {
    /// What contradicts itself, with the way out.
    ///
    /// # Errors
    /// A misuse of the command line, as clap's own.
    pub(super) fn check(&self) -> Result<(), clap::Error> {
        let misused = |way_out: &str| {
            clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, format!("{way_out}\n"))
        };
        if self.name.is_some() && self.by_image {
            return Err(misused(
                "--by-image holds results until their image is complete, and a durable subscriber may only hold what \
                 is written: leave --name out, and give --batch, --since or --follow",
            ));
        }
        if self.name.is_some() && self.json && self.out.is_none() && self.into.is_empty() {
            return Err(misused("--name with --json would take results and write them nowhere: give --out"));
        }
        if self.by_image && self.models.is_empty() && (self.follow || self.batch.is_none()) {
            return Err(misused(
                "--by-image does not know when an image is complete: give --models a,b,c, or --batch without --follow",
            ));
        }
        self.into.iter().enumerate().try_for_each(|(at, file)| {
            let others = self.into[..at].iter().chain(&self.out);
            self.misuse_of(file, others).map_or(Ok(()), |way_out| Err(misused(&way_out)))
        })
    }

    /// Why `file` can't be one of --into, if it can't.
    fn misuse_of<'a>(&self, file: &Path, mut others: impl Iterator<Item = &'a PathBuf>) -> Option<String> {
        let shown = file.display();
        if self.by_image {
            return Some(format!(
                "--into {shown} takes results, and --by-image makes summaries: give --out for those"
            ));
        }
        if others.any(|other| other == file) {
            return Some(format!("{shown} is given twice: give each file once"));
        }
        match Kind::of(file) {
            Ok(Kind::Jsonl | Kind::Csv) if self.name.is_some() => Some(format!(
                "--name goes on in its file, and {shown} would be a new one each time: give --out {shown}, with \
                 --format jsonl or csv"
            )),
            Ok(Kind::Parquet) if self.name.is_some() => Some(format!(
                "--name goes on in its file, and a Parquet file can't be gone on with: give --into a database \
                 (.sqlite), or leave --name out and give --batch or --since for {shown}"
            )),
            _ => None,
        }
    }
}

fn results_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    Kind::of(&path).map(|_| path).map_err(|error| error.to_string())
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
        .ok_or_else(|| format!("give one of {}", Outcome::ALL.map(Outcome::as_str).join(", ")))
}

fn duration(text: &str) -> Result<Duration, String> {
    spans::span(text)
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| "give a time such as 90s, 30m, 2h or `1d 12h`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use pixfleet_shared::queue::From;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &str) -> Result<Args, String> {
        let words = std::iter::once("results").chain(line.split_whitespace());
        let args = Cli::try_parse_from(words).map_err(|error| error.to_string())?.args;
        args.check().map_err(|error| error.to_string())?;
        Ok(args)
    }

    #[test]
    fn a_reader_must_be_told_what_to_read_and_what_contradicts_itself_is_refused() {
        assert!(args("").unwrap_err().contains("--batch"));
        assert!(args("--follow --by-image").unwrap_err().contains("--models"));
        assert!(args("--name n --by-image --batch b").unwrap_err().contains("--name"));
        assert!(args("--name n --json").unwrap_err().contains("--out"));
        assert!(args("--since yesterday").unwrap_err().contains("2h"));
        assert!(args("--name a.b").unwrap_err().contains("letters"));
        assert!(args("--batch b --outcome lost").unwrap_err().contains("rejected"));
        assert!(args("--batch b --into b.xlsx").unwrap_err().contains(".parquet"));
        assert!(args("--batch b --into b.db --by-image").unwrap_err().contains("--out"));
        assert!(args("--batch b --into b.db --into b.db").unwrap_err().contains("twice"));
        assert!(args("--batch b --into b.csv --out b.csv").unwrap_err().contains("twice"));
        assert!(args("--name n --into b.csv").unwrap_err().contains("--out b.csv"));
        assert!(args("--name n --into b.parquet").unwrap_err().contains("can't be gone on with"));
        assert_eq!(args("--name n --json --into b.db").unwrap().into, [PathBuf::from("b.db")]);
        assert_eq!(args("--since 2h").unwrap().since, Some(Duration::from_secs(7200)));
    }

    #[test]
    fn a_filter_never_hides_the_end_of_a_batch_and_without_one_the_broker_filters() {
        let batch = args("--batch b --outcome dead").unwrap();
        let whole = batch.subscription(None, From::Beginning).filter;
        assert_eq!((whole.batch, whole.outcome), (batch.batch.clone(), None));
        assert_eq!(batch.filter().outcome, Some(Outcome::Dead));
        let follow = args("--follow --model m").unwrap();
        assert_eq!(follow.subscription(None, From::Now).filter.model.as_deref(), Some("m"));
    }
}
