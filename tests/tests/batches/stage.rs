//! Workers on servers or on a state file, batches whose calls are told apart, and the commands about them.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use pixfleet_sandbox::{Faults, Judging, Latency, Rule, Settings};
use pixfleet_tests::fleet::{Fleet, KEY};
use serde_json::Value;
use tokio::time::{sleep, timeout};

/// The longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
const PROVIDER: &str = "limits = [{ name = \"rate\", calls = 100 }]\n\
                        cost = { price = 0.01, count = \"per_call\", currency = \"USD\" }";

pub(crate) struct Stage {
    pub(crate) fleet: Fleet,
}

impl Stage {
    pub(crate) async fn fleet() -> Self {
        Self { fleet: Fleet::start(sandbox(Faults::default()), PROVIDER, "").await }
    }

    pub(crate) async fn one_machine() -> Self {
        Self { fleet: Fleet::on_one_machine(sandbox(Faults::default()), PROVIDER, "").await }
    }

    /// Where a third of the calls fail, and each job's first failure is its last.
    pub(crate) async fn of_failures(servers: bool) -> Self {
        let faults = Faults { error_500: 0.3, seed: 11, ..Faults::default() };
        let provider = format!("{PROVIDER}\nretry = {{ attempts = 1 }}");
        let fleet = match servers {
            true => Fleet::start(sandbox(faults), &provider, "").await,
            false => Fleet::on_one_machine(sandbox(faults), &provider, "").await,
        };
        Self { fleet }
    }

    pub(crate) fn start_workers(&mut self, count: usize) {
        for _ in 0..count {
            self.fleet.start_worker();
        }
    }

    /// `pixfleet batch TASK`.
    pub(crate) fn batch(&self, task: &[&str]) -> Command {
        self.fleet.command(&[&["batch"], task].concat())
    }

    /// `pixfleet enqueue` of so many images of one model; the same name and more images adds to the batch.
    pub(crate) fn enqueue_command(&self, batch: &str, images: usize) -> Command {
        let manifest = self.fleet.file(&format!("{batch}.csv"), &rows(batch, images));
        self.fleet.command(&[
            "enqueue",
            manifest.to_str().unwrap(),
            "--batch",
            batch,
            "--models",
            "m",
            "--provider",
            "sandbox",
            "--quiet",
        ])
    }

    pub(crate) fn enqueue(&self, batch: &str, images: usize) {
        pixfleet_tests::site::told(self.enqueue_command(batch, images));
    }

    /// Calls that the sandbox was asked for a batch.
    pub(crate) async fn calls(&self, batch: &str) -> usize {
        let begin = url(batch, 0).trim_end_matches("0.jpg").to_owned();
        let lines = self.fleet.sandbox.access().await;
        lines.iter().filter(|line| line.image.as_ref().is_some_and(|image| image.starts_with(&begin))).count()
    }

    /// Waits until the sandbox was called so often for a batch.
    pub(crate) async fn called(&self, batch: &str, least: usize) {
        let all = async {
            while self.calls(batch).await < least {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let came = timeout(PATIENCE, all).await;
        assert!(
            came.is_ok(),
            "{} of {least} calls for {batch}\n{}",
            self.calls(batch).await,
            self.fleet.logs()
        );
    }

    /// What `batch show` shows, once it is as wanted.
    pub(crate) async fn shown_when(&self, batch: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let looking = async {
            loop {
                last = json(self.batch(&["show", batch, "--json"]));
                if wanted(&last) {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        let came = timeout(PATIENCE, looking).await;
        assert!(came.is_ok(), "it stays at {last}\n{}", self.fleet.logs());
        last
    }
}

fn sandbox(faults: Faults) -> Settings {
    Settings {
        keys: vec![KEY.into()],
        judging: Judging { rule: Rule::None, limit: 1, ..Judging::default() },
        latency: Latency::Constant { ms: 20 },
        faults,
        ..Settings::default()
    }
}

/// A manifest of a batch's images.
pub(crate) fn rows(batch: &str, images: usize) -> String {
    (0..images).fold("id,url\n".to_owned(), |rows, n| rows + &format!("i{n},{}\n", url(batch, n)))
}

fn url(batch: &str, n: usize) -> String {
    format!("http://images.example/{batch}/{n}.jpg")
}

/// How a command ended: its code, and what it said on stdout and stderr.
pub(crate) fn ended(mut command: Command) -> (i32, String, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// What a command that went well printed, as JSON.
pub(crate) fn json(command: Command) -> Value {
    let said = pixfleet_tests::site::told(command);
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}
