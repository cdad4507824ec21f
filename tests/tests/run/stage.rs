//! A sandbox in this process, a folder, and the binary run in it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::RowAccessor,
};
use pixfleet_sandbox::{Latency, Running, Sandbox, Settings};
use pixfleet_tests::fleet::{image_url, pixfleet};
use rusqlite::Connection;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    time::timeout,
};

/// The longest that anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The key that the sandbox lets in.
pub(crate) const KEY: &str = "right";
/// The outputs of every kind.
pub(crate) const KINDS: [&str; 4] = ["r.jsonl", "r.csv", "r.parquet", "r.sqlite"];

pub(crate) struct Stage {
    pub(crate) sandbox: Running,
    pub(crate) folder: TempDir,
}

/// How a command ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Stage {
    /// A sandbox whose calls take `latency_ms`, and settings with the provider `api`, which is that sandbox.
    pub(crate) async fn new(latency_ms: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stage = Self { sandbox: sandbox(listener, latency_ms), folder: TempDir::new().unwrap() };
        stage.write("pixfleet.toml", &stage.settings(""));
        stage
    }

    /// Settings with the provider `api`; `further` are fields of it.
    pub(crate) fn settings(&self, further: &str) -> String {
        let url = self.sandbox.url();
        format!(
            "[worker]\nconcurrency = 8\n[providers.api]\npreset = 'generic'\nendpoint = '{url}'\n{further}\n\
             [providers.restb]\npreset = 'restb'\nendpoint = '{url}'\n"
        )
    }

    /// The same address, by a sandbox that is as quick as another one was slow: what was in flight is cut off.
    pub(crate) async fn with_latency(self, latency_ms: u64) -> Self {
        let Self { sandbox: old, folder } = self;
        let address = old.addr();
        drop(old);
        let listener = timeout(PATIENCE, async {
            loop {
                match TcpListener::bind(address).await {
                    Ok(listener) => return listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        Self { sandbox: sandbox(listener.await.expect("the address is free again"), latency_ms), folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// A manifest of images from number `from` up to `to`.
    pub(crate) fn manifest(&self, name: &str, from: usize, to: usize) {
        let rows: Vec<String> = (from..to).map(|n| format!("i{n},{}", image_url(n))).collect();
        self.write(name, &format!("id,url\n{}\n", rows.join("\n")));
    }

    /// `pixfleet LINE` in the folder, with the right key and nothing of this machine's settings.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(pixfleet());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PIXFLEET_")) {
            command.env_remove(name);
        }
        command
            .args(line.split_whitespace())
            .current_dir(self.folder.path())
            .env("GENERIC_API_KEY", KEY)
            .env("RESTB_CLIENT_KEY", KEY)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Starts `pixfleet LINE`.
    pub(crate) fn start(&self, line: &str) -> Child {
        self.command(line).spawn().unwrap()
    }

    /// Runs `pixfleet LINE` to its end.
    pub(crate) async fn done(&self, line: &str) -> Ended {
        end(self.start(line), line).await
    }

    /// Waits until the sandbox has charged for so many calls.
    pub(crate) async fn charged(&self, calls: u64) -> u64 {
        wait_for(|| self.bill() >= calls, &format!("{calls} calls on the bill")).await;
        self.bill()
    }

    /// Calls that the sandbox charged for.
    pub(crate) fn bill(&self) -> u64 {
        self.sandbox.bill().total.charged
    }

    /// The ids of the results in an output, in its order.
    pub(crate) fn ids(&self, name: &str) -> Vec<String> {
        match name.rsplit_once('.').unwrap().1 {
            "jsonl" => jsonl_ids(&self.read(name)),
            // The id is the first column, and no id has a comma.
            "csv" => {
                let text = self.read(name);
                assert!(text.starts_with("id,"), "{text}");
                text.lines().skip(1).map(|row| row.split(',').next().unwrap().to_owned()).collect()
            }
            "parquet" => {
                let reader = SerializedFileReader::new(File::open(self.path(name)).unwrap()).unwrap();
                let rows = reader.get_row_iter(None).unwrap();
                rows.map(|row| row.unwrap().get_string(0).unwrap().clone()).collect()
            }
            _ => {
                let db = Connection::open(self.path(name)).unwrap();
                let mut query = db.prepare("SELECT id FROM results").unwrap();
                query.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
            }
        }
    }

    /// Each of these outputs has so many results, each once, and all of them the same.
    pub(crate) fn hold_each_once(&self, outputs: &[&str], results: usize) {
        let first: BTreeSet<String> = self.ids(outputs[0]).into_iter().collect();
        for output in outputs {
            let ids = self.ids(output);
            assert_eq!(ids.len(), results, "{output}: every result, once");
            assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), first, "{output} against {}", outputs[0]);
        }
        assert_eq!(first.len(), results, "no result twice");
    }

    /// The names in the folder.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Ended {
    pub(crate) fn assert(&self, code: i32, says: &[&str], case: &str) {
        assert_eq!(self.code, Some(code), "{case}: the exit code\n{self:?}");
        for part in says {
            assert!(self.stderr.contains(part), "{case}: `{part}` is not in\n{}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{case}\n{}", self.stderr);
    }
}

fn sandbox(listener: TcpListener, latency_ms: u64) -> Running {
    let settings = Settings {
        keys: vec![KEY.to_owned()],
        latency: Latency::Constant { ms: latency_ms },
        ..Settings::default()
    };
    Sandbox::start(listener, settings).unwrap()
}

/// The end of a command, within patience: one that hangs is ended, and the test fails.
pub(crate) async fn end(child: Child, what: &str) -> Ended {
    let output = timeout(PATIENCE, child.wait_with_output()).await;
    let output = output.unwrap_or_else(|_| panic!("`{what}` does not end within {PATIENCE:?}")).unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Kills a command in the middle of its work, without a warning.
pub(crate) async fn kill(mut child: Child) -> ExitStatus {
    assert_eq!(child.try_wait().unwrap(), None, "it ended before it could be killed");
    child.start_kill().unwrap();
    child.wait().await.unwrap()
}

pub(crate) fn signal(child: &Child, name: &str) {
    let id = child.id().expect("a running command").to_string();
    let told = std::process::Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap();
    assert!(told.success(), "kill -{name}");
}

pub(crate) async fn wait_for(mut happened: impl FnMut() -> bool, what: &str) {
    let waiting = async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(PATIENCE, waiting).await.is_ok(), "no {what} within {PATIENCE:?}");
}

pub(crate) fn jsonl_ids(text: &str) -> Vec<String> {
    text.lines().map(|line| parsed(line)["id"].as_str().unwrap().to_owned()).collect()
}

pub(crate) fn parsed(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// A file's content, for a comparison; nothing where it is not there.
pub(crate) fn content(path: &Path) -> Option<Vec<u8>> {
    fs::read(path).ok()
}
