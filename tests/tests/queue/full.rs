//! A full queue refuses: nothing is lost or acknowledged early, and it is said until there is room.

use std::{process::Stdio, sync::Arc, time::Duration};

use pixfleet_sandbox::Settings;
use pixfleet_shared::{
    fleet::rabbit::{Config, RabbitQueue},
    queue::{Delivery, Queue, QueueError, Reason},
};
use pixfleet_tests::{conformance::queue::job, fleet::Fleet, servers};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{PATIENCE, engine};

/// The longest tier: what is in it stays there.
const HOUR: Duration = Duration::from_secs(3600);
const RETRIES: &str = "^pixfleet[.]retry[.]";
const LETTERS: &str = "^pixfleet[.]dead[.]";

fn policy(url: &str, pattern: Option<&str>) {
    let vhost = url.rsplit_once('/').unwrap().1;
    let done = match pattern {
        Some(pattern) => {
            servers::services(&["ctl", "set_policy", "-p", vhost, "full", pattern, r#"{"max-length": 1}"#])
        }
        None => servers::services(&["ctl", "clear_policy", "-p", vhost, "full"]),
    };
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Takes jobs until `queue` says that messages are refused; their settling goes on in the background.
async fn settled_until_refused(
    queue: &Arc<RabbitQueue>,
    settle: impl Fn(Delivery) -> JoinHandle<Result<(), QueueError>>,
) -> Vec<JoinHandle<Result<(), QueueError>>> {
    queue.enqueue((0..200).map(|n| job("b", n)).collect()).await.unwrap();
    let (keep, prefetch) = watch::channel(1);
    std::mem::forget(keep);
    let mut intake = queue.receive(prefetch).await.unwrap();
    let mut under_way = Vec::new();
    let refused = async {
        while queue.health().is_ok() {
            under_way.push(settle(intake.next().await.unwrap()));
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, refused).await.expect("a full queue refuses");
    timeout(PATIENCE, intake.stop()).await.unwrap();
    under_way
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_for_a_full_retry_queue_wait_until_there_is_room() {
    let (queue, url) = engine().await;
    policy(&url, Some(RETRIES));
    let again = |delivery: Delivery| {
        let (job, unsettled) = delivery.split();
        tokio::spawn(async move { unsettled.retry(job, Vec::new(), HOUR).await })
    };
    let under_way = settled_until_refused(&queue, again).await;
    let why = queue.health().unwrap_err();
    assert!(why.contains("pixfleet.retry.1h") && why.contains("full"), "{why}");
    assert!(
        under_way.iter().any(|settling| !settling.is_finished()),
        "something was settled with no room for it"
    );
    policy(&url, None);
    for settling in under_way {
        timeout(PATIENCE, settling).await.expect("there is room now").unwrap().unwrap();
    }
    assert_eq!(queue.health(), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_letter_finds_no_room_is_delivered_again_and_nothing_is_said_for_ever() {
    let url = servers::fresh_rabbitmq_url();
    let config = Config { url: url.clone(), publish_patience_ms: 2_000, ..Config::default() };
    let queue = RabbitQueue::connect(config).await.unwrap();
    policy(&url, Some(LETTERS));
    let dead = |delivery: Delivery| {
        let (job, unsettled) = delivery.split();
        tokio::spawn(async move { unsettled.dead_letter(job, Vec::new(), Reason::Rejected).await })
    };
    let mut refused = 0;
    for settling in settled_until_refused(&queue, dead).await {
        if let Err(error) = timeout(PATIENCE, settling).await.expect("an end in time").unwrap() {
            assert!(matches!(error, QueueError::Away(_)) && error.to_string().contains("full"), "{error}");
            refused += 1;
        }
    }
    assert!(refused > 0);
    let forgotten = async {
        while queue.health().is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, forgotten).await.expect("nobody waits for it any more");
    policy(&url, None);
    let letters = super::letters::count(&*queue).await;
    let (_keep, prefetch) = watch::channel(10);
    let mut intake = queue.receive(prefetch).await.unwrap();
    let mut left = std::collections::BTreeSet::new();
    while left.len() + letters < 200 {
        let delivery = timeout(PATIENCE, intake.next()).await.expect("no job is lost").unwrap();
        let (job, unsettled) = delivery.split();
        left.insert(job.id);
        unsettled.complete(Vec::new()).await.unwrap();
    }
    assert!(left.len() >= refused, "{} jobs for {refused} that could not be settled", left.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enqueue_into_a_full_lane_says_so_and_goes_on_when_there_is_room() {
    const ROWS: u64 = 8_000;
    let fleet = Fleet::start(Settings::default(), "", "").await;
    policy(&fleet.rabbitmq_url, Some("^pixfleet[.]jobs[.]"));
    // A queue refuses from when its limit was noticed: more than may be under way until then.
    let rows: String = (0..ROWS).map(|n| format!("{n},http://images.example/{n}.jpg\n")).collect();
    let rows = fleet.file("images.csv", &format!("id,url\n{rows}"));
    let file = rows.to_str().unwrap();
    let arguments = ["enqueue", file, "--provider", "sandbox", "--models", "m", "--batch", "b", "--json"];
    let errors = fleet.file("errors.txt", "");
    let mut enqueue = fleet
        .command(&arguments)
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&errors).unwrap())
        .spawn()
        .unwrap();
    let said = async {
        while !std::fs::read_to_string(&errors).unwrap().contains("RabbitMQ refuses messages") {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, said).await.expect("a full lane is said");
    assert!(enqueue.try_wait().unwrap().is_none(), "it waits for room");
    policy(&fleet.rabbitmq_url, None);
    let ended = async {
        while enqueue.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, ended).await.expect("there is room");
    let output = enqueue.wait_with_output().unwrap();
    assert!(output.status.success());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["enqueued"], ROWS, "{report}");
}
