//! A private API behind Flask-Limiter: one process of `tests/judges/flask_api.py`, with its counts in memory.

use std::{
    fmt,
    fs::{self, File},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::{Call, Setting, listens};
use crate::{private_redis::free_port, servers::repository, venv};

/// How Flask-Limiter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// `fixed-window`: a window begins with its first call.
    FixedWindow,
    /// `moving-window`: at most so many in any window.
    MovingWindow,
}

impl Strategy {
    fn name(self) -> &'static str {
        match self {
            Self::FixedWindow => "fixed-window",
            Self::MovingWindow => "moving-window",
        }
    }
}

/// What it lets pass, by key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// How it counts.
    pub strategy: Strategy,
    /// Calls in a window.
    pub calls: u32,
    /// The window, in seconds.
    pub seconds: u32,
}

impl Gate {
    pub(crate) fn setting(self) -> Setting {
        let judge = match self.strategy {
            Strategy::FixedWindow => "fixed",
            Strategy::MovingWindow => "sliding",
        };
        Setting::rate(self.calls, u64::from(self.seconds) * 1_000, judge, None)
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} per {} s", self.strategy.name(), self.calls, self.seconds)
    }
}

/// The running server: one process, which ends with this value.
pub(crate) struct Flask {
    process: Child,
    folder: TempDir,
    port: u16,
}

impl Flask {
    /// Starts an API that takes `latency_ms`, and waits until it listens.
    pub(crate) async fn start(gate: Gate, latency_ms: u32) -> Self {
        let venv = venv::with_packages("judges", "tests/judges/requirements.txt");
        let (folder, port) = (TempDir::new().unwrap(), free_port());
        let said = File::create(folder.path().join("said")).unwrap();
        let process = Command::new(venv::python_of(&venv))
            .arg(repository().join("tests/judges/flask_api.py"))
            .arg(port.to_string())
            .arg(folder.path().join("calls"))
            .arg(gate.strategy.name())
            .arg(format!("{} per {} second", gate.calls, gate.seconds))
            .arg(latency_ms.to_string())
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .spawn()
            .unwrap();
        let mut flask = Self { process, folder, port };
        let said = || fs::read_to_string(flask.folder.path().join("said")).unwrap_or_default();
        listens(&mut flask.process, port, said).await;
        flask
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its log: a line is written before the answer leaves.
    pub(crate) fn calls(&self) -> Vec<Call> {
        let log = fs::read_to_string(self.folder.path().join("calls")).unwrap();
        log.lines().map(call).collect()
    }
}

impl Drop for Flask {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone after the wait.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A line of the log: when the call was judged and how long it took from there, in microseconds, and its status.
fn call(line: &str) -> Call {
    let words: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
    Call { at_us: words[0], until_us: words[0] + words[1], passed: words[2] != 429 }
}
