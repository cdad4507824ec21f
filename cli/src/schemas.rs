//! The role `schemas`: the public message formats and the settings file as JSON Schemas.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use serde_json::Value;

use crate::{config::Config, exit::Exit, output};

/// Write the JSON Schemas of the messages and of the settings file.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  pixfleet schemas docs/schemas             write them
  pixfleet schemas --check docs/schemas     exit code 1, and the files' names, where one is out of date")]
pub(crate) struct Args {
    /// The folder of the schemas
    #[arg(value_name = "DIR", default_value = "docs/schemas")]
    directory: PathBuf,
    /// Write nothing; say which files differ from what this build would write
    #[arg(long)]
    check: bool,
}

/// Writes or checks the schemas.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let schemas = schemas()?;
    if args.check {
        let stale = stale(&args.directory, &schemas)?;
        for file in &stale {
            output::line(format!(
                "{}: out of date: run `pixfleet schemas {}`",
                file.display(),
                args.directory.display()
            ))?;
        }
        return Ok(if stale.is_empty() { Exit::Done } else { Exit::Failed }.into());
    }
    fs::create_dir_all(&args.directory)
        .with_context(|| format!("{} can't be made", args.directory.display()))?;
    for (name, text) in &schemas {
        let file = args.directory.join(name);
        fs::write(&file, text).with_context(|| format!("{} can't be written", file.display()))?;
    }
    Ok(Exit::Done.into())
}

/// Every file's name and text.
fn schemas() -> anyhow::Result<Vec<(&'static str, String)>> {
    let mut files = Vec::new();
    for (name, schema) in pixfleet_shared::schema::all() {
        files.push((name, pretty(schema.as_value())?));
    }
    files.push(("config.json", pretty(&pixfleet_shared::settings::schema::<Config>())?));
    Ok(files)
}

/// A schema as its file holds it.
pub(crate) fn pretty(schema: &Value) -> serde_json::Result<String> {
    Ok(serde_json::to_string_pretty(schema)? + "\n")
}

/// The files that are missing, differ, or have no schema any more.
fn stale(directory: &Path, schemas: &[(&'static str, String)]) -> anyhow::Result<Vec<PathBuf>> {
    let mut stale: Vec<PathBuf> = schemas
        .iter()
        .filter(|(name, text)| fs::read_to_string(directory.join(name)).ok().as_ref() != Some(text))
        .map(|(name, _)| directory.join(name))
        .collect();
    let entries =
        fs::read_dir(directory).with_context(|| format!("{} can't be read", directory.display()))?;
    for entry in entries {
        let name = entry?.file_name();
        let orphan =
            name.to_string_lossy().ends_with(".json") && !schemas.iter().any(|(known, _)| name == *known);
        stale.extend(orphan.then(|| directory.join(name)));
    }
    Ok(stale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_schemas_are_those_of_this_build() {
        let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/schemas"));
        let stale = stale(directory, &schemas().unwrap()).unwrap();
        assert!(stale.is_empty(), "run `pixfleet schemas docs/schemas`: {stale:?}");
    }

    #[test]
    fn a_changed_a_missing_and_a_forgotten_file_are_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let write = Args { directory: directory.path().to_owned(), check: false };
        run(&write).unwrap();
        assert_eq!(stale(directory.path(), &schemas().unwrap()).unwrap().len(), 0);
        fs::write(directory.path().join("job.v1.json"), "{}").unwrap();
        fs::remove_file(directory.path().join("config.json")).unwrap();
        fs::write(directory.path().join("job.v0.json"), "{}").unwrap();
        assert_eq!(stale(directory.path(), &schemas().unwrap()).unwrap().len(), 3);
    }
}
