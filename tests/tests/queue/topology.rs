//! What is on the broker under our names, and is not what we need: named, refused, waited for, and never fought.

use std::{process::Stdio, time::Duration};

use lapin::{
    Channel, ExchangeKind,
    options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use pixfleet_sandbox::Settings;
use pixfleet_shared::{
    fleet::rabbit::{Config, PAUSED_EXCHANGE, RESULTS_LOG, RabbitQueue, job_queue},
    job::Priority,
    queue::{Queue, QueueError},
    result::{ImageResult, Outcome},
};
use pixfleet_tests::{conformance::queue::job, faults::gather::vhost, fleet::Fleet, servers};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{PATIENCE, engine, raw};

/// A classic queue, where pixfleet needs another one.
async fn classic(channel: &Channel, name: &str) {
    let durable = QueueDeclareOptions::durable();
    channel.queue_declare(name.into(), durable, FieldTable::default()).await.unwrap();
}

async fn delete(channel: &Channel, name: &str) {
    channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.unwrap();
}

async fn unwell(queue: &RabbitQueue, word: &str) -> String {
    let said = async {
        loop {
            match queue.health() {
                Err(why) if why.contains(word) => return why,
                _ => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(PATIENCE, said).await.unwrap_or_else(|_| panic!("never said {word}: {:?}", queue.health()))
}

async fn well(queue: &RabbitQueue) {
    let well = async {
        while queue.health().is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, well).await.unwrap_or_else(|_| panic!("{:?}", queue.health()));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_difference_is_named_with_what_is_needed_and_what_is_there() {
    let url = servers::fresh_rabbitmq_url();
    let channel = raw(&url).await;
    let (first, second) = (job_queue(Priority::Normal, 0), job_queue(Priority::Bulk, 3));
    classic(&channel, &first).await;
    classic(&channel, &second).await;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let fanout = ExchangeKind::Fanout;
    channel.exchange_declare(PAUSED_EXCHANGE.into(), fanout, durable, FieldTable::default()).await.unwrap();
    let error = RabbitQueue::connect(Config { url, ..Config::default() }).await.err().expect("a refusal");
    assert!(matches!(error, QueueError::Topology(_)), "{error}");
    let said = error.to_string();
    for part in [
        format!("exchange `{PAUSED_EXCHANGE}`: `type` has to be `direct`, and is `fanout`"),
        format!("queue `{first}`: `x-"),
        format!("queue `{second}`: `x-"),
        "and is not set".to_owned(),
    ] {
        assert!(said.contains(&part), "no `{part}` in: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_finds_another_topology_waits_until_it_is_mended() {
    let url = servers::fresh_rabbitmq_url();
    let channel = raw(&url).await;
    let name = job_queue(Priority::Normal, 0);
    classic(&channel, &name).await;
    let queue = RabbitQueue::start(Config { url, ..Config::default() });
    let why = unwell(&queue, &name).await;
    assert!(why.contains("has to be") && why.contains("Delete or rename"), "{why}");
    delete(&channel, &name).await;
    well(&queue).await;
    queue.enqueue(vec![job("b", 1)]).await.unwrap();
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_the_broker_can_not_reach_is_waited_for_by_whoever_starts_meanwhile() {
    let url = servers::fresh_rabbitmq_url();
    let channel = raw(&url).await;
    let name = "pixfleet.retry.v1.1s";
    RabbitQueue::connect(Config { url: url.clone(), ..Config::default() }).await.unwrap().close().await;
    // Known to the disk and not to the node: as a queue is whose node is down, and for a moment one that is being declared.
    let resource = format!("{{resource, <<\"{}\">>, queue, <<\"{name}\">>}}", vhost(&url));
    let evaluated = |code: String| {
        let said = servers::services(&["ctl", "eval", &code]);
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    };
    evaluated(format!(
        "[Q] = mnesia:dirty_read(rabbit_queue, {resource}), persistent_term:put({resource}, Q), \
         mnesia:dirty_delete(rabbit_queue, {resource})."
    ));
    let passive = QueueDeclareOptions::durable().passive();
    channel
        .queue_declare(name.into(), passive, FieldTable::default())
        .await
        .expect_err("it is not to be reached");
    let queue = RabbitQueue::start(Config { url, ..Config::default() });
    let why = unwell(&queue, name).await;
    assert!(why.contains("is down or inaccessible"), "{why}");
    assert!(!why.contains("Mend it"), "nothing is to be mended: {why}");
    evaluated(format!("mnesia:dirty_write(rabbit_queue, persistent_term:get({resource}))."));
    well(&queue).await;
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_that_have_no_queue_any_more_stop_the_client_and_their_job_is_kept() {
    let (queue, url) = engine().await;
    let channel = raw(&url).await;
    queue.enqueue(vec![job("b", 1)]).await.unwrap();
    let (_keep, prefetch) = watch::channel(10);
    let mut intake = queue.receive(prefetch).await.unwrap();
    let (job, unsettled) = timeout(PATIENCE, intake.next()).await.unwrap().unwrap().split();
    delete(&channel, RESULTS_LOG).await;
    classic(&channel, RESULTS_LOG).await;
    let result = ImageResult::of(&job, "m", Outcome::Ok);
    let error = timeout(PATIENCE, unsettled.complete(vec![result])).await.unwrap().unwrap_err();
    assert!(matches!(error, QueueError::Topology(_)), "{error}");
    unwell(&queue, RESULTS_LOG).await;
    delete(&channel, RESULTS_LOG).await;
    well(&queue).await;
    // The job was not acknowledged: whoever has it in hand goes, and another worker gets it.
    queue.close().await;
    let other = RabbitQueue::connect(Config { url, ..Config::default() }).await.unwrap();
    let (_keep, prefetch) = watch::channel(10);
    let mut intake = other.receive(prefetch).await.unwrap();
    let again = timeout(PATIENCE, intake.next()).await.expect("the job comes again").unwrap();
    assert_eq!((again.job.id, again.again), (job.id, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_stays_up_and_not_ready_and_an_enqueue_is_refused_until_the_topology_is_mended() {
    let mut fleet = Fleet::start(Settings::default(), "", "").await;
    let channel = raw(&fleet.rabbitmq_url).await;
    let name = job_queue(Priority::High, 2);
    delete(&channel, &name).await;
    classic(&channel, &name).await;
    let worker = fleet.start_worker();
    let page = fleet.page_with(worker, "/readyz", &name).await;
    assert!(page.contains("HTTP/1.1 503") && page.contains("has to be"), "{page}");

    let rows = fleet.file("images.csv", "id,url\n1,http://images.example/1.jpg\n");
    let arguments =
        ["enqueue", rows.to_str().unwrap(), "--provider", "sandbox", "--models", "m", "--batch", "b"];
    let refused = fleet.command(&arguments).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains(&name) && said.contains("has to be"), "{said}");
    let refused = fleet.command(&["results", "--batch", "b"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let verify = || fleet.command(&["topology", "verify", "--json"]).output().unwrap();
    let differs = verify();
    assert_eq!(differs.status.code(), Some(1));
    let verified: serde_json::Value = serde_json::from_slice(&differs.stdout).unwrap();
    let differences = verified["differences"].as_array().unwrap();
    assert!(differences.len() == 1 && differences[0].as_str().unwrap().contains(&name), "{verified}");

    delete(&channel, &name).await;
    fleet.ready(worker).await;
    assert!(verify().status.success());
    let log = fleet.log(worker);
    let errors = log.lines().filter(|line| line.contains("has to be mended")).count();
    // Once a connection, however often it looked.
    assert!((1..=2).contains(&errors), "said {errors} times:\n{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_set_aside_when_its_batch_went_on_comes_back_to_its_lane() {
    let (queue, url) = engine().await;
    queue.enqueue(vec![job("b", 1)]).await.unwrap();
    let (_keep, prefetch) = watch::channel(10);
    let mut intake = queue.receive(prefetch).await.unwrap();
    // Nothing was prepared for it; or the exchange itself is gone, and is declared again.
    for gone in [false, true] {
        let delivery = timeout(PATIENCE, intake.next()).await.expect("the job comes back").unwrap();
        let (job, unsettled) = delivery.split();
        if gone {
            let channel = raw(&url).await;
            let options = ExchangeDeleteOptions::default();
            channel.exchange_delete(PAUSED_EXCHANGE.into(), options).await.unwrap();
        }
        timeout(PATIENCE, unsettled.park(job)).await.expect("an end in time").unwrap();
    }
    let (back, unsettled) = timeout(PATIENCE, intake.next()).await.unwrap().unwrap().split();
    assert_eq!(back.attempt, 0);
    unsettled.complete(Vec::new()).await.unwrap();
}
