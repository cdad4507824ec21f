//! The documented subscriber in Python, on a real broker.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use pixfleet_shared::{
    fleet::rabbit::{Config, RabbitQueue},
    job::{Image, Job, Source},
    queue::Queue,
    result::{Answer, Failure, ImageResult, Label, Outcome},
};
use pixfleet_tests::{servers, venv};
use tempfile::TempDir;
use tokio::{sync::watch, time::timeout};

const PATIENCE: Duration = Duration::from_secs(60);

/// A Python with the subscriber's requirements.
fn python() -> PathBuf {
    venv::python_of(&venv::with_packages("subscriber", "docs/subscribers/python/requirements.txt"))
}

/// The running subscriber; ended with the test.
struct Subscriber(Child);

impl Subscriber {
    /// Starts it, and waits until its queue is bound.
    fn start(url: &str, database: &Path, topic: &str) -> Self {
        let mut child = Command::new(python())
            .arg(servers::repository().join("docs/subscribers/python/subscriber.py"))
            .args(["--name", "test", "--filter", topic, "--database"])
            .arg(database)
            .env("PIXFLEET_RABBITMQ_URL", url)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let subscribed = told.by_ref().find(|line| line.starts_with("subscribed"));
        assert!(subscribed.is_some(), "the subscriber ended before it subscribed");
        // It must never wait for somebody to read what it says.
        std::thread::spawn(move || told.for_each(drop));
        Self(child)
    }

    fn terminate(mut self) -> Option<i32> {
        let told = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status().unwrap();
        assert!(told.success());
        self.0.wait().unwrap().code()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn job(image: u32, model: &str) -> Job {
    let source = Source::Url(format!("https://example.com/{image}.jpg"));
    let image = Image { id: format!("image-{image}"), source };
    Job::new("spring".parse().unwrap(), image, "restb".into(), vec![model.into()])
}

fn result(image: u32, model: &str, outcome: Outcome) -> ImageResult {
    let ok = outcome == Outcome::Ok;
    let label = Label { label: "kitchen".into(), confidence: Some(0.75) };
    ImageResult {
        answer: ok.then(|| Answer { labels: vec![label], ..Answer::default() }),
        failure: (!ok).then(|| Failure { class: "transient".into(), message: "500".into() }),
        ..ImageResult::of(&job(image, model), model, outcome)
    }
}

/// Settles a job with these results, as a worker does.
async fn publish(queue: &RabbitQueue, results: Vec<ImageResult>) {
    let (_prefetch, asked) = watch::channel(1);
    queue.enqueue(vec![job(0, "carrier")]).await.unwrap();
    let mut intake = queue.receive(asked).await.unwrap();
    let delivery = timeout(PATIENCE, intake.next()).await.expect("a delivery in time").unwrap();
    delivery.split().1.complete(results).await.unwrap();
    intake.stop().await;
}

/// What one SQL question over the database answers, as Python prints it.
fn ask(database: &Path, sql: &str) -> String {
    let script = "import sqlite3,sys; print(sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchall())";
    let output = Command::new(python()).args(["-c", script]).arg(database).arg(sql).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn becomes(database: &Path, sql: &str, expected: &str) {
    let waiting = async {
        while ask(database, sql) != expected {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let in_time = timeout(PATIENCE, waiting).await.is_ok();
    assert!(in_time, "{sql}: {} and not {expected}", ask(database, sql));
}

#[tokio::test]
async fn the_python_subscriber_keeps_each_wanted_result_once_through_crashes_and_lost_connections() {
    let url = servers::fresh_rabbitmq_url();
    let queue = RabbitQueue::connect(Config { url: url.clone(), ..Config::default() }).await.unwrap();
    let folder = TempDir::new().unwrap();
    let database = folder.path().join("results.sqlite");
    let count = "SELECT count(*), count(DISTINCT id) FROM results";

    let subscriber = Subscriber::start(&url, &database, "restb.room.*.*");
    let rooms: Vec<_> = (0..300).map(|image| result(image, "room", Outcome::Ok)).collect();
    let others = (0..20).map(|image| result(image, "style", Outcome::Ok));
    publish(&queue, rooms.iter().cloned().chain(others).collect()).await;
    becomes(&database, count, "[(300, 300)]").await;

    // Killed, it misses nothing: its queue keeps what comes, also what comes again.
    drop(subscriber);
    publish(&queue, rooms[..50].to_vec()).await;
    publish(&queue, (300..310).map(|image| result(image, "room", Outcome::Dead)).collect()).await;
    let subscriber = Subscriber::start(&url, &database, "restb.room.*.*");
    becomes(&database, count, "[(310, 310)]").await;

    // The broker cuts every connection: it comes back. Dead letters are replayed, and an old copy comes late.
    let vhost = url.rsplit_once('/').unwrap().1;
    let cut = servers::services(&["ctl", "close_all_connections", "--vhost", vhost, "test"]);
    assert!(cut.status.success(), "{}", String::from_utf8_lossy(&cut.stderr));
    publish(&queue, vec![result(300, "room", Outcome::Ok), result(300, "room", Outcome::Dead)]).await;
    becomes(&database, "SELECT outcome, count(*) FROM results GROUP BY 1", "[('dead', 9), ('ok', 301)]")
        .await;
    let row = "SELECT batch, provider, model, label, confidence, error FROM results WHERE image = 'image-7'";
    assert_eq!(ask(&database, row), "[('spring', 'restb', 'room', 'kitchen', 0.75, None)]");
    let dead = "SELECT label, error FROM results WHERE image = 'image-305'";
    assert_eq!(ask(&database, dead), "[(None, 'transient: 500')]");
    assert_eq!(subscriber.terminate(), Some(0), "it ends in good order");
}
