//! A Python environment with pinned packages, made once below the target folder and reused while its pins are the same.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::servers::repository;

/// The environment called `name` with the packages of `requirements` (relative to the repository) in it.
///
/// # Panics
/// When Python or pip can't make it: a test that needs it must not pass without.
pub fn with_packages(name: &str, requirements: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| repository().join("target"), |target| repository().join(target));
    let venv = target.join("venv").join(name);
    let requirements = repository().join(requirements);
    let pins = std::fs::read_to_string(&requirements).unwrap();
    let stamp = venv.join("requirements.installed");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == pins) {
        return venv;
    }
    done(
        Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv),
        "Python 3.11 or later with venv: apt-get install python3-venv",
    );
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
    done(
        Command::new(python_of(&venv)).args(install).arg(&requirements),
        "Python 3.11 or later, and pip with its package index",
    );
    std::fs::write(stamp, pins).unwrap();
    venv
}

/// The interpreter of an environment.
pub fn python_of(venv: &Path) -> PathBuf {
    venv.join("bin/python")
}

/// Runs a command to its end.
///
/// # Panics
/// When it fails, with what it said and what is `needed`.
pub fn done(command: &mut Command, needed: &str) -> Output {
    let output =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; this test needs {needed}"));
    assert!(
        output.status.success(),
        "{command:?} failed; this test needs {needed}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
