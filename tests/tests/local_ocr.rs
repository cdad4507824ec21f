//! The recipe of docs/local-ocr.md: text in pictures from an OCR server on this machine, without a key.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use pixfleet_tests::{fleet::pixfleet, servers, venv};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{net::TcpStream, time::timeout};

/// The longest that the server may take to listen: Python reads its libraries from the disk first.
const START: Duration = Duration::from_secs(120);
/// The longest that the whole run may take.
const RUN: Duration = Duration::from_secs(300);

/// A Python with the pinned server.
fn venv() -> PathBuf {
    venv::with_packages("local-ocr", "docs/local-ocr/requirements.txt")
}

/// The running OCR server; ended with the test.
struct Server {
    process: Child,
    port: u16,
    log: PathBuf,
}

impl Server {
    /// Starts it on a free port, and waits until it listens there.
    async fn start(venv: &Path, log: PathBuf) -> Self {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let said = File::create(&log).unwrap();
        let process = Command::new(venv.join("bin/rapidocr_api"))
            .args(["-ip", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .spawn()
            .unwrap();
        let mut server = Self { process, port, log };
        let listening = timeout(START, server.listens()).await;
        assert!(listening == Ok(true), "the OCR server did not start:\n{}", server.log());
        server
    }

    /// Whether it listened before it ended.
    async fn listens(&mut self) -> bool {
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_err() {
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        true
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `pixfleet run` over a folder, as the recipe says it: nothing but the binary, and no settings of this machine.
async fn run(scans: &Path, server: &Server, out: &Path) -> Output {
    let home = out.parent().unwrap();
    let mut command = tokio::process::Command::new(pixfleet());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PIXFLEET_")) {
        command.env_remove(name);
    }
    command
        .arg("run")
        .arg(scans)
        .args(["--provider", "rapidocr", "--set", "worker.concurrency=2", "--set"])
        .arg(format!("providers.rapidocr.endpoint=http://127.0.0.1:{}", server.port))
        .arg("--out")
        .arg(out)
        .args(["--quiet", "--json"])
        .current_dir(home)
        .env("XDG_STATE_HOME", home)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(RUN, command.output()).await;
    output.unwrap_or_else(|_| panic!("no end after {RUN:?}:\n{}", server.log())).unwrap()
}

/// The results by the pictures' file names.
fn results(out: &Path) -> BTreeMap<String, Value> {
    let text = fs::read_to_string(out).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let named = |row: Value| {
        let image = Path::new(row["image"].as_str().unwrap()).file_name().unwrap();
        (image.to_str().unwrap().to_owned(), row)
    };
    rows.map(named).collect()
}

/// A line as it is compared: whether the server sees a blank is a matter of pixels.
fn letters(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_lowercase()
}

#[tokio::test]
async fn a_folder_of_scans_becomes_their_texts_without_a_key() {
    let venv = venv();
    let folder = TempDir::new().unwrap();
    let (scans, out) = (folder.path().join("scans"), folder.path().join("texts.jsonl"));
    fs::create_dir(&scans).unwrap();
    let script = servers::repository().join("tests/local_ocr/draw.py");
    let drawn =
        venv::done(Command::new(venv::python_of(&venv)).arg(script).arg(&scans), "Pillow in its venv");
    let texts: BTreeMap<String, Vec<String>> = serde_json::from_slice(&drawn.stdout).unwrap();

    let server = Server::start(&venv, folder.path().join("server.log")).await;
    let output = run(&scans, &server, &out).await;
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stderr), server.log());
    // A rejected picture is a result like any other.
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(serde_json::from_slice::<Value>(&output.stdout).is_ok_and(|told| told.is_object()), "{said}");

    let results = results(&out);
    let mut pictures: Vec<&str> = texts.keys().map(String::as_str).chain(["fake.png", "torn.jpg"]).collect();
    pictures.sort_unstable();
    assert_eq!(results.keys().collect::<Vec<_>>(), pictures, "one result a picture, and none of notes.txt");
    for (name, lines) in &texts {
        let result = &results[name];
        assert_eq!(result["outcome"], "ok", "{name}: {result}\n{said}");
        let value = result["answer"]["value"].as_str().unwrap();
        assert_eq!(letters(value), letters(&lines.concat()), "{name}: the text, in the order of its lines");
        let labels = result["answer"]["labels"].as_array().map_or(0, Vec::len);
        assert_eq!(labels, value.lines().count(), "{name}: a label a line");
    }
    for (name, why) in [("fake.png", "decoded"), ("torn.jpg", "status 500")] {
        let result = &results[name];
        assert_eq!(result["outcome"], "rejected", "{name}: {result}\n{said}");
        let message = result["failure"]["message"].as_str().unwrap();
        assert!(message.contains(why), "{name}: {message}");
    }
}
