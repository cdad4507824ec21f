//! The role `config`, and the settings that every role starts from.
//!
//! `load` merges the sources in their order (file, environment, flags) into one document that knows where each
//! value came from; `settings` is what it is read into; `fields` is what may be set at all, from the schema.

mod environment;
mod example;
mod fields;
mod load;
mod reference;
mod secrets;
mod settings;
mod show;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use serde_json::json;

pub(crate) use load::{Keys, Loaded, Sources};
pub(crate) use settings::{Config, Log};

use crate::{exit::Exit, output};

/// Check, show and explain the settings.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  pixfleet config check                        every problem at once, with its line and a way out
  pixfleet config show --origin                the settings in effect, and where each comes from
  pixfleet config example > pixfleet.toml      a file with every setting and its default
  PIXFLEET_WORKER_CONCURRENCY=8 pixfleet config show --set log.format=json")]
pub(crate) struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, clap::Subcommand)]
enum Task {
    /// Say everything that is wrong with the settings. Exit code 0 when nothing is, else 2
    #[command(after_help = "EXAMPLES
  pixfleet config check --config deploy/pixfleet.toml --without-keys
  pixfleet config check --json | jq '.problems[].origin'")]
    Check {
        /// As one JSON object: {"ok": false, "problems": [{"origin", "field", "message"}]}
        #[arg(long)]
        json: bool,
        /// The providers' keys are elsewhere: do not ask for them
        #[arg(long)]
        without_keys: bool,
    },
    /// Show the settings in effect, without their secrets
    #[command(after_help = "EXAMPLES
  pixfleet config show --origin | grep -v '# default'
  pixfleet config show --json | jq '.\"worker.concurrency\"'")]
    Show {
        /// As one JSON object by field
        #[arg(long)]
        json: bool,
        /// With where each value came from: file:line, variable, flag, or default
        #[arg(long)]
        origin: bool,
    },
    /// Write a settings file with every setting, its meaning and its default
    #[command(after_help = "EXAMPLES
  pixfleet config example > pixfleet.toml")]
    Example,
    /// Write the JSON Schema of the settings file, for editors
    #[command(after_help = "EXAMPLES
  pixfleet config schema > pixfleet.schema.json    then, in pixfleet.toml: #:schema ./pixfleet.schema.json")]
    Schema,
    /// Renew the generated part of a documentation page
    #[command(hide = true)]
    Docs {
        /// The page
        file: PathBuf,
    },
}

/// Does one task of `pixfleet config`.
pub(crate) fn run(args: Args, sources: &Sources) -> anyhow::Result<ExitCode> {
    match args.task {
        Task::Check { json, without_keys } => {
            let keys = if without_keys { Keys::NotNeeded } else { Keys::Needed };
            return check(sources, keys, json);
        }
        Task::Show { json: false, origin } => output::text(show::text(&sources.load()?, origin))?,
        Task::Show { json: true, origin } => output::json(&show::json(&sources.load()?, origin))?,
        Task::Example => output::text(example::example())?,
        Task::Schema => {
            output::text(crate::schemas::pretty(&pixfleet_shared::settings::schema::<Config>())?)?
        }
        Task::Docs { file } => renew(&file)?,
    }
    Ok(Exit::Done.into())
}

fn check(sources: &Sources, keys: Keys, json: bool) -> anyhow::Result<ExitCode> {
    // The providers, too: their keys must be there, and their expressions must compile.
    let problems = sources.load_with_providers(keys).err();
    if json {
        output::json(&json!({"ok": problems.is_none(), "problems": problems.clone().unwrap_or_default()}))?;
    }
    match problems {
        None if json => Ok(Exit::Done.into()),
        None => Ok(output::line("the settings are fine").map(|()| Exit::Done.into())?),
        Some(_) if json => Ok(Exit::Usage.into()),
        Some(problems) => Err(problems.into()),
    }
}

fn renew(file: &PathBuf) -> anyhow::Result<()> {
    let name = file.display();
    let page = std::fs::read_to_string(file).with_context(|| format!("{name} can't be read"))?;
    let Some(renewed) = reference::renewed(&page) else {
        bail!("{name} has no generated part: put the two marks of docs/configuration.md into it");
    };
    std::fs::write(file, renewed).with_context(|| format!("{name} can't be written"))
}
