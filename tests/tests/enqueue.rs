//! Enqueueing on a real RabbitMQ: every row accounted for, killed and run again, cut off and gone on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{BasicConsumeOptions, QueueDeclareOptions},
    types::FieldTable,
};
use pixfleet_producer::{
    BadRows, Config, Destination, Order, Stopped, Summary, Tally, Why, enqueue,
    manifest::{Manifest, Reading},
    plan::{Plan, Tariff},
    record::{Identity, Record, RecordError},
};
use pixfleet_shared::{
    batch::BatchState,
    fleet::rabbit::{self, RabbitQueue, job_queue},
    id::Id,
    job::{Job, Priority},
    queue::{Filter, From, Queue, Subscription},
    result::Announcement,
};
use pixfleet_tests::servers;
use tempfile::TempDir;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);
/// Set in the process that a test starts of itself, to be killed.
const CHILD: &str = "PIXFLEET_TEST_ENQUEUE_CHILD";

/// One batch in a folder: its manifest, its record, and the broker that it goes to.
struct Site {
    folder: PathBuf,
    url: String,
}

impl Site {
    fn new(folder: &TempDir) -> Self {
        Self { folder: folder.path().to_owned(), url: servers::fresh_rabbitmq_url() }
    }

    fn manifest(&self, content: &str) -> String {
        let path = self.folder.join("images.csv");
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn record(&self, plan: &Plan) -> Result<Record, RecordError> {
        let identity = Identity::new(&batch(), plan, Priority::Bulk, "test");
        Record::open(&self.folder.join("record.sqlite"), &identity)
    }

    async fn queue(&self) -> Arc<RabbitQueue> {
        let config = rabbit::Config { url: self.url.clone(), ..rabbit::Config::default() };
        RabbitQueue::connect(config).await.unwrap()
    }

    /// Enqueues the manifest, on connections of its own.
    async fn run(&self, bad_rows: BadRows) -> Result<Summary, Box<Stopped>> {
        self.run_until(bad_rows, CancellationToken::new(), &watch::channel(Tally::default()).0).await
    }

    async fn run_until(
        &self,
        bad_rows: BadRows,
        stop: CancellationToken,
        progress: &watch::Sender<Tally>,
    ) -> Result<Summary, Box<Stopped>> {
        let manifest = [self.folder.join("images.csv").to_str().unwrap().to_owned()];
        let manifest = Manifest::open(&manifest, Reading::default()).unwrap();
        let plan = plan();
        let record = self.record(&plan).unwrap();
        let order = Order {
            batch: batch(),
            priority: Priority::Bulk,
            weight: 1,
            budget: None,
            deadline: None,
            refresh: false,
            plan,
            trace: None,
            bad_rows,
            same_manifest: false,
        };
        let queue = self.queue().await;
        let to = Destination { queue: queue.clone(), batches: None };
        let outcome = enqueue(to, manifest, record, order, &Config::default(), stop, progress).await;
        queue.close().await;
        outcome
    }

    /// Takes every job off the queues: how often each id is there.
    async fn drain(&self) -> HashMap<Id, u32> {
        let channel = raw(&self.url).await;
        let mut seen = HashMap::new();
        for lane in 0..rabbit::Config::default().lanes {
            let name = job_queue(Priority::Bulk, lane);
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let queue =
                channel.queue_declare(name.as_str().into(), passive, FieldTable::default()).await.unwrap();
            let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
            let mut jobs = channel
                .basic_consume(name.as_str().into(), "".into(), options, FieldTable::default())
                .await
                .unwrap();
            for _ in 0..queue.message_count() {
                let delivery = timeout(PATIENCE, jobs.next()).await.unwrap().unwrap().unwrap();
                *seen.entry(Job::from_message(&delivery.data).unwrap().id).or_default() += 1;
            }
        }
        seen
    }

    /// What subscribers were told of the batch: its state, jobs and results.
    async fn told(&self, count: usize) -> Vec<(BatchState, u64, u64)> {
        let queue = self.queue().await;
        let subscription = Subscription { name: None, from: From::Beginning, filter: Filter::default() };
        let mut subscriber = queue.subscribe(subscription).await.unwrap();
        let mut told = Vec::new();
        while told.len() < count {
            if let Announcement::Batch(event) = timeout(PATIENCE, subscriber.next()).await.unwrap().unwrap() {
                told.push((event.state, event.jobs, event.results));
            }
        }
        queue.close().await;
        told
    }
}

async fn raw(url: &str) -> Channel {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    connection.create_channel().await.unwrap()
}

fn batch() -> pixfleet_shared::batch::BatchName {
    "spring".parse().unwrap()
}

/// Two calls an image, three results.
fn plan() -> Plan {
    let models = ["a", "b", "c"].map(str::to_owned);
    Plan::new("restb", &models, 2, Tariff::default()).unwrap()
}

fn rows(range: std::ops::Range<u32>) -> String {
    range.map(|n| format!("{n},https://img.example.com/{n}.jpg,a note\n")).collect()
}

fn images(count: u32) -> String {
    format!("id,url,note\n{}", rows(0..count))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_ends_in_one_place_and_subscribers_hear_how_much_to_expect() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(&folder);
    site.manifest(&format!("{}{}x,nowhere,\nshort\n", images(1000), rows(10..30)));
    let kept = folder.path().join("left-out.jsonl");
    let summary = site.run(BadRows::Keep(kept.clone())).await.unwrap();
    let Tally { rows, images, duplicates, bad_rows, enqueued, already, results } = summary.tally;
    assert_eq!((rows, images, duplicates, bad_rows), (1022, 1000, 20, 2));
    assert_eq!((enqueued, already, results, summary.calls), (2000, 0, 3000, 2000));
    let left_out = fs::read_to_string(kept).unwrap();
    let lines: Vec<u64> = left_out
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["line"].as_u64().unwrap())
        .collect();
    assert_eq!(lines, [1022, 1023]);
    assert_eq!(site.told(2).await, [(BatchState::Opened, 0, 0), (BatchState::Closed, 2000, 3000)]);
    let seen = site.drain().await;
    assert_eq!(seen.len(), 2000);
    assert!(seen.values().all(|count| *count == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enqueue_that_is_run_again_adds_nothing_and_one_with_more_rows_adds_those() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(&folder);
    site.manifest(&images(500));
    site.run(BadRows::Stop).await.unwrap();
    let again = site.run(BadRows::Stop).await.unwrap();
    assert_eq!((again.tally.enqueued, again.tally.already, again.tally.duplicates), (0, 1000, 0));
    site.manifest(&images(600));
    let more = site.run(BadRows::Stop).await.unwrap();
    assert_eq!((more.tally.enqueued, more.tally.already, more.batch_jobs), (200, 1000, 1200));
    let seen = site.drain().await;
    assert_eq!(
        (seen.len(), seen.values().sum::<u32>()),
        (1200, 1200),
        "on one lane over all runs, once each"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_row_stops_the_enqueue_and_the_mended_manifest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(&folder);
    site.manifest(&format!("{}bad,ftp://e.com/,\n{}", images(300), rows(300..400)));
    let stopped = site.run(BadRows::Stop).await.unwrap_err();
    assert!(matches!(&stopped.why, Why::BadRow(bad) if bad.place.line == 302));
    assert_eq!(stopped.summary.tally.enqueued, 600, "what stands before the bad row is confirmed");
    assert!(stopped.to_string().contains("run the same command again"), "{stopped}");
    site.manifest(&images(400));
    let summary = site.run(BadRows::Stop).await.unwrap();
    assert_eq!((summary.tally.enqueued, summary.tally.already), (200, 600));
    assert_eq!(site.told(3).await[2], (BatchState::Closed, 800, 1200), "closed once, with all of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_on_request_it_confirms_what_is_on_its_way_and_the_next_run_does_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(&folder);
    site.manifest(&images(20_000));
    let (progress, mut seen) = watch::channel(Tally::default());
    let stop = CancellationToken::new();
    let first = stop.clone();
    let watcher = tokio::spawn(async move {
        seen.wait_for(|tally| tally.enqueued >= 2000).await.unwrap();
        first.cancel();
    });
    let stopped = site.run_until(BadRows::Stop, stop, &progress).await.unwrap_err();
    watcher.await.unwrap();
    assert!(matches!(stopped.why, Why::Interrupted));
    let before = stopped.summary.tally.enqueued;
    assert!((2000..40_000).contains(&before), "{before}");
    let summary = site.run(BadRows::Stop).await.unwrap();
    assert_eq!((summary.tally.already, summary.tally.enqueued), (before, 40_000 - before));
    let jobs = site.drain().await;
    assert_eq!((jobs.len(), jobs.values().sum::<u32>()), (40_000, 40_000), "nothing lost, nothing twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_said_again_when_the_broker_cuts_the_connections() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(&folder);
    site.manifest(&images(20_000));
    let (progress, mut seen) = watch::channel(Tally::default());
    let vhost = site.url.rsplit('/').next().unwrap().to_owned();
    let cutter = tokio::spawn(async move {
        for at in [1000, 15_000] {
            seen.wait_for(|tally| tally.enqueued >= at).await.unwrap();
            let vhost = vhost.clone();
            let cut = tokio::task::spawn_blocking(move || {
                servers::services(&["ctl", "close_all_connections", "--vhost", &vhost, "cut"])
            });
            assert!(cut.await.unwrap().status.success());
        }
    });
    let summary = site.run_until(BadRows::Stop, CancellationToken::new(), &progress).await.unwrap();
    cutter.await.unwrap();
    assert_eq!(summary.tally.enqueued, 40_000);
    assert_eq!(site.drain().await.len(), 40_000);
}

/// The process of its own that the next test kills: enqueues, and says how far it is.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Ok(place) = std::env::var(CHILD) else {
        return; // only as a child
    };
    let (folder, url) = place.split_once('|').unwrap();
    let site = Site { folder: folder.into(), url: url.to_owned() };
    let (progress, mut seen) = watch::channel(Tally::default());
    tokio::spawn(async move {
        while seen.changed().await.is_ok() {
            println!("enqueued {}", seen.borrow_and_update().enqueued);
        }
    });
    site.run_until(BadRows::Stop, CancellationToken::new(), &progress).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_enqueue_is_run_again_and_every_job_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(&folder);
    site.manifest(&images(50_000));
    for kill_at in [1_000, 20_000] {
        let (path, url) = (folder.path().to_str().unwrap().to_owned(), site.url.clone());
        tokio::task::spawn_blocking(move || kill_when(kill_at, &path, &url)).await.unwrap();
    }
    let summary = site.run(BadRows::Stop).await.unwrap();
    assert_eq!(summary.tally.enqueued + summary.tally.already, 100_000);
    assert!(summary.tally.already >= 20_000, "what was confirmed is known: {:?}", summary.tally);
    let again = site.run(BadRows::Stop).await.unwrap();
    assert_eq!(again.tally.enqueued, 0, "complete, it adds nothing");
    let jobs = site.drain().await;
    assert_eq!(jobs.len(), 100_000);
    // What was on its way at a kill is published once more, with the same id: the workers' ledger makes it free.
    let twice = jobs.values().sum::<u32>() - 100_000;
    let in_flight = Config::default().chunk_jobs.get() * Config::default().chunks_in_flight.get();
    assert!(twice <= 2 * in_flight + 2 * 512, "{twice} jobs twice after two kills");
}

fn kill_when(enqueued: u64, folder: &str, url: &str) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, format!("{folder}|{url}"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let far_enough = lines
        .map_while(Result::ok)
        .filter_map(|line| line.rsplit_once("enqueued ")?.1.parse::<u64>().ok())
        .any(|count| count >= enqueued);
    child.kill().unwrap();
    let ended = child.wait().unwrap();
    assert!(far_enough && !ended.success(), "killed in the middle, not at its end");
}
