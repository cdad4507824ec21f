//! Budgets: what a batch may spend is never overspent, and spent to the full, whoever dies.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, process::Output};

use pixfleet_sandbox::{Faults, Latency, Sandbox, Settings};
use pixfleet_shared::{
    budget::Budget,
    id::Id,
    job::Job,
    result::{ImageResult, Outcome},
};
use pixfleet_tests::{
    fleet::{Fleet, KEY, job},
    one_machine::OneMachine,
};
use serde_json::Value;
use tokio::net::TcpListener;

/// A cent a call, and far more slots than the budgets need.
const A_CENT: &str = "cost = { price = 0.01 }\nlimits = [{ name = \"rate\", calls = 200 }]";

fn sandbox(latency_ms: u64, error_500: f64) -> Settings {
    Settings {
        keys: vec![KEY.into()],
        latency: Latency::Constant { ms: latency_ms },
        faults: Faults { error_500, ..Faults::default() },
        ..Settings::default()
    }
}

fn with_budget(batch: &str, budget: Budget) -> Job {
    Job { budget: Some(budget), ..job(batch, 0) }
}

/// How many of the batch's results are answers; the others have to say that the budget is spent.
fn answered(results: &BTreeMap<Id, ImageResult>, batch: &str, budget: &str) -> usize {
    let of_batch = results.values().filter(|result| result.batch.as_str() == batch);
    let (answered, failed): (Vec<_>, Vec<_>) = of_batch.partition(|result| result.outcome == Outcome::Ok);
    for result in failed {
        let failure = result.failure.as_ref().unwrap();
        assert_eq!((result.outcome, failure.class.as_str()), (Outcome::Dead, "budget-spent"), "{result:?}");
        assert_eq!(failure.message, format!("the batch's budget of {budget} is spent"));
        assert!(result.call.is_none(), "nothing was called: {result:?}");
    }
    answered.len()
}

async fn four_workers(fleet: &mut Fleet) {
    for _ in 0..4 {
        let worker = fleet.start_worker();
        fleet.ready(worker).await;
    }
}

async fn each_batch_spends_its_own_budget_to_the_full(mut fleet: Fleet) {
    let mut subscriber = fleet.subscribe_to_all().await;
    four_workers(&mut fleet).await;
    fleet.enqueue_like(&with_budget("calls", Budget::Calls(40)), 0, 100).await;
    fleet.enqueue_like(&with_budget("money", Budget::Thousandths(500)), 1_000, 100).await;
    fleet.enqueue_like(&with_budget("poor", Budget::Thousandths(9)), 2_000, 20).await;
    fleet.enqueue_like(&job("free", 0), 3_000, 30).await;
    let (results, repetitions) = fleet.collect(&mut *subscriber, 250).await;
    assert_eq!(repetitions, 0);
    assert_eq!(answered(&results, "calls", "40 calls"), 40);
    assert_eq!(answered(&results, "money", "0.5 USD"), 50, "half a dollar at a cent a call");
    assert_eq!(answered(&results, "poor", "0.009 USD"), 0, "less than a call costs");
    assert_eq!(answered(&results, "free", "none"), 30, "a batch without a budget goes on");
    let bill = fleet.sandbox.bill().total;
    assert_eq!((bill.calls, bill.charged), (120, 120), "{}", fleet.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn four_workers_spend_each_batchs_budget_to_the_full_and_never_more() {
    each_batch_spends_its_own_budget_to_the_full(Fleet::start(sandbox(20, 0.0), A_CENT, "").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_workers_on_a_state_file_spend_each_batchs_budget_to_the_full_and_never_more() {
    let fleet = Fleet::on_one_machine(sandbox(20, 0.0), A_CENT, "").await;
    each_batch_spends_its_own_budget_to_the_full(fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_failed_and_are_not_charged_are_given_back_to_the_budget() {
    let retry = "[worker.retry]\nattempts = 30\nbase_ms = 10\ncap_ms = 20";
    let mut fleet = Fleet::start(sandbox(20, 0.4), A_CENT, retry).await;
    let mut subscriber = fleet.subscribe("b").await;
    four_workers(&mut fleet).await;
    fleet.enqueue_like(&with_budget("b", Budget::Thousandths(500)), 0, 120).await;
    let (results, _) = fleet.collect(&mut *subscriber, 120).await;
    let bill = fleet.sandbox.bill().total;
    assert!(bill.faulted > 0, "the API never failed");
    assert_eq!((answered(&results, "b", "0.5 USD"), bill.charged), (50, 50), "{}", fleet.logs());
    assert_eq!(bill.calls, 50 + bill.faulted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_mid_run_takes_its_part_of_the_budget_with_it_and_nothing_is_overspent() {
    let mut fleet = Fleet::start(sandbox(200, 0.0), A_CENT, "").await;
    let mut subscriber = fleet.subscribe("b").await;
    four_workers(&mut fleet).await;
    fleet.enqueue_like(&with_budget("b", Budget::Calls(80)), 0, 200).await;
    let (mut results, _) = fleet.collect(&mut *subscriber, 20).await;
    fleet.kill(0);
    while results.len() < 200 {
        let (more, _) = fleet.collect(&mut *subscriber, 1).await;
        results.extend(more);
    }
    let (answered, charged) = (answered(&results, "b", "80 calls"), fleet.sandbox.bill().total.charged);
    // What it had reserved is spent, whether it was called or not: no more than it had in hand.
    assert!((50..=80).contains(&charged), "{charged} charged\n{}", fleet.logs());
    assert!(answered as u64 <= charged, "{answered} answered, {charged} charged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_with_a_budget_is_complete_once_that_is_spent_and_a_second_one_spends_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = Sandbox::start(listener, sandbox(5, 0.0)).unwrap();
    let machine = OneMachine::new(60, &api.url());
    let settings = std::fs::read_to_string(machine.path().join("pixfleet.toml")).unwrap();
    std::fs::write(machine.path().join("pixfleet.toml"), settings + A_CENT).unwrap();
    let run = |budget: &'static str| {
        let mut command = machine.run(&["o.jsonl"], 8);
        command.args(["--budget", budget]);
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    let report = reported(&run("0.25").await.unwrap());
    assert_eq!(
        (&report["complete"], &report["done"], &report["dead"]),
        (&true.into(), &25.into(), &35.into())
    );
    assert!(machine.judge("o.jsonl").is_clean(), "{:?}", machine.judge("o.jsonl"));
    assert_eq!(api.bill().total.charged, 25);
    reported(&run("0.25").await.unwrap());
    let other = run("0.5").await.unwrap();
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(said.contains("begun with budget `0.25`, and now it is `0.5`"), "{said}");
    assert_eq!(api.bill().total.charged, 25, "the budget of a batch is one, however often it is run");
}

fn reported(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(said.trim_end()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_how_far_a_budget_goes_and_a_bad_budget_is_refused() {
    let machine = OneMachine::new(60, "http://127.0.0.1:1");
    let settings = std::fs::read_to_string(machine.path().join("pixfleet.toml")).unwrap();
    let with_price = |price: &str| {
        std::fs::write(
            machine.path().join("pixfleet.toml"),
            format!("{settings}cost = {{ price = {price} }}\n"),
        )
        .unwrap();
    };
    let enqueue = |budget: &str| {
        let line =
            ["enqueue", "m.csv", "--models", "m", "--batch", "b", "--dry-run", "--state", "s.pixfleet"];
        let mut enqueue = machine.command(&line);
        enqueue.args(["--budget", budget]);
        let output = enqueue.output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap(),
        )
    };
    with_price("0.01");
    for (budget, code, says) in [
        ("0.25", 0, "the budget of 0.25 USD covers 25 of 60 images: 35 would be dead letters"),
        ("2000calls", 0, "the budget of 2000 calls covers all 60 images"),
        ("0.005", 2, "a budget of 0.005 USD pays for no call of `sandbox`, which costs 0.01 USD"),
        ("0", 2, "give more than 0"),
        ("-3", 2, "give more than 0"),
        ("500EUR", 2, "`500EUR` is no budget: give an amount in the provider's currency"),
        ("all", 2, "`all` is no budget"),
    ] {
        let (ended, said) = enqueue(budget);
        assert!(ended == Some(code) && said.contains(says), "{budget}: {ended:?} {said}");
    }
    with_price("0");
    let (ended, said) = enqueue("5");
    let says = "a call of `sandbox` costs nothing, so a budget of 5 USD bounds nothing";
    assert!(ended == Some(2) && said.contains(says) && said.contains("like 2000calls"), "{ended:?} {said}");
}
