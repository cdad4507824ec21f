//! `pixfleet results` on a real broker: what a user sees of a batch, whatever is repeated, torn or interrupted.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "results/into.rs"]
mod into;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use pixfleet_shared::{
    batch::{BatchEvent, BatchName, BatchState},
    fleet::rabbit::{Config, RabbitQueue, subscriber_queue},
    id::Id,
    job::{Image, Job, Source},
    queue::Queue,
    result::{Answer, Call, Failure, ImageResult, Label, Outcome},
};
use pixfleet_tests::{fleet::pixfleet, servers};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{sync::watch, time::timeout};

const PATIENCE: Duration = Duration::from_secs(30);
const MODELS: [&str; 2] = ["room", "style"];

/// A virtual host of its own, its engine, and a folder.
struct Stage {
    url: String,
    queue: Arc<RabbitQueue>,
    folder: TempDir,
}

impl Stage {
    async fn new() -> Self {
        let url = servers::fresh_rabbitmq_url();
        let queue = RabbitQueue::connect(Config { url: url.clone(), ..Config::default() }).await.unwrap();
        Self { url, queue, folder: TempDir::new().unwrap() }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(pixfleet());
        command
            .arg("results")
            .args(line.split_whitespace())
            .current_dir(self.folder.path())
            .env("PIXFLEET_RABBITMQ_URL", &self.url)
            .env("PIXFLEET_LOG_FILTER", "warn");
        command
    }

    /// Runs `pixfleet results LINE` to its end, within the test's patience.
    async fn results(&self, line: &str) -> Output {
        // A command that does not end is ended: the test fails, and does not hang.
        let mut command = tokio::process::Command::from(self.command(line));
        let run = command.kill_on_drop(true).output();
        timeout(PATIENCE, run).await.unwrap_or_else(|_| panic!("results {line} does not end")).unwrap()
    }

    /// Starts `pixfleet results LINE`, its rows read as they come.
    fn start(&self, line: &str) -> (Child, impl Iterator<Item = String>) {
        let mut child = self.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let rows = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        (child, rows)
    }

    async fn say(&self, batch: &BatchName, state: BatchState, results: u64) {
        let event = BatchEvent {
            v: 1,
            batch: batch.clone(),
            state,
            jobs: results,
            results,
            at: Timestamp::now(),
            tally: None,
        };
        self.queue.announce(event).await.unwrap();
    }

    /// Settles one job with these results, as a worker does: they are durable when it returns.
    async fn publish(&self, results: Vec<ImageResult>) {
        let (_prefetch, asked) = watch::channel(1);
        self.queue.enqueue(vec![job(&results[0].batch, "carrier", "carrier")]).await.unwrap();
        let mut intake = self.queue.receive(asked).await.unwrap();
        let delivery = timeout(PATIENCE, intake.next()).await.expect("a delivery in time").unwrap();
        delivery.split().1.complete(results).await.unwrap();
        intake.stop().await;
    }

    /// Messages that the broker keeps for a durable subscriber.
    fn waiting(&self, name: &str) -> String {
        let vhost = self.url.rsplit_once('/').unwrap().1;
        let listed = servers::services(&["ctl", "-q", "-p", vhost, "list_queues", "name", "messages"]);
        let listed = String::from_utf8(listed.stdout).unwrap();
        let line = listed.lines().find_map(|line| line.strip_prefix(&subscriber_queue(name)));
        line.map(|rest| rest.trim().to_owned()).unwrap_or_else(|| panic!("no queue of {name} in:\n{listed}"))
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap()
    }
}

fn batch(name: &str) -> BatchName {
    name.parse().unwrap()
}

fn job(batch: &BatchName, image: &str, model: &str) -> Job {
    let image = Image { id: image.into(), source: Source::Url(format!("https://example.com/{image}.jpg")) };
    Job::new(batch.clone(), image, "restb".into(), vec![model.into()])
}

/// The result of image `number` at `model`: its call left `number` quarters of a second after the first.
fn result(batch: &BatchName, number: u32, model: &str, outcome: Outcome) -> ImageResult {
    let mut job = job(batch, &format!("image-{number}"), model);
    job.metadata.insert("listing".into(), format!("L-{number}"));
    let ok = outcome == Outcome::Ok;
    let label = Label { label: format!("{model}-of-{number}"), confidence: Some(0.9) };
    ImageResult {
        answer: ok.then(|| Answer { labels: vec![label], ..Answer::default() }),
        failure: (!ok)
            .then(|| Failure { class: "rejected".into(), message: "no \"picture\",\nsorry".into() }),
        call: Some(Call {
            id: Id::of(&[b"test", &number.to_be_bytes()]),
            sent_at: Timestamp::from_millisecond(1_700_000_000_000 + i64::from(number) * 252).unwrap(),
            duration_ms: 1163.0,
            status: Some(200),
            attempt: 1,
            throttled: 0,
            cost: 0.01,
            limit_per_s: Some(4.0),
            worker: "w".into(),
        }),
        ..ImageResult::of(&job, model, outcome)
    }
}

/// Both models of `images` images; every fifth image is rejected by the second model.
fn results_of(batch: &BatchName, images: u32) -> Vec<ImageResult> {
    let one = |number: u32, model: &str| {
        let rejected = model == MODELS[1] && number.is_multiple_of(5);
        result(batch, number, model, if rejected { Outcome::Rejected } else { Outcome::Ok })
    };
    (0..images).flat_map(|number| MODELS.map(|model| one(number, model))).collect()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn ids(lines: &str) -> Vec<String> {
    let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
    lines.lines().map(id).collect()
}

fn csv(text: &str) -> Vec<BTreeMap<String, String>> {
    // The tests' crate has no CSV reader of its own; Python's is a second opinion.
    let script = "import csv,json,sys; json.dump(list(csv.DictReader(sys.stdin, strict=True)), sys.stdout)";
    let mut python = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is needed to read CSV: apt-get install python3");
    let mut stdin = python.stdin.take().unwrap();
    let text = text.to_owned();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, text.as_bytes()));
    let output = python.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "not a CSV");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn signal(child: &Child, name: &str) {
    let told = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().unwrap();
    assert!(told.success());
}

#[tokio::test]
async fn a_batch_is_replayed_whole_and_its_statistics_are_the_calls_own() {
    let (stage, batch) = (Stage::new().await, batch("spring"));
    let results = results_of(&batch, 36);
    stage.say(&batch, BatchState::Opened, 0).await;
    stage.publish(results.clone()).await;
    // Another batch's results, and a redelivery, are in the log, too.
    stage.publish(results_of(&"autumn".parse().unwrap(), 3)).await;
    stage.publish(results[..10].to_vec()).await;
    stage.say(&batch, BatchState::Closed, 72).await;

    let output = stage.results("--batch spring").await;
    let (rows, told) = (stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(0), "{told}");
    let expected: BTreeSet<String> = results.iter().map(|result| result.id.to_string()).collect();
    assert_eq!(ids(&rows).len(), 72, "each result once");
    assert_eq!(ids(&rows).into_iter().collect::<BTreeSet<_>>(), expected);
    assert!(told.contains("batch spring is complete: 72 of 72 results: 64 done, 8 failed, 0 dead"), "{told}");
    let line = "36 requests in 8.8 s, average 1163 ms, 3.97 requests/s, 99.2 % of the limit (4/s), 0 429s";
    assert!(told.contains(line), "{told}");

    // A filter hides rows, and neither the end nor the counts.
    let output = stage.results("--batch spring --outcome rejected --json --out failed.jsonl").await;
    let summary: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(summary["complete"], true);
    assert_eq!(
        (&summary["results"], &summary["failed"], &summary["written"]),
        (&72.into(), &8.into(), &8.into())
    );
    assert_eq!((&summary["repeated"], &summary["calls"][0]["requests"]), (&10.into(), &36.into()));
    assert_eq!(stage.file("failed.jsonl").lines().count(), 8);
}

#[tokio::test]
async fn a_csv_has_a_row_a_result_and_by_image_a_row_an_image() {
    let (stage, batch) = (Stage::new().await, batch("b"));
    stage.publish(results_of(&batch, 10)).await;
    stage.say(&batch, BatchState::Closed, 20).await;

    let rows = csv(&stdout(&stage.results("--batch b --format csv").await));
    assert_eq!(rows.len(), 20);
    let row = rows.iter().find(|row| row["image"] == "image-5" && row["model"] == "style").unwrap();
    assert_eq!((&row["outcome"][..], &row["metadata.listing"][..]), ("rejected", "L-5"));
    assert_eq!(row["error"], "rejected: no \"picture\",\nsorry");
    let row = rows.iter().find(|row| row["image"] == "image-7" && row["model"] == "room").unwrap();
    assert_eq!((&row["label"][..], &row["confidence"][..], &row["status"][..]), ("room-of-7", "0.9", "200"));

    for line in ["--batch b --format csv --by-image", "--batch b --format csv --by-image --models room,style"]
    {
        let rows = csv(&stdout(&stage.results(line).await));
        assert_eq!(rows.len(), 10, "{line}");
        assert!(rows.iter().all(|row| row["complete"] == "true"), "{line}");
        let row = rows.iter().find(|row| row["image"] == "image-5").unwrap();
        assert_eq!((&row["room"][..], &row["style"][..]), ("room-of-5", "[rejected]"));
    }
    let table = stdout(&stage.results("--batch b --format table --by-image").await);
    assert_eq!(table.lines().count(), 11, "{table}");
}

#[tokio::test]
async fn a_durable_subscriber_that_is_killed_goes_on_in_its_file_and_every_result_is_there_once() {
    let (stage, batch) = (Stage::new().await, batch("b"));
    for format in ["jsonl", "csv"] {
        let line = format!("--name {format} --format {format} --out {format}");
        // The name exists from the first run on; nothing came yet.
        let output = stage.results(&format!("{line} --timeout 1s")).await;
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
    let results = results_of(&batch, 400);
    stage.publish(results[..300].to_vec()).await;
    for format in ["jsonl", "csv"] {
        let path = stage.folder.path().join(format);
        let (mut child, _) = stage.start(&format!("--name {format} --format {format} --out {format}"));
        wait_for(|| std::fs::metadata(&path).is_ok_and(|file| file.len() > 0), "the first rows").await;
        child.kill().unwrap();
        child.wait().unwrap();
        // What a crash in the middle of a write leaves: half a row.
        let written = std::fs::read(&path).unwrap();
        let half = if format == "jsonl" { &written[..40] } else { b"0123456789abcdef,b,\"image" };
        std::fs::write(&path, [&written, half].concat()).unwrap();
    }
    stage.publish(results[300..].to_vec()).await;
    stage.say(&batch, BatchState::Closed, 800).await;

    let expected: BTreeSet<String> = results.iter().map(|result| result.id.to_string()).collect();
    for format in ["jsonl", "csv"] {
        let line = format!("--name {format} --format {format} --out {format} --batch b --json");
        let output = stage.results(&line).await;
        let summary: Value =
            serde_json::from_str(&stdout(&output)).unwrap_or_else(|_| panic!("{}", stderr(&output)));
        assert_eq!((&summary["complete"], &summary["results"]), (&true.into(), &800.into()));
        let text = stage.file(format);
        let ids = match format {
            "jsonl" => ids(&text),
            _ => csv(&text).into_iter().map(|row| row["id"].clone()).collect(),
        };
        assert_eq!(ids.len(), 800, "{format}: each result once");
        assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), expected);
        assert_eq!(stage.waiting(format), "0");
    }
}

#[tokio::test]
async fn ctrl_c_commits_what_is_written_and_says_that_the_batch_is_not_complete() {
    let (stage, batch) = (Stage::new().await, batch("b"));
    stage.say(&batch, BatchState::Opened, 0).await;
    let (mut child, mut rows) = stage.start("--name n --batch b");
    wait_for(|| servers_knows(&stage, "n"), "the subscriber's queue").await;
    stage.publish(results_of(&batch, 5)).await;
    let first: Vec<String> = (0..10).map(|_| rows.next().expect("a row")).collect();
    signal(&child, "INT");
    let rest: Vec<String> = rows.collect();
    let code = child.wait().unwrap().code();
    assert_eq!((code, rest.len()), (Some(4), 0), "exit code: work is left");
    assert_eq!(stage.waiting("n"), "0", "what was written is committed");
    assert_eq!(ids(&first.join("\n")).len(), 10);

    // The rest of the batch, in a second run: the end is seen though this run got only a part.
    stage.publish(results_of(&batch, 8)[10..].to_vec()).await;
    stage.say(&batch, BatchState::Closed, 16).await;
    let output = stage.results("--name n --batch b").await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(ids(&stdout(&output)).len(), 6);
    assert!(stderr(&output).contains("16 of 16 results"), "{}", stderr(&output));
    assert!(stderr(&output).contains("10 of them did not come"), "{}", stderr(&output));
}

#[tokio::test]
async fn a_replay_ends_at_the_present_and_a_wait_for_a_batch_at_its_timeout() {
    let (stage, batch) = (Stage::new().await, batch("b"));
    stage.publish(results_of(&batch, 5)).await;
    let output = stage.results("--since 1h --model room").await;
    assert_eq!((output.status.code(), ids(&stdout(&output)).len()), (Some(0), 5));
    let output = stage.results("--batch b --timeout 2s").await;
    assert_eq!(output.status.code(), Some(4), "it is not known how many there will be");
    assert_eq!(ids(&stdout(&output)).len(), 10, "what is there is shown");
    assert!(stderr(&output).contains("batch b is not complete"), "{}", stderr(&output));
}

#[tokio::test]
async fn a_reader_that_has_had_enough_ends_the_command_quietly() {
    let (stage, batch) = (Stage::new().await, batch("b"));
    stage.publish(results_of(&batch, 2000)).await;
    stage.say(&batch, BatchState::Closed, 4000).await;
    let (child, rows) = stage.start("--batch b");
    drop(rows.take(3).collect::<Vec<_>>());
    let status = tokio::task::spawn_blocking(move || {
        child.wait_with_output().map(|output| (output.status, output.stderr))
    });
    let (status, told) = timeout(PATIENCE, status).await.expect("it ends").unwrap().unwrap();
    assert_eq!(status.code(), Some(0), "{}", String::from_utf8_lossy(&told));
    assert!(!String::from_utf8_lossy(&told).contains("panicked"));
}

fn servers_knows(stage: &Stage, name: &str) -> bool {
    let vhost = stage.url.rsplit_once('/').unwrap().1;
    let listed = servers::services(&["ctl", "-q", "-p", vhost, "list_queues", "name", "consumers"]);
    let consumed = format!("{}\t1", subscriber_queue(name));
    String::from_utf8_lossy(&listed.stdout).lines().any(|line| line == consumed)
}

async fn wait_for(mut happened: impl FnMut() -> bool, what: &str) {
    let waiting = async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(PATIENCE, waiting).await.is_ok(), "no {what} within {PATIENCE:?}");
}

#[tokio::test]
async fn the_demo_loses_nothing_is_never_refused_and_its_batch_can_be_read_again() {
    let stage = Stage::new().await;
    let mut command = tokio::process::Command::new(pixfleet());
    command
        .args(["demo", "--engine", "rabbitmq", "--json"])
        .current_dir(stage.folder.path())
        .env("PIXFLEET_RABBITMQ_URL", &stage.url)
        .env("PIXFLEET_REDIS_URL", servers::redis_url())
        .kill_on_drop(true);
    let output = timeout(PATIENCE * 3, command.output()).await.expect("the demo ends").unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let figures: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let numbers =
        ["calls", "throttled_429", "lost", "duplicates"].map(|name| figures[name].as_u64().unwrap());
    assert_eq!(numbers, [36, 0, 0, 0], "{figures}");
    let seen = ids(&stdout(&stage.results("--since 1h --idle 1s").await));
    assert_eq!(seen.len(), 36);
}
