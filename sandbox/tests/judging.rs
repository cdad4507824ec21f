//! The judges over real HTTP, the log and the bill: each call is told, counted and logged once, and as judged.

mod client;

use std::collections::BTreeMap;

use client::{IMAGE, ROOM, client, json, post, predict, sandbox};
use futures_util::future::join_all;
use pixfleet_sandbox::judge::{Judge, Verdict};
use pixfleet_sandbox::{
    Bill, Cost, Faults, Judging, Latency, Line, Outcome, RetryAfter, Rule, Running, Sandbox, Settings,
};
use serde_json::json;

fn judging(rule: Rule, limit: u32, window_ms: u64) -> Settings {
    Settings { judging: Judging { rule, limit, window_ms, count_refused: false }, ..Settings::default() }
}

/// 10 clients, each 30 calls one after the other.
async fn storm(sandbox: &Running) {
    let clients: Vec<_> = (0..10).map(|_| client()).collect();
    join_all(clients.iter().enumerate().map(|(i, client)| async move {
        for n in 0..30 {
            json(predict(client, sandbox, &format!("https://images.example/{i}/{n}.jpg"))).await;
        }
    }))
    .await;
}

fn assert_consistent(bill: &Bill, lines: &[Line]) {
    let count = |of: fn(&Outcome) -> bool| lines.iter().filter(|line| of(&line.outcome)).count() as u64;
    let total = bill.total;
    assert_eq!(total.calls, lines.len() as u64);
    assert_eq!(total.accepted + total.refused, lines.len() as u64);
    assert_eq!(total.throttled, count(|o| *o == Outcome::Throttled));
    assert_eq!(total.rejected, count(|o| *o == Outcome::Rejected));
    assert_eq!(total.faulted, count(|o| matches!(o, Outcome::Faulted(_))));
    assert_eq!(total.accepted, count(|o| matches!(o, Outcome::Accepted | Outcome::Faulted(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_says_is_what_the_judge_saw() {
    for rule in [
        Rule::Fixed,
        Rule::Sliding,
        Rule::Bucket { burst: 3 },
        Rule::Leaky { burst: 0 },
        Rule::Leaky { burst: 4 },
    ] {
        let settings = judging(rule, 20, 100);
        let sandbox = sandbox(settings.clone()).await;
        storm(&sandbox).await;
        let lines = sandbox.access().await;
        assert_consistent(&sandbox.bill(), &lines);

        // The pure judge, fed with the logged moments, lets the same number pass at each of them.
        let mut by_moment: BTreeMap<u64, (u32, u32)> = BTreeMap::new();
        for line in &lines {
            let (calls, passed) = by_moment.entry(line.at_us).or_default();
            *calls += 1;
            *passed += u32::from(line.outcome == Outcome::Accepted);
            assert_eq!(line.status, Some(if line.outcome == Outcome::Accepted { 200 } else { 429 }));
        }
        let mut judge = Judge::new(settings.judging);
        for (at_us, (calls, passed)) in by_moment {
            let replayed = (0..calls).filter(|_| judge.arrive(at_us, 1) == Verdict::Accepted).count();
            assert_eq!(replayed, passed as usize, "{rule:?} at {at_us}");
        }
        assert!(lines.iter().any(|line| line.outcome == Outcome::Throttled), "{rule:?} never said no");
    }
}

#[tokio::test]
async fn concurrent_counts_what_is_in_flight_and_forgets_a_client_that_left() {
    let faults = Faults { hang: 1.0, ..Faults::default() };
    let sandbox = sandbox(Settings { faults, ..judging(Rule::Concurrent, 2, 1_000) }).await;
    let client = client();
    let hanging: Vec<_> = (0..2)
        .map(|n| tokio::spawn(predict(&client, &sandbox, &format!("https://images.example/{n}.jpg")).send()))
        .collect();
    in_flight(&sandbox, 2).await;
    assert_eq!(predict(&client, &sandbox, IMAGE).send().await.unwrap().status(), 429);
    hanging.iter().for_each(tokio::task::JoinHandle::abort);
    in_flight(&sandbox, 0).await;
    let third = tokio::spawn(predict(&client, &sandbox, IMAGE).send());
    in_flight(&sandbox, 1).await;
    third.abort();
    let bill = sandbox.shutdown().await.unwrap();
    assert_eq!((bill.total.faulted, bill.total.throttled), (3, 1));
}

async fn in_flight(sandbox: &Running, wanted: u64) {
    while sandbox.bill().in_flight != wanted {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_throttled_call_is_told_when_to_come_back_in_each_form() {
    for (retry_after, check) in [
        (RetryAfter::None, None),
        (RetryAfter::Seconds, Some(r"seconds")),
        (RetryAfter::HttpDate, Some("date")),
    ] {
        let sandbox = sandbox(Settings { retry_after, ..judging(Rule::Sliding, 1, 3_600_000) }).await;
        predict(&client(), &sandbox, IMAGE).send().await.unwrap();
        let answer = predict(&client(), &sandbox, IMAGE).send().await.unwrap();
        let value = answer.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
        match check {
            None => assert_eq!(value, None),
            Some("seconds") => {
                let seconds: u64 = value.unwrap().parse().unwrap();
                assert!((3_500..=3_600).contains(&seconds), "{seconds}");
            }
            Some(_) => {
                let date = value.unwrap();
                assert!(date.ends_with(" GMT") && date.len() == 29, "{date}");
                let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(&date).unwrap();
                let wait = at.as_second() - jiff::Timestamp::now().as_second();
                assert!((3_500..=3_601).contains(&wait), "{date}");
            }
        }
    }
}

#[tokio::test]
async fn a_multipredict_counts_for_each_model_where_the_account_says_so() {
    let models = "re_roomtype_global_v2,re_logo,re_features_v4";
    for (cost, accepted, units) in [(Cost::PerCall, 5, 5), (Cost::PerModel, 2, 6)] {
        let sandbox = sandbox(Settings { cost, ..judging(Rule::Sliding, 7, 86_400_000) }).await;
        for n in 0..5 {
            let image = format!("https://images.example/{n}.jpg");
            let query = [("client_key", "k"), ("model_id", models), ("image_url", &image)];
            json(client().get(format!("{}/vision/v2/multipredict", sandbox.url())).query(&query)).await;
        }
        let bill = sandbox.bill();
        assert_eq!((bill.total.charged, bill.total.units), (accepted, units), "{cost:?}");
        let key = bill.keys.values().next().unwrap();
        assert_eq!(key.models.len(), 3);
        assert_eq!((key.models["re_logo"].calls, key.models["re_logo"].charged), (5, accepted));
    }
}

#[tokio::test]
async fn a_per_model_cost_is_counted_from_a_body_too() {
    let sandbox = sandbox(Settings { cost: Cost::PerModel, ..judging(Rule::Sliding, 3, 86_400_000) }).await;
    let ask = |models: &[&str]| {
        let body = json!({ "image_url": IMAGE, "models": models });
        post(&client(), format!("{}/v1/analyze", sandbox.url()), &body).bearer_auth("k")
    };
    assert_eq!(json(ask(&["a", "b"])).await.0, 200);
    assert_eq!(json(ask(&["a", "b"])).await.0, 429);
    assert_eq!(json(ask(&["c"])).await.0, 200);
    assert_eq!(sandbox.bill().total.units, 3);
}

#[tokio::test]
async fn the_log_file_has_a_line_a_call_and_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.jsonl");
    let settings = Settings {
        access_log: Some(path.clone()),
        faults: Faults { error_500: 0.3, malformed: 0.2, ..Faults::default() },
        latency: Latency::Lognormal { mean_ms: 1.0, sigma: 0.5 },
        ..judging(Rule::Sliding, 100, 86_400_000)
    };
    let sandbox = sandbox(settings).await;
    let client = client();
    for n in 0..150 {
        let query = [
            ("client_key", "s3cret"),
            ("model_id", ROOM),
            ("image_url", &format!("https://i.example/{n}.jpg")),
        ];
        client.get(format!("{}/vision/v2/predict", sandbox.url())).query(&query).send().await.unwrap();
    }
    let wrong = [("client_key", "s3cret"), ("model_id", "re_nothing"), ("image_url", IMAGE)];
    client.get(format!("{}/vision/v2/predict", sandbox.url())).query(&wrong).send().await.unwrap();
    let bill = sandbox.shutdown().await.unwrap();

    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("s3cret"));
    let lines: Vec<Line> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_consistent(&bill, &lines);
    assert_eq!((bill.total.accepted, bill.total.refused), (100, 51));
    assert_eq!(bill.connections, 1, "the client's connection was kept");
    assert_eq!(lines[7].image.as_deref(), Some("https://i.example/7.jpg"));
    assert_eq!((lines[7].method.as_str(), lines[7].path.as_str()), ("GET", "/vision/v2/predict"));
    assert!(lines.windows(2).all(|pair| pair[0].at_us < pair[1].at_us));
}

#[tokio::test]
async fn a_reset_forgets_the_bill_and_the_judges_and_starts_the_faults_anew() {
    let faults = Faults { error_500: 0.5, seed: 3, ..Faults::default() };
    let sandbox = sandbox(Settings { faults, ..judging(Rule::Sliding, 20, 86_400_000) }).await;
    let client = client();
    let mut rounds = Vec::new();
    for _ in 0..2 {
        let mut statuses = Vec::new();
        for _ in 0..21 {
            statuses.push(predict(&client, &sandbox, IMAGE).send().await.unwrap().status().as_u16());
        }
        assert_eq!(statuses.pop(), Some(429));
        rounds.push(statuses);
        json(client.post(format!("{}/sandbox/reset", sandbox.url()))).await;
        assert_eq!(sandbox.bill().total.calls, 0);
    }
    assert_eq!(rounds[0], rounds[1]);
    assert!(rounds[0].contains(&500) && rounds[0].contains(&200));
}

#[tokio::test]
async fn the_bill_is_the_same_over_http() {
    let sandbox = sandbox(Settings::default()).await;
    json(predict(&client(), &sandbox, IMAGE)).await;
    let (_, body) = json(client().get(format!("{}/sandbox/bill", sandbox.url()))).await;
    let bill: Bill = serde_json::from_value(body).unwrap();
    assert_eq!(bill.keys, sandbox.bill().keys);
    assert_eq!((bill.total.calls, bill.connections), (1, 2));
}

#[tokio::test]
async fn settings_that_cannot_be_served_are_refused_with_every_reason() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = Settings { throttle_status: 7, ..judging(Rule::Bucket { burst: 0 }, 0, 0) };
    let error = Sandbox::start(listener, settings).unwrap_err().to_string();
    for word in ["throttle_status is 7", "burst is 0", "limit is 0", "window_ms is 0"] {
        assert!(error.contains(word), "{error}");
    }
}
