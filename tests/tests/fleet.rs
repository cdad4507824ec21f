//! The promises, on real worker processes, a real broker, a real Redis, and an API that judges.

use std::collections::BTreeMap;

use pixfleet_sandbox::{Faults, Judging, Latency, RetryAfter, Rule, Settings, answer};
use pixfleet_shared::{
    job::{Image, Source},
    result::{ImageResult, Outcome},
};
use pixfleet_tests::fleet::{Fleet, KEY, busiest, job};

const LIMIT_50: &str = "limits = [{ name = \"rate\", calls = 50 }]";

fn sandbox(rule: Rule, limit: u32, latency_ms: u64) -> Settings {
    Settings {
        keys: vec![KEY.into()],
        judging: Judging { rule, limit, ..Judging::default() },
        latency: Latency::Constant { ms: latency_ms },
        ..Settings::default()
    }
}

fn outcomes<'a>(results: impl IntoIterator<Item = &'a ImageResult>) -> BTreeMap<Outcome, usize> {
    let mut counts = BTreeMap::new();
    for result in results {
        *counts.entry(result.outcome).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_under_one_limit_answer_every_job_once_and_meet_no_429() {
    let mut fleet = Fleet::start(sandbox(Rule::Sliding, 50, 20), LIMIT_50, "").await;
    let mut subscriber = fleet.subscribe("b").await;
    for _ in 0..2 {
        fleet.start_worker();
    }
    let jobs = fleet.enqueue("b", 150).await;
    let (results, repetitions) = fleet.collect(&mut *subscriber, 150).await;
    for job in &jobs {
        let result = &results[&job.result_id("m")];
        let Source::Url(url) = &job.image.source else { unreachable!() };
        assert_eq!(
            result.answer.as_ref().unwrap().labels[0].label,
            answer::label_for(url, "m"),
            "{result:?}"
        );
        assert_eq!(result.call.as_ref().unwrap().limit_per_s, Some(50.0));
    }
    let bill = fleet.sandbox.bill().total;
    assert_eq!((repetitions, bill.throttled, bill.charged), (0, 0, 150), "{}", fleet.logs());
    let arrivals: Vec<u64> = fleet.sandbox.access().await.iter().map(|line| line.at_us).collect();
    assert!(busiest(&arrivals, 1_000_000) <= 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_four_workers_killed_in_mid_run_lose_nothing_and_each_result_is_seen_once() {
    let mut fleet =
        Fleet::start(sandbox(Rule::None, 1, 50), "limits = [{ name = \"rate\", calls = 200 }]", "").await;
    let mut subscriber = fleet.subscribe("b").await;
    for _ in 0..4 {
        fleet.start_worker();
    }
    let jobs = fleet.enqueue("b", 600).await;
    let (first, _) = fleet.collect(&mut *subscriber, 150).await;
    fleet.kill(0);
    fleet.kill(1);
    let (mut results, _) = fleet.collect(&mut *subscriber, 600 - first.len()).await;
    // A result seen before the kill may come again after it: the id tells.
    results.extend(first);
    while results.len() < jobs.len() {
        let (more, _) = fleet.collect(&mut *subscriber, 1).await;
        results.extend(more);
    }
    assert!(jobs.iter().all(|job| results.contains_key(&job.result_id("m"))));
    assert_eq!(outcomes(results.values()), BTreeMap::from([(Outcome::Ok, 600)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_pauses_the_whole_fleet_and_spends_no_attempt() {
    let settings = Settings { retry_after: RetryAfter::Seconds, ..sandbox(Rule::Fixed, 5, 5) };
    // A provider that promises more than its API allows: only the hold-off keeps the fleet in bounds.
    let mut fleet =
        Fleet::start(settings, "limits = [{ name = \"rate\", calls = 20 }]", "[worker.retry]\nattempts = 1")
            .await;
    let mut subscriber = fleet.subscribe("b").await;
    for _ in 0..2 {
        fleet.start_worker();
    }
    fleet.enqueue("b", 25).await;
    let (results, _) = fleet.collect(&mut *subscriber, 25).await;
    assert_eq!(
        outcomes(results.values()),
        BTreeMap::from([(Outcome::Ok, 25)]),
        "a 429 was taken for an attempt"
    );
    assert!(
        results.values().any(|result| result.call.as_ref().unwrap().throttled > 0),
        "the judge never judged"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_what_is_in_flight_gives_back_the_rest_and_reports() {
    let mut fleet = Fleet::start(sandbox(Rule::None, 1, 200), LIMIT_50, "").await;
    let mut subscriber = fleet.subscribe("b").await;
    let worker = fleet.start_worker();
    fleet.enqueue("b", 100).await;
    let (first, _) = fleet.collect(&mut *subscriber, 10).await;
    let (code, report) = fleet.terminate(worker);
    assert_eq!(code, 0, "{report}\n{}", fleet.logs());
    assert_eq!(report["left"], 0, "{report}");
    assert!(report["completed"].as_u64() >= Some(first.len() as u64), "{report}");
    fleet.start_worker();
    let (rest, repetitions) = fleet.collect(&mut *subscriber, 100 - first.len()).await;
    assert_eq!((rest.len() + first.len(), repetitions), (100, 0));
    assert_eq!(fleet.sandbox.bill().total.charged, 100, "a drained worker's calls are not repeated");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_retried_and_given_up_ones_are_dead_letters_with_results() {
    let faults = Faults { error_500: 1.0, ..Faults::default() };
    let settings = Settings { faults, ..sandbox(Rule::None, 1, 0) };
    let mut fleet = Fleet::start(settings, LIMIT_50, "[worker.retry]\nattempts = 2\nbase_ms = 10").await;
    let mut subscriber = fleet.subscribe("b").await;
    fleet.start_worker();
    fleet.enqueue("b", 5).await;
    let (results, _) = fleet.collect(&mut *subscriber, 5).await;
    assert_eq!(outcomes(results.values()), BTreeMap::from([(Outcome::Dead, 5)]));
    for result in results.values() {
        assert_eq!(result.failure.as_ref().unwrap().class, "transient");
        assert_eq!(result.call.as_ref().unwrap().attempt, 2);
    }
    assert_eq!(fleet.sandbox.bill().total.calls, 10, "two attempts a job");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_will_never_work_is_rejected_at_once_and_its_neighbours_go_on() {
    let mut fleet = Fleet::start(sandbox(Rule::None, 1, 0), LIMIT_50, "").await;
    let mut subscriber = fleet.subscribe("b").await;
    fleet.start_worker();
    let mut bad = job("b", 0);
    bad.models = vec!["unknown_model".into(), "m".into()];
    fleet.queue.enqueue(vec![bad.clone(), job("b", 1)]).await.unwrap();
    let (results, _) = fleet.collect(&mut *subscriber, 3).await;
    assert_eq!(results[&bad.result_id("m")].outcome, Outcome::Ok, "the call's other model is answered");
    assert_eq!(results[&bad.result_id("unknown_model")].outcome, Outcome::Rejected);
    assert_eq!(fleet.sandbox.bill().total.calls, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_no_limit_could_ever_let_go_is_rejected_with_the_reason_and_the_others_go_on() {
    let by_model = "models_per_call = 1\nlimits = [{ name = \"rate\", calls = 50, unit = \"model\" }]";
    let mut fleet = Fleet::start(sandbox(Rule::None, 1, 0), by_model, "").await;
    let mut subscriber = fleet.subscribe("b").await;
    fleet.start_worker();
    // Another producer's: pixfleet's own puts no more models into a call than the provider allows.
    let mut heavy = job("b", 0);
    heavy.models = vec!["m".into(), "n".into()];
    fleet.queue.enqueue(vec![heavy.clone(), job("b", 1)]).await.unwrap();
    let (results, _) = fleet.collect(&mut *subscriber, 3).await;
    assert_eq!(results[&job("b", 1).result_id("m")].outcome, Outcome::Ok);
    for model in &heavy.models {
        let result = &results[&heavy.result_id(model)];
        let why = &result.failure.as_ref().unwrap().message;
        assert_eq!(result.outcome, Outcome::Rejected, "{result:?}");
        assert!(why.contains("2 models") && why.contains("`rate`") && why.contains("burst"), "{why}");
    }
    assert_eq!(fleet.sandbox.bill().total.calls, 1, "the heavy job was called");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_enqueued_twice_is_paid_for_once() {
    let mut fleet = Fleet::start(sandbox(Rule::None, 1, 0), LIMIT_50, "").await;
    let mut subscriber = fleet.subscribe("b").await;
    let worker = fleet.start_worker();
    fleet.enqueue("b", 10).await;
    fleet.collect(&mut *subscriber, 10).await;
    fleet.enqueue("b", 11).await;
    fleet.collect(&mut *subscriber, 1).await;
    let (_, report) = fleet.terminate(worker);
    assert_eq!(fleet.sandbox.bill().total.charged, 11, "{report}\n{}", fleet.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_address_is_refused_unless_allowed_and_the_picture_is_sent_as_bytes() {
    let always = "fetch = \"always\"\nlimits = [{ name = \"rate\", calls = 50 }]";
    for allowed in [false, true] {
        let worker = format!("[worker.fetch]\nallow_private = {allowed}\nports = []");
        let mut fleet = Fleet::start(sandbox(Rule::None, 1, 0), always, &worker).await;
        let mut subscriber = fleet.subscribe("b").await;
        fleet.start_worker();
        let mut job = job("b", 0);
        let url = format!("{}/sandbox/images/a.jpg", fleet.sandbox.url());
        job.image = Image { id: "a".into(), source: Source::Url(url) };
        fleet.queue.enqueue(vec![job]).await.unwrap();
        let (results, _) = fleet.collect(&mut *subscriber, 1).await;
        let result = results.values().next().unwrap();
        if allowed {
            assert_eq!(result.outcome, Outcome::Ok, "{result:?}");
            assert_eq!(fleet.sandbox.bill().images_served, 1);
        } else {
            assert_eq!(result.outcome, Outcome::Rejected);
            assert!(result.failure.as_ref().unwrap().message.contains("127.0.0.1"), "{result:?}");
            assert_eq!(fleet.sandbox.bill().images_served, 0, "the guard let a request out");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_shows_in_no_log_metric_or_result() {
    let mut fleet =
        Fleet::start(sandbox(Rule::None, 1, 0), LIMIT_50, "[log]\nfilter = \"trace\"\nformat = \"json\"")
            .await;
    let mut subscriber = fleet.subscribe("b").await;
    let worker = fleet.start_worker();
    fleet.ready(worker).await;
    fleet.enqueue("b", 3).await;
    let (results, _) = fleet.collect(&mut *subscriber, 3).await;
    let metrics = fleet.page(worker, "/metrics").await.unwrap();
    assert!(metrics.contains("pixfleet_calls_total{provider=\"sandbox\",class=\"ok\"} 3"), "{metrics}");
    assert!(fleet.page(worker, "/livez").await.unwrap().starts_with("HTTP/1.1 200"));
    fleet.terminate(worker);
    let log = fleet.log(worker);
    assert!(log.contains("\"batch\":\"b\""), "the span of a job has its ids: {log}");
    for (what, text) in [("log", log), ("metrics", metrics), ("results", format!("{results:?}"))] {
        assert!(!text.contains(KEY), "the key is in the {what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_nothing_leaves_and_readyz_says_why() {
    let mut fleet =
        Fleet::start(sandbox(Rule::None, 1, 0), LIMIT_50, "[redis]\nurl = \"redis://127.0.0.1:1/0\"").await;
    // The environment wins over the file; this fleet's workers must not have a Redis.
    fleet.without_redis = true;
    let worker = fleet.start_worker();
    fleet.enqueue("b", 3).await;
    let why = fleet.page_with(worker, "/readyz", "127.0.0.1:1").await;
    assert!(why.starts_with("HTTP/1.1 503"), "{why}");
    let (code, report) = fleet.terminate(worker);
    assert_eq!((code, report["completed"].as_u64()), (0, Some(0)), "{report}");
    assert_eq!(fleet.sandbox.bill().total.calls, 0, "a call left without a slot");
}
