//! When failed calls are tried again, and when no more: pauses, deadlines, and the breaker that leaves an API alone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pixfleet_sandbox::{Faults, Sandbox, Settings};
use pixfleet_shared::{
    job::{Image, Job, Source},
    result::Outcome,
};
use pixfleet_tests::{
    fault_proxy::FaultProxy,
    fleet::{Fleet, KEY, job},
    one_machine::OneMachine,
    scripted::{Scripted, answer},
};
use serde_json::Value;
use tokio::{net::TcpListener, time::timeout};

const WORKERS: usize = 4;
const FAILURES: usize = 5;
const JOBS: usize = 120;

fn obliging() -> Settings {
    Settings { keys: vec![KEY.into()], ..Settings::default() }
}

fn down() -> Settings {
    Settings { faults: Faults { error_500: 1.0, ..Faults::default() }, ..obliging() }
}

async fn counted(fleet: &Fleet, metric: &str) -> u64 {
    let mut sum = 0.0;
    for worker in 0..WORKERS {
        let page = fleet.page(worker, "/metrics").await.unwrap_or_default();
        let values = page.lines().filter(|line| line.starts_with(metric));
        sum += values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>();
    }
    sum as u64
}

/// What `limits show` says of the stack, once it says that it is held off.
async fn shown_while_held(fleet: &Fleet) -> Value {
    let shown = async {
        loop {
            let output = fleet.command(&["limits", "show", "sandbox", "--json"]).output().unwrap();
            let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
            let stack = shown.pointer("/stacks/0").unwrap_or(&shown).clone();
            if stack["held_until"].is_string() {
                return stack;
            }
        }
    };
    timeout(Duration::from_secs(20), shown).await.expect("a hold-off that shows")
}

/// An API that is down answers 500 to everything; later it is another one, at the same place.
async fn an_outage_spends_few_attempts_and_all_is_answered_after_it(
    mut fleet: Fleet,
    proxy: FaultProxy,
    back: u16,
) {
    let mut subscriber = fleet.subscribe("b").await;
    for _ in 0..WORKERS {
        let worker = fleet.start_worker();
        fleet.ready(worker).await;
    }
    fleet.enqueue("b", JOBS).await;
    let shown = shown_while_held(&fleet).await;
    assert_eq!(shown["stack"], "sandbox", "{shown}");
    // A few probes have failed by then.
    let probed = async {
        while counted(&fleet, "pixfleet_breaker_opened_total").await < 4 + WORKERS as u64 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(timeout(Duration::from_secs(60), probed).await.is_ok(), "{}", fleet.logs());
    let openings = counted(&fleet, "pixfleet_breaker_opened_total").await;
    let spent = fleet.sandbox.bill().total.calls;
    // Each worker's failures in a row, those that were on their way meanwhile, and the probes.
    let most = (FAILURES * WORKERS + IN_FLIGHT * WORKERS) as u64 + openings;
    assert!(
        spent <= most && spent < JOBS as u64,
        "{spent} calls were spent, {openings} openings\n{}",
        fleet.logs()
    );
    proxy.lead_to(back);
    proxy.reset();
    let (results, _) = fleet.collect(&mut *subscriber, JOBS).await;
    assert!(results.values().all(|result| result.outcome == Outcome::Ok), "{}", fleet.logs());
    for worker in 0..WORKERS {
        let log = fleet.log(worker);
        assert!(log.matches("the API is down").count() <= 2, "it is said once a breakdown:\n{log}");
    }
}

/// Calls of one worker at once.
const IN_FLIGHT: usize = 4;

fn breaker() -> String {
    format!(
        "breaker = {{ failures = {FAILURES}, pause_ms = 200, longest_ms = 1000 }}\ncalls_at_once = {IN_FLIGHT}\n"
    )
}

const RETRIES: &str = "[worker.retry]\nattempts = 20\nbase_ms = 10\ncap_ms = 20\n";

async fn sandbox(settings: Settings) -> pixfleet_sandbox::Running {
    Sandbox::start(TcpListener::bind("127.0.0.1:0").await.unwrap(), settings).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn four_workers_of_a_fleet_leave_an_api_alone_that_is_down() {
    let (first, second) = (sandbox(down()).await, sandbox(obliging()).await);
    let proxy = FaultProxy::start(first.addr().port()).await;
    let endpoint = format!("http://127.0.0.1:{}", proxy.port());
    let own = format!("{}limits = [{{ name = \"rate\", calls = 100 }}]", breaker());
    let fleet = Fleet::behind(first, &endpoint, &own, RETRIES).await;
    an_outage_spends_few_attempts_and_all_is_answered_after_it(fleet, proxy, second.addr().port()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_workers_on_a_state_file_leave_an_api_alone_that_is_down_also_without_limits() {
    let second = sandbox(obliging()).await;
    let fleet = Fleet::on_one_machine(down(), "", RETRIES).await;
    let proxy = FaultProxy::start(fleet.sandbox.addr().port()).await;
    fleet.settle(&format!("http://127.0.0.1:{}", proxy.port()), &breaker(), RETRIES);
    an_outage_spends_few_attempts_and_all_is_answered_after_it(fleet, proxy, second.addr().port()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_past_its_deadline_is_not_called_and_one_whose_slot_comes_later_neither() {
    let own = "limits = [{ name = \"rate\", calls = 1, per_ms = 60000 }]";
    let mut fleet = Fleet::on_one_machine(obliging(), own, RETRIES).await;
    let mut subscriber = fleet.subscribe("b").await;
    fleet.start_worker();
    fleet.ready(0).await;
    let within = |n, seconds| {
        let deadline = Timestamp::now() + SignedDuration::from_secs(seconds);
        Job { deadline: Some(deadline), ..job("b", n) }
    };
    // One takes the minute's slot; the next would have to wait for its own longer than it may.
    fleet.queue.enqueue(vec![within(0, -1), within(1, 600)]).await.unwrap();
    let (first, _) = fleet.collect(&mut *subscriber, 2).await;
    fleet.queue.enqueue(vec![within(2, 600), within(3, 3)]).await.unwrap();
    let (second, _) = fleet.collect(&mut *subscriber, 1).await;
    let (answered, late): (Vec<_>, Vec<_>) =
        first.values().chain(second.values()).partition(|result| result.outcome == Outcome::Ok);
    assert_eq!((answered.len(), late.len()), (1, 2), "{}", fleet.logs());
    for result in late {
        let failure = result.failure.as_ref().unwrap();
        assert_eq!(
            (result.outcome, failure.class.as_str()),
            (Outcome::Dead, "deadline-passed"),
            "{result:?}"
        );
        assert!(result.call.is_none() && ["i0", "i3"].contains(&result.image.as_str()), "{result:?}");
    }
    assert_eq!(fleet.sandbox.bill().total.calls, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_retry_is_waited_for_that_would_come_after_the_deadline() {
    // An hour's pause, and a minute's time.
    let retries = "[worker.retry]\nattempts = 20\npauses_ms = [3600000]\n";
    let own = "retry = { deadline_s = 60 }";
    let mut fleet = Fleet::on_one_machine(down(), own, retries).await;
    let mut subscriber = fleet.subscribe("b").await;
    fleet.start_worker();
    fleet.enqueue("b", 3).await;
    let (results, _) = fleet.collect(&mut *subscriber, 3).await;
    for result in results.values() {
        let attempt = result.call.as_ref().map(|call| call.attempt);
        assert_eq!((result.outcome, attempt), (Outcome::Dead, Some(1)), "{result:?}");
        assert_eq!(result.failure.as_ref().unwrap().class, "transient", "it says what the call failed of");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_providers_own_retries_go_before_the_workers() {
    let own = "retry = { attempts = 3, pauses_ms = [20] }\nbreaker.failures = 0";
    let retries = "[worker.retry]\nattempts = 20\nbase_ms = 3600000\ncap_ms = 3600000\n";
    let mut fleet = Fleet::on_one_machine(down(), own, retries).await;
    let mut subscriber = fleet.subscribe("b").await;
    fleet.start_worker();
    fleet.enqueue("b", 4).await;
    let (results, _) = fleet.collect(&mut *subscriber, 4).await;
    assert!(results.values().all(|result| result.call.as_ref().unwrap().attempt == 3), "{results:?}");
    assert_eq!(fleet.sandbox.bill().total.calls, 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn run_with_a_deadline_that_has_passed_makes_no_call_and_says_so() {
    let sandbox = sandbox(obliging()).await;
    let machine = OneMachine::new(5, &sandbox.url());
    let output = machine.run(&["o.jsonl"], 4).args(["--deadline", "2001-01-01T00:00:00Z"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(machine.path().join("o.jsonl")).unwrap();
    assert_eq!(text.matches("deadline-passed").count(), 5, "{text}");
    assert_eq!(sandbox.bill().total.calls, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_answer_that_can_be_read_in_part_only_the_rest_is_asked_again() {
    // It answers the first model, and what it says of the second comes with the second question only.
    let api = Scripted::start(|asked, _| {
        let first = b"{\"results\": {\"a\": {\"label\": \"cat\"}}}".as_slice();
        let second = b"{\"results\": {\"b\": {\"label\": \"dog\"}}}".as_slice();
        answer("200 OK", "", if asked.body.contains("\"a\"") { first } else { second })
    })
    .await;
    let own = format!(
        "[providers.other]\npreset = \"generic\"\nendpoint = \"{}\"\ncache = {{ ttl_s = 60 }}",
        api.url
    );
    let mut fleet = Fleet::on_one_machine(Settings::default(), &own, RETRIES).await;
    let mut subscriber = fleet.subscribe("b").await;
    fleet.start_worker();
    let ask = |n: usize| {
        let image = Image { id: format!("i{n}"), source: Source::Inline("R0lGODlhAQABAA==".into()) };
        Job::new("b".parse().unwrap(), image, "other".into(), vec!["a".into(), "b".into()])
    };
    fleet.queue.enqueue(vec![ask(0)]).await.unwrap();
    let (results, _) = fleet.collect(&mut *subscriber, 2).await;
    assert!(results.values().all(|result| result.outcome == Outcome::Ok), "{results:?}");
    let models: Vec<Value> = api
        .asked()
        .iter()
        .map(|asked| serde_json::from_str::<Value>(&asked.body).unwrap()["models"].clone())
        .collect();
    assert_eq!(models, [serde_json::json!(["a", "b"]), serde_json::json!(["b"])]);
    // What was read of both is kept.
    fleet.queue.enqueue(vec![ask(1)]).await.unwrap();
    let (again, _) = fleet.collect(&mut *subscriber, 2).await;
    assert!(again.values().all(|result| result.cached), "{again:?}");
    assert_eq!(api.asked().len(), 2);
}
