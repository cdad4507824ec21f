//! The queue on RabbitMQ: the conformance suite, and what only a real broker can do to it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "queue/full.rs"]
mod full;
#[path = "queue/headers.rs"]
mod headers;
#[path = "queue/letters.rs"]
mod letters;
#[path = "queue/subscribers.rs"]
mod subscribers;
#[path = "queue/topology.rs"]
mod topology;

use std::{sync::Arc, time::Duration};

use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicGetOptions, BasicPublishOptions, QueueDeleteOptions},
};
use pixfleet_shared::{
    fleet::rabbit::{Config, DEAD_QUEUE, JOBS_EXCHANGE, RabbitQueue, job_queue},
    job::{MAX_JOB_BYTES, Priority},
    queue::{Queue, QueueError},
};
use pixfleet_tests::{conformance::queue::job, servers};
use tokio::{sync::watch, time::timeout};

const PATIENCE: Duration = Duration::from_secs(30);

async fn engine() -> (Arc<RabbitQueue>, String) {
    let url = servers::fresh_rabbitmq_url();
    let config = Config { url: url.clone(), ..Config::default() };
    (RabbitQueue::connect(config).await.unwrap(), url)
}

async fn conforming() -> (Arc<dyn Queue>, String) {
    let (queue, url) = engine().await;
    (queue, url)
}

pixfleet_tests::queue_conforms!(conforming);

async fn raw(url: &str) -> lapin::Channel {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    connection.create_channel().await.unwrap()
}

/// Reads one dead letter: its reason and its body.
async fn dead_letter(channel: &lapin::Channel) -> (String, Vec<u8>) {
    let read = async {
        loop {
            let options = BasicGetOptions { no_ack: true };
            if let Some(got) = channel.basic_get(DEAD_QUEUE.into(), options).await.unwrap() {
                return (got.delivery.routing_key.to_string(), got.delivery.data);
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, read).await.expect("a dead letter in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_job_becomes_a_dead_letter_with_its_reason_and_the_next_job_is_served() {
    let (queue, url) = engine().await;
    let channel = raw(&url).await;
    let later = br#"{"v": 2, "new": true}"#.to_vec();
    let bodies = [
        ("empty", Vec::new()),
        ("oversize", vec![b'x'; MAX_JOB_BYTES + 1]),
        ("unknown-version", later),
        ("malformed", b"{\"v\": 1, \"id\": 7}".to_vec()),
        ("malformed", vec![0xff; 100]),
    ];
    let (_keep, prefetch) = watch::channel(10);
    let mut intake = queue.receive(prefetch).await.unwrap();
    for (reason, body) in bodies {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        channel
            .basic_publish(JOBS_EXCHANGE.into(), "normal.0".into(), options, &body, properties)
            .await
            .unwrap();
        // Dead letters are consumed as deliveries are taken: the intake works on while we wait.
        let dead = tokio::select! {
            dead = dead_letter(&channel) => dead,
            _ = intake.next() => panic!("a body that is no job was delivered"),
        };
        assert_eq!(dead, (reason.to_owned(), body));
    }
    queue.enqueue(vec![job("b", 1)]).await.unwrap();
    let delivery = timeout(PATIENCE, intake.next()).await.unwrap().unwrap();
    assert_eq!(delivery.job.id, job("b", 1).id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_sent_back_with_the_brokers_death_headers_is_not_lost() {
    let (queue, _) = engine().await;
    queue.enqueue(vec![job("b", 1)]).await.unwrap();
    let (_keep, prefetch) = watch::channel(10);
    let mut intake = queue.receive(prefetch).await.unwrap();
    // Three rounds through the same tier: a copied x-death would make the broker drop the second as a cycle.
    for round in 0..3 {
        let delivery = timeout(PATIENCE, intake.next()).await.unwrap().unwrap();
        let (job, unsettled) = delivery.split();
        assert_eq!(job.attempt, round);
        unsettled.retry(job, Vec::new(), Duration::from_millis(1)).await.unwrap();
    }
    assert_eq!(timeout(PATIENCE, intake.next()).await.unwrap().unwrap().job.attempt, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_for_a_deleted_queue_are_published_again_after_it_is_declared_anew() {
    let (queue, url) = engine().await;
    let channel = raw(&url).await;
    let name = job_queue(Priority::Normal, 0);
    channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    queue.enqueue((0..50).map(|n| job("b", n)).collect()).await.unwrap();
    let (_keep, prefetch) = watch::channel(10);
    let mut intake = queue.receive(prefetch).await.unwrap();
    for _ in 0..50 {
        let delivery = timeout(PATIENCE, intake.next()).await.unwrap().unwrap();
        let (_, unsettled) = delivery.split();
        unsettled.complete(Vec::new()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_survive_the_loss_of_every_connection_while_they_are_enqueued_and_lent() {
    let (queue, _) = engine().await;
    let (_keep, prefetch) = watch::channel(20);
    let mut intake = queue.receive(prefetch).await.unwrap();
    let enqueuing = tokio::spawn({
        let queue = queue.clone();
        async move {
            for chunk in 0..40 {
                let jobs: Vec<_> = (chunk * 50..chunk * 50 + 50).map(|n| job("b", n)).collect();
                // An error may leave some stored: said again until it is sure.
                while queue.enqueue(jobs.clone()).await.is_err() {}
            }
        }
    });
    let mut seen = std::collections::BTreeSet::new();
    let mut cuts = 0;
    while seen.len() < 2000 {
        let delivery = timeout(PATIENCE, intake.next()).await.expect("jobs go on coming").unwrap();
        let (job, unsettled) = delivery.split();
        if seen.len() >= 200 * (cuts + 1) && cuts < 3 {
            cuts += 1;
            let cut =
                tokio::task::spawn_blocking(|| servers::services(&["ctl", "close_all_connections", "cut"]));
            assert!(cut.await.unwrap().status.success());
        }
        match unsettled.complete(Vec::new()).await {
            Ok(()) | Err(QueueError::Unacked(_)) => {}
            Err(error) => panic!("{error}"),
        }
        seen.insert(job.id);
    }
    enqueuing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_named_without_its_password() {
    let config = Config {
        url: "amqp://user:hush@127.0.0.1:1/%2f".into(),
        connect_timeout_ms: 500,
        ..Config::default()
    };
    let error = RabbitQueue::connect(config).await.err().expect("nobody is there").to_string();
    assert!(error.contains("127.0.0.1:1") && !error.contains("hush"), "{error}");
}
