//! What `enqueue` and `run` can be told of the images and of what is asked about them.

use std::{io, num::NonZeroU32, path::Path};

use jiff::Timestamp;
use pixfleet_producer::{
    BadRows, Config,
    manifest::{ColumnNames, Format, Manifest, Reading},
    plan::{Plan, Tariff},
};
use pixfleet_shared::{
    settings::{Problem, Problems},
    trace::TraceParent,
};
use pixfleet_worker::provider::{Provider, definition::Count};

use crate::spans;

/// The manifests, and how they are read.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Rows {
    /// CSV with a header, JSONL, lists of URLs (each also .gz or .zst), pictures, folders, patterns, URLs; - is stdin
    #[arg(value_name = "MANIFEST", required = true)]
    pub(crate) manifests: Vec<String>,
    /// The format of every manifest: csv, jsonl or list [default: told by its content]
    #[arg(long, value_name = "FORMAT", help_heading = "Reading")]
    format: Option<Format>,
    /// Which column is what, with the roles id, url, path and base64 [default: by their names]
    #[arg(long, value_name = "ROLE=COLUMN,...", default_value = "", hide_default_value = true, value_parser = columns, help_heading = "Reading")]
    column: ColumnNames,
    /// What becomes of a row that can't be used: `stop`, `skip`, or a file that takes it with the reason, as JSONL
    #[arg(long, value_name = "stop|skip|FILE", default_value = "stop", value_parser = bad_rows, help_heading = "Reading")]
    pub(crate) bad_rows: BadRows,
}

impl Rows {
    /// Opens the manifests. With `by_path`, files travel as their path and not as their bytes.
    ///
    /// # Errors
    /// When one of them can't be read, or the file for bad rows is a manifest itself.
    pub(crate) fn open(&self, by_path: bool) -> anyhow::Result<Manifest> {
        if let BadRows::Keep(file) = &self.bad_rows {
            self.not_an_input(file, "--bad-rows")?;
        }
        let reading = Reading { format: self.format, columns: self.column.clone(), by_path };
        Ok(Manifest::open(&self.manifests, reading)?)
    }

    /// A mistyped `--out images.csv` must not empty the manifest.
    ///
    /// # Errors
    /// When `file`, which `flag` named, is one of the manifests.
    pub(crate) fn not_an_input(&self, file: &Path, flag: &str) -> Result<(), Problems> {
        let same = |manifest: &String| match (file.canonicalize(), Path::new(manifest).canonicalize()) {
            (Ok(file), Ok(manifest)) => file == manifest,
            _ => false,
        };
        if self.manifests.iter().any(same) {
            let message = format!(
                "{} is a manifest itself, and would be overwritten: name another file",
                file.display()
            );
            return Err(Problem::of(flag, message).into());
        }
        Ok(())
    }
}

/// What each image is asked.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Ask {
    /// What each image is asked, separated by commas [default: the provider's model, where it has one]
    #[arg(long, value_name = "MODEL,...", value_delimiter = ',')]
    pub(crate) models: Vec<String>,
    /// The most models of one call, where that is fewer than the provider allows
    #[arg(long, value_name = "N")]
    models_per_call: Option<NonZeroU32>,
}

impl Ask {
    /// The calls that one image becomes.
    ///
    /// # Errors
    /// For a model that the provider does not know, or none where it has several.
    pub(crate) fn plan(&self, provider: &Provider, config: &Config) -> anyhow::Result<Plan> {
        let models = self.models(provider)?;
        for model in &models {
            provider.accepts(model).map_err(of_models)?;
        }
        let caps = [config.models_per_call, self.models_per_call];
        let models_per_call = caps
            .into_iter()
            .flatten()
            .map(|cap| cap.get() as usize)
            .fold(provider.models_per_call(), usize::min);
        let cost = provider.tariff();
        let tariff = match cost.count {
            Count::PerCall => Tariff { per_call: cost.price, per_model: 0.0 },
            Count::PerModel => Tariff { per_call: 0.0, per_model: cost.price },
        };
        let plan = Plan::new(provider.name(), &models, models_per_call, tariff);
        Ok(plan.map_err(|error| of_models(error.to_string()))?)
    }

    fn models(&self, provider: &Provider) -> Result<Vec<String>, Problems> {
        if !self.models.is_empty() {
            return Ok(self.models.clone());
        }
        match provider.definition().models.as_slice() {
            [only] if !only.ends_with('*') => Ok(vec![only.clone()]),
            [] => {
                Err(of_models("none is named: say what each image is asked, --models MODEL,...".to_owned()))
            }
            several => Err(of_models(format!(
                "none is named: say what each image is asked, --models MODEL,... (`{}` knows {})",
                provider.name(),
                several.join(", ")
            ))),
        }
    }
}

fn of_models(message: String) -> Problems {
    Problem::of("--models", message).into()
}

/// What holds for every call of a batch.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Conditions {
    /// After this no call is made: a span from now on (90s, 30m, 2h, 1d) or a moment (2026-11-26T18:00:00Z). What has no
    /// answer by then becomes a dead letter
    #[arg(long, value_name = "SPAN|TIME", value_parser = deadline)]
    pub(crate) deadline: Option<Timestamp>,
    /// Ask also where an answer of before is kept, and keep the new one
    #[arg(long)]
    pub(crate) refresh: bool,
}

fn deadline(text: &str) -> Result<Timestamp, String> {
    let moment = match spans::span(text).filter(jiff::SignedDuration::is_positive) {
        Some(span) => Timestamp::now().checked_add(span).ok(),
        None => text.parse().ok(),
    };
    moment.ok_or_else(|| {
        "give a span like 90s, 30m, 2h or 1d, or a moment like 2026-11-26T18:00:00Z".to_owned()
    })
}

/// The trace that the environment says; whoever set it wrongly meant another program, so a new one then.
pub(crate) fn ambient_trace() -> TraceParent {
    let ambient = std::env::var("TRACEPARENT").ok().and_then(|text| text.parse().ok());
    ambient.unwrap_or_else(TraceParent::random)
}

/// Whether stderr is a terminal.
pub(crate) fn on_terminal() -> bool {
    io::IsTerminal::is_terminal(&io::stderr())
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

    #[test]
    fn a_deadline_is_a_span_from_now_on_or_a_moment() {
        for (text, seconds) in [("90s", 90), ("30m", 1_800), ("2h", 7_200), ("1h30m", 5_400), ("2d", 172_800)]
        {
            let left = deadline(text).unwrap().duration_since(Timestamp::now()).as_secs();
            assert!((seconds - 10..=seconds).contains(&left), "{text}: {left}");
        }
        assert_eq!(deadline("2026-11-26T18:00:00Z").unwrap().to_string(), "2026-11-26T18:00:00Z");
        assert!(deadline("2026-11-26T18:00:00+01:00").is_ok());
        for wrong in ["", "soon", "-2h", "0s", "5", "0d", "2026-11-26"] {
            assert!(deadline(wrong).is_err(), "{wrong}");
        }
    }

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        rows: Rows,
        #[command(flatten)]
        ask: Ask,
    }

    fn parsed(further: &[&str]) -> Result<Cli, clap::Error> {
        let line = ["enqueue", "a.csv", "--models", "m,n"];
        Cli::try_parse_from(line.iter().chain(further))
    }

    #[test]
    fn arguments_have_their_documented_defaults() {
        let cli = parsed(&[]).unwrap();
        assert_eq!(
            (cli.rows.bad_rows, cli.rows.column, cli.ask.models.len()),
            (BadRows::Stop, ColumnNames::default(), 2)
        );
    }

    #[test]
    fn a_wrong_word_is_refused_by_the_command_line() {
        for wrong in [["--column", "photo"], ["--format", "xml"], ["--models-per-call", "0"]] {
            assert!(parsed(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_output_never_overwrites_a_manifest() {
        let here = file!().rsplit('/').next().unwrap();
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(here);
        let mut rows = parsed(&[]).unwrap().rows;
        rows.manifests = vec![manifest.to_str().unwrap().to_owned()];
        let refused = rows.not_an_input(&manifest, "--bad-rows").unwrap_err().to_string();
        assert!(refused.contains("--bad-rows") && refused.contains("overwritten"), "{refused}");
        assert!(rows.not_an_input(Path::new("other.jsonl"), "--out").is_ok());
    }
}
