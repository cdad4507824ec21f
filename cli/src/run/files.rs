//! The files of a run, looked at before anything is begun: everything that is wrong with them is said at once.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use pixfleet_shared::settings::{Problem, Problems};
use pixfleet_sinks::Kind;

use crate::order::Rows;

/// Refuses files that can't be there, and those that would overwrite each other or a manifest.
///
/// # Errors
/// Each of them, with its flag.
pub(super) fn check(rows: &Rows, outputs: &[PathBuf], state: &Path) -> Result<(), Problems> {
    let mut problems = Problems::default();
    let mut named = BTreeSet::new();
    // A folder that is not there is said once: the state lies beside the first output unless it is told otherwise.
    let mut missing = BTreeSet::new();
    for output in outputs {
        problems.extend(Kind::of(output).err().map(|error| Problem::of("--out", error.to_string())));
    }
    for (flag, file) in outputs.iter().map(|file| ("--out", file.as_path())).chain([("--state", state)]) {
        if !named.insert(absolute(file)) {
            problems.push(Problem::of(
                flag,
                format!(
                    "{} is named twice: give every output, and the state, a file of its own",
                    file.display()
                ),
            ));
        }
        problems.extend(rows.not_an_input(file, flag).err().into_iter().flatten());
        problems.extend(no_place(flag, file, &mut missing));
    }
    problems.or(())
}

fn no_place(flag: &str, file: &Path, missing: &mut BTreeSet<PathBuf>) -> Option<Problem> {
    let shown = file.display();
    if file.is_dir() {
        return Some(Problem::of(flag, format!("{shown} is a folder: give the name of a file")));
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty())?;
    if folder.is_dir() || !missing.insert(folder.to_owned()) {
        return None;
    }
    let is = if folder.exists() { "is no folder" } else { "is not there" };
    Some(Problem::of(
        flag,
        format!(
            "{shown}: the folder {} {is}: make it (mkdir -p), or give a name in another one",
            folder.display()
        ),
    ))
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        rows: Rows,
    }

    fn said(outputs: &[&str], state: &str) -> String {
        let rows = Cli::try_parse_from(["run", "a.csv"]).unwrap().rows;
        let outputs: Vec<PathBuf> = outputs.iter().map(PathBuf::from).collect();
        check(&rows, &outputs, Path::new(state))
            .err()
            .map(|problems| problems.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn everything_that_is_wrong_with_the_files_is_said_at_once() {
        assert_eq!(said(&["a.csv", "b.jsonl"], "a.pixfleet"), "");
        let problems = said(&["a.xlsx", "/nowhere/b.csv", "c.csv", "./c.csv", "src"], "/nowhere/s.pixfleet");
        for part in
            ["a.xlsx", "the folder /nowhere is not there", "./c.csv is named twice", "src is a folder"]
        {
            assert_eq!(problems.matches(part).count(), 1, "{part}: {problems}");
        }
    }

    #[test]
    fn a_file_in_the_place_of_a_folder_is_said_to_be_none() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml/a.csv");
        assert!(
            said(&[file], "s.pixfleet").contains("Cargo.toml is no folder"),
            "{}",
            said(&[file], "s.pixfleet")
        );
    }
}
