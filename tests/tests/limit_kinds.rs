//! Limits of every kind, on real worker processes and an API that judges.

use std::collections::BTreeMap;

use pixfleet_sandbox::{Judging, Latency, Line, RetryAfter, Rule, Settings};
use pixfleet_shared::{
    limiter::{Amendment, Change, Limit, Numbers, Quota, Stack},
    queue::Subscriber,
};
use pixfleet_tests::{
    fleet::{Fleet, KEY, busiest, job},
    private_redis::PrivateRedis,
};

fn sandbox(rule: Rule, limit: u32, latency_ms: u64) -> Settings {
    Settings {
        keys: vec![KEY.into()],
        judging: Judging { rule, limit, ..Judging::default() },
        latency: Latency::Constant { ms: latency_ms },
        ..Settings::default()
    }
}

/// The most calls that were under way at once, by the API's own log.
fn most_at_once(lines: &[Line]) -> usize {
    let mut edges: Vec<(u64, i64)> =
        lines.iter().flat_map(|line| [(line.at_us, 1), (line.at_us + line.duration_us, -1)]).collect();
    edges.sort_unstable();
    let mut now = 0;
    let under_way = edges.into_iter().map(|(_, step)| {
        now += step;
        now
    });
    under_way.max().unwrap_or(0) as usize
}

async fn receive(fleet: &Fleet, subscriber: &mut dyn Subscriber, results: usize) {
    let (seen, _) = fleet.collect(subscriber, results).await;
    assert_eq!(seen.len(), results);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_in_flight_are_never_too_many_for_any_number_of_workers_and_a_killed_ones_come_back() {
    let provider = "limits = [{ name = \"in-flight\", calls = 8, judge = \"concurrent\" }]";
    let mut fleet = Fleet::start(sandbox(Rule::Concurrent, 8, 100), provider, "").await;
    let mut subscriber = fleet.subscribe("b").await;
    for _ in 0..4 {
        fleet.start_worker();
    }
    fleet.enqueue("b", 500).await;
    receive(&fleet, &mut *subscriber, 100).await;
    fleet.kill(0);
    fleet.kill(1);
    // The killed ones' jobs come again with their calls, and the others have their room.
    let mut seen = BTreeMap::new();
    while seen.len() < 300 {
        let (more, _) = fleet.collect(&mut *subscriber, 1).await;
        seen.extend(more);
    }
    let bill = fleet.sandbox.bill().total;
    assert_eq!(bill.throttled, 0, "{}", fleet.logs());
    let lines = fleet.sandbox.access().await;
    assert_eq!(most_at_once(&lines[lines.len() - 100..]), 8, "the two that are left have all of the room");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_goes_by_the_account_that_is_free_first() {
    let settings =
        Settings { keys: vec!["first-key-1".into(), "second-key-2".into()], ..sandbox(Rule::Sliding, 20, 5) };
    let provider = "limits = [{ name = \"rate\", calls = 20 }]\nauth = { kind = \"bearer\" }\n\
        accounts = [{ name = \"one\", key_file = \"KEYS/one\" }, { name = \"two\", key_file = \"KEYS/two\" }]";
    let keys = tempfile::tempdir().unwrap();
    std::fs::write(keys.path().join("one"), "first-key-1").unwrap();
    std::fs::write(keys.path().join("two"), "second-key-2").unwrap();
    let provider = provider.replace("KEYS", &keys.path().display().to_string());
    let mut fleet = Fleet::start(settings, &provider, "").await;
    let mut subscriber = fleet.subscribe("b").await;
    for _ in 0..2 {
        fleet.start_worker();
    }
    fleet.enqueue("b", 160).await;
    receive(&fleet, &mut *subscriber, 160).await;
    let bill = fleet.sandbox.bill();
    let calls: Vec<u64> = bill.keys.values().map(|key| key.counts.charged).collect();
    assert_eq!((bill.total.throttled, bill.total.charged), (0, 160), "{}", fleet.logs());
    assert!(calls.iter().all(|calls| (60..=100).contains(calls)), "{calls:?} of 160 by two equal accounts");
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_that_name_one_stack_share_its_limits() {
    let limits = "stack = \"shared\"\nlimits = [{ name = \"rate\", calls = 30 }]";
    let second = format!("[providers.second]\npreset = \"generic\"\nendpoint = \"${{sandbox}}\"\n{limits}");
    let mut fleet = Fleet::start(sandbox(Rule::Sliding, 30, 5), &format!("{limits}\n{second}"), "").await;
    let mut subscriber = fleet.subscribe("b").await;
    for _ in 0..2 {
        fleet.start_worker();
    }
    let jobs = (0..120).map(|n| {
        let mut job = job("b", n);
        job.provider = if n % 2 == 0 { "sandbox".into() } else { "second".into() };
        job
    });
    fleet.queue.enqueue(jobs.collect()).await.unwrap();
    receive(&fleet, &mut *subscriber, 120).await;
    assert_eq!(fleet.sandbox.bill().total.throttled, 0, "{}", fleet.logs());
    let arrivals: Vec<u64> = fleet.sandbox.access().await.iter().map(|line| line.at_us).collect();
    assert!(busiest(&arrivals, 1_000_000) <= 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_quota_parks_its_jobs_in_the_queue_until_there_is_more() {
    let provider = "limits = [{ name = \"credits\", calls = 20, quota = \"total\" }]";
    let mut fleet = Fleet::start(sandbox(Rule::None, 1, 5), provider, "").await;
    let mut subscriber = fleet.subscribe("b").await;
    for _ in 0..2 {
        fleet.start_worker();
    }
    fleet.enqueue("b", 60).await;
    receive(&fleet, &mut *subscriber, 20).await;
    for worker in 0..2 {
        fleet.page_with(worker, "/metrics", "pixfleet_jobs_in_hand 0\n").await;
    }
    assert_eq!(fleet.sandbox.bill().total.calls, 20, "{}", fleet.logs());

    let credits = Limit { quota: Some(Quota::Total), ..Limit::per_second("credits", 20) };
    let stack = Stack { name: "sandbox".into(), limits: vec![credits] };
    let more =
        Change::Set { limit: "credits".into(), numbers: Numbers { calls: Some(60), ..Numbers::default() } };
    let amendment = Amendment { at: jiff::Timestamp::now(), by: "ada".into(), change: more };
    fleet.limiter().await.amend(&stack, &amendment).await.unwrap();
    receive(&fleet, &mut *subscriber, 40).await;
    let bill = fleet.sandbox.bill().total;
    assert_eq!((bill.calls, bill.charged), (60, 60), "{}", fleet.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_long_hold_off_one_call_looks_before_the_others_follow() {
    let window_ms = 7_000;
    let judging = Judging { rule: Rule::Fixed, limit: 5, window_ms, count_refused: false };
    let settings = Settings { judging, retry_after: RetryAfter::Seconds, ..sandbox(Rule::None, 1, 300) };
    // A provider that promises more than its API allows.
    let provider = "limits = [{ name = \"rate\", calls = 50 }]";
    let mut fleet = Fleet::start(settings, provider, "").await;
    let mut subscriber = fleet.subscribe("b").await;
    for _ in 0..3 {
        fleet.start_worker();
    }
    fleet.enqueue("b", 15).await;
    receive(&fleet, &mut *subscriber, 15).await;
    let mut lines = fleet.sandbox.access().await;
    lines.sort_unstable_by_key(|line| line.at_us);
    // A hold-off of five seconds or more, after which one call goes ahead, is a gap that nothing else makes.
    let gaps: Vec<usize> =
        (1..lines.len()).filter(|i| lines[*i].at_us - lines[*i - 1].at_us > 5_200_000).collect();
    assert!(!gaps.is_empty(), "the judge never judged: {lines:#?}");
    for first in gaps {
        let probe = &lines[first];
        if let Some(next) = lines.get(first + 1) {
            let after = probe.at_us + probe.duration_us;
            assert!(
                next.at_us >= after,
                "a call left {} us before the probe was answered",
                after - next.at_us
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_safe_rate_calls_go_on_at_it_while_redis_is_away() {
    let provider = "safe_rate = 20.0\nlimits = [{ name = \"rate\", calls = 50 }]";
    let mut redis = PrivateRedis::start(&[]).await;
    let mut fleet = Fleet::start(sandbox(Rule::Sliding, 50, 5), provider, "").await;
    fleet.redis_url = redis.url();
    let mut subscriber = fleet.subscribe("b").await;
    let worker = fleet.start_worker();
    fleet.ready(worker).await;
    fleet.enqueue("b", 120).await;
    receive(&fleet, &mut *subscriber, 30).await;
    redis.kill();
    let killed_us = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap();
    receive(&fleet, &mut *subscriber, 90).await;
    let page = fleet.page(worker, "/readyz").await.unwrap();
    assert!(page.contains("503") && page.contains("Redis"), "it goes on, and says what is wrong: {page}");
    let bill = fleet.sandbox.bill().total;
    assert_eq!((bill.throttled, bill.charged), (0, 120), "{}", fleet.logs());
    // What was booked before is over within a second.
    let lines = fleet.sandbox.access().await;
    let arrivals: Vec<u64> =
        lines.iter().map(|line| line.at_us).filter(|at| *at > killed_us + 1_000_000).collect();
    assert!(arrivals.len() > 21 && busiest(&arrivals, 1_000_000) <= 21, "{}", busiest(&arrivals, 1_000_000));
}
