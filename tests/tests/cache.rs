//! Answers that are kept: the same picture is paid for once, whoever asks, and whoever fails or dies meanwhile. The bill at the
//! API tells.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use pixfleet_sandbox::{Latency, Settings};
use pixfleet_shared::{
    id::Id,
    job::{Image, Job, Source},
    result::{ImageResult, Outcome},
};
use pixfleet_tests::{
    fleet::{Fleet, KEY},
    scripted::{Scripted, answer},
};

const CACHE: &str = "cache = { ttl_s = 600 }";
/// Few pauses, and short ones.
const WORKER: &str = "[worker.retry]\nattempts = 20\nbase_ms = 10\ncap_ms = 20\n";
/// The beginning of a GIF: enough of a picture for whoever does not decode it.
const PICTURE: &str = "R0lGODlhAQABAA==";
const ANOTHER: &str = "R0lGODlhAgACAA==";

fn sandbox() -> Settings {
    Settings { keys: vec![KEY.into()], latency: Latency::Constant { ms: 50 }, ..Settings::default() }
}

/// Image number `n` of a batch, asked with these models. The pictures of all numbers may be one.
fn job(batch: &str, n: usize, source: Source, models: &[&str]) -> Job {
    let image = Image { id: format!("i{n}"), source };
    let models = models.iter().map(|model| (*model).to_owned()).collect();
    Job::new(batch.parse().unwrap(), image, "sandbox".into(), models)
}

fn inline(base64: &str) -> Source {
    Source::Inline(base64.to_owned())
}

/// Puts the jobs on the queue, and waits for a result of each of their models.
async fn results(fleet: &mut Fleet, jobs: Vec<Job>) -> BTreeMap<Id, ImageResult> {
    let mut subscriber = fleet.subscribe(jobs[0].batch.as_str()).await;
    let expected = jobs.iter().map(|job| job.models.len()).sum();
    fleet.queue.enqueue(jobs).await.unwrap();
    fleet.collect(&mut *subscriber, expected).await.0
}

/// How many results were answered by a call, and how many by an answer of before. Nothing else may be among them.
fn sources(results: &BTreeMap<Id, ImageResult>) -> (usize, usize) {
    for result in results.values() {
        assert_eq!(result.outcome, Outcome::Ok, "{result:?}");
        assert!(result.answer.is_some() && result.cached == result.call.is_none(), "{result:?}");
    }
    let cached = results.values().filter(|result| result.cached).count();
    (results.len() - cached, cached)
}

async fn workers(fleet: &mut Fleet, count: usize) {
    for _ in 0..count {
        let worker = fleet.start_worker();
        fleet.ready(worker).await;
    }
}

async fn one_picture_under_many_names_is_one_call(mut fleet: Fleet) {
    workers(&mut fleet, 3).await;
    let jobs = (0..200).map(|n| job("b", n, inline(PICTURE), &["m"])).collect();
    let results = results(&mut fleet, jobs).await;
    assert_eq!(sources(&results), (1, 199), "{}", fleet.logs());
    assert_eq!(fleet.sandbox.bill().total.calls, 1, "{}", fleet.logs());
    let answers: Vec<_> = results.values().map(|result| result.answer.as_ref().unwrap()).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]), "all see the same");
    let mut hits = 0;
    for worker in 0..3 {
        let page = fleet.page_with(worker, "/metrics", "pixfleet_settled_total").await;
        let of_worker = page
            .lines()
            .find_map(|line| line.strip_prefix("pixfleet_cache_hits_total{provider=\"sandbox\"} "));
        hits += of_worker.map_or(0, |count| count.trim().parse::<usize>().unwrap());
    }
    assert_eq!(hits, 199);
    // A later batch pays for nothing.
    let later = (0..20).map(|n| job("later", n, inline(PICTURE), &["m"])).collect();
    assert_eq!(sources(&self::results(&mut fleet, later).await), (0, 20));
    assert_eq!(fleet.sandbox.bill().total.calls, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_workers_of_a_fleet_pay_for_a_picture_once() {
    one_picture_under_many_names_is_one_call(Fleet::start(sandbox(), CACHE, WORKER).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_workers_on_a_state_file_pay_for_a_picture_once() {
    one_picture_under_many_names_is_one_call(Fleet::on_one_machine(sandbox(), CACHE, WORKER).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_table_nothing_is_kept() {
    let mut fleet = Fleet::on_one_machine(sandbox(), "", WORKER).await;
    workers(&mut fleet, 1).await;
    let jobs = (0..5).map(|n| job("b", n, inline(PICTURE), &["m"])).collect();
    assert_eq!(sources(&results(&mut fleet, jobs).await), (5, 0));
    assert_eq!(fleet.sandbox.bill().total.calls, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_not_known_is_asked_and_all_of_the_job_is_answered() {
    let mut fleet = Fleet::on_one_machine(sandbox(), CACHE, WORKER).await;
    workers(&mut fleet, 1).await;
    results(&mut fleet, vec![job("first", 0, inline(PICTURE), &["b"])]).await;
    let results = results(&mut fleet, vec![job("second", 0, inline(PICTURE), &["a", "b", "c"])]).await;
    assert_eq!(sources(&results), (2, 1));
    let cached = results.values().find(|result| result.cached).unwrap();
    assert_eq!(cached.model, "b");
    let asked: Vec<Vec<String>> = fleet.sandbox.access().await.into_iter().map(|line| line.models).collect();
    assert_eq!(asked, [vec!["b"], vec!["a", "c"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_picture_or_version_is_asked_anew_and_a_refresh_keeps_the_new_answer() {
    let mut fleet = Fleet::on_one_machine(sandbox(), CACHE, WORKER).await;
    workers(&mut fleet, 1).await;
    results(&mut fleet, vec![job("first", 0, inline(PICTURE), &["m"])]).await;
    assert_eq!(sources(&results(&mut fleet, vec![job("other", 0, inline(ANOTHER), &["m"])]).await), (1, 0));
    let again = Job { refresh: true, ..job("again", 0, inline(PICTURE), &["m"]) };
    let renewed = results(&mut fleet, vec![again]).await;
    assert_eq!(sources(&renewed), (1, 0), "a refresh asks");
    assert_eq!(sources(&results(&mut fleet, vec![job("last", 0, inline(PICTURE), &["m"])]).await), (0, 1));
    assert_eq!(fleet.sandbox.bill().total.calls, 3);
}

/// A fleet of workers that call a scripted API.
async fn against(api: &Scripted, own: &str) -> Fleet {
    let provider = format!("endpoint = \"{}\"\nbreaker.failures = 0\n{own}\n", api.url);
    // The endpoint of the fleet's own sandbox stands before it: give another provider.
    let provider = format!("[providers.other]\npreset = \"generic\"\n{provider}");
    Fleet::on_one_machine(
        Settings::default(),
        &provider,
        &format!("{WORKER}[worker.fetch]\nallow_private = true\nports = []\n"),
    )
    .await
}

fn of_other(job: Job) -> Job {
    Job::new(job.batch, job.image, "other".into(), job.models)
}

const GOOD: &[u8] = b"{\"results\": {\"m\": {\"label\": \"cat\"}}}";

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_fails_lets_the_next_one_try_and_errors_are_never_kept() {
    let api = Scripted::start(|_, before| match before {
        0..3 => answer("500 Oh", "", b"{}"),
        3 => answer("400 No", "", b"{\"error\": \"not this time\"}"),
        _ => answer("200 OK", "", GOOD),
    })
    .await;
    let mut fleet = against(&api, CACHE).await;
    workers(&mut fleet, 2).await;
    let jobs = (0..30).map(|n| of_other(job("b", n, inline(PICTURE), &["m"]))).collect();
    let results = results(&mut fleet, jobs).await;
    let (rejected, answered): (BTreeMap<_, _>, BTreeMap<_, _>) =
        results.into_iter().partition(|(_, result)| result.outcome == Outcome::Rejected);
    assert_eq!((rejected.len(), sources(&answered)), (1, (1, 28)), "{}", fleet.logs());
    assert_eq!(
        api.asked().len(),
        5,
        "three that failed, one that was refused, and the one that was answered"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_with_the_claim_leaves_it_to_the_next_one() {
    let (called, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Notify::new()));
    let (count, first) = (called.clone(), seen.clone());
    // The first call is never answered.
    let api = Scripted::start(move |_, _| {
        if count.fetch_add(1, Ordering::SeqCst) == 0 {
            first.notify_one();
            let never = std::time::Duration::from_secs(3_600);
            return pixfleet_tests::scripted::Said::Endless(Vec::new(), Vec::new(), never);
        }
        answer("200 OK", "", GOOD)
    })
    .await;
    let mut fleet = against(&api, CACHE).await;
    let mut subscriber = fleet.subscribe("b").await;
    workers(&mut fleet, 1).await;
    fleet.queue.enqueue(vec![of_other(job("b", 0, inline(PICTURE), &["m"]))]).await.unwrap();
    seen.notified().await;
    workers(&mut fleet, 1).await;
    let others = (1..10).map(|n| of_other(job("b", n, inline(PICTURE), &["m"]))).collect();
    fleet.queue.enqueue(others).await.unwrap();
    fleet.kill(0);
    let (results, _) = fleet.collect(&mut *subscriber, 10).await;
    assert_eq!(sources(&results), (1, 9), "{}", fleet.log(1));
    assert_eq!(called.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_that_goes_by_its_url_is_known_by_what_its_server_tells_of_it() {
    let version = Arc::new(AtomicUsize::new(1));
    let current = version.clone();
    let api = Scripted::start(move |asked, _| {
        let etag = format!("etag: \"{}\"\r\n", current.load(Ordering::SeqCst));
        match asked.head.split(' ').next() {
            Some("HEAD") if asked.path().starts_with("/silent") => answer("200 OK", "", b""),
            Some("HEAD") => answer("200 OK", &etag, b""),
            _ => answer("200 OK", "", GOOD),
        }
    })
    .await;
    let calls = || api.asked().iter().filter(|asked| asked.head.starts_with("POST")).count();
    let mut fleet = against(&api, "cache = { ttl_s = 600, url = \"validator\" }").await;
    workers(&mut fleet, 1).await;
    for (batch, path, new_version, paid) in [
        ("a", "/p.gif", 1, 1),
        ("b", "/p.gif", 1, 1),
        ("c", "/p.gif", 2, 2),
        ("d", "/silent", 2, 3),
        ("e", "/silent", 2, 4),
    ] {
        version.store(new_version, Ordering::SeqCst);
        let url = Source::Url(format!("{}{path}", api.url));
        results(&mut fleet, vec![of_other(job(batch, 0, url, &["m"]))]).await;
        assert_eq!(calls(), paid, "{batch}");
    }
}
