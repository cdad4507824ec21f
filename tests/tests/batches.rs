//! `pixfleet batch`: a batch is stopped, goes on, ends and is closed, in a fleet and on a state file, while workers are at work.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "batches/manifest.rs"]
mod manifest;
#[path = "batches/stage.rs"]
mod stage;

use std::time::Duration;

use pixfleet_shared::result::Outcome;
use pixfleet_tests::{fleet::job, site::told};
use serde_json::Value;
use tokio::time::sleep;

use stage::{Stage, ended, json};

/// The word of a pause or an end has reached every worker, as documented.
const REACHED: Duration = Duration::from_secs(1);
/// How long it is watched that no call is made.
const WATCHED: Duration = Duration::from_secs(2);

/// Four workers under load: one batch is paused, the other goes on; then it is resumed, and nothing is lost or paid twice.
async fn a_pause_holds_and_a_resume_goes_on(mut stage: Stage) {
    let mut results = stage.fleet.subscribe("spring").await;
    stage.enqueue("spring", 250);
    stage.enqueue("summer", 1_000);
    stage.start_workers(4);
    stage.called("spring", 20).await;
    let said = told(stage.batch(&["pause", "spring", "--by", "night watch"]));
    assert!(said.contains("PAUSED    by night watch"), "{said}");
    sleep(REACHED).await;
    let (paused_at, others_at) = (stage.calls("spring").await, stage.calls("summer").await);
    sleep(WATCHED).await;
    assert_eq!(
        stage.calls("spring").await,
        paused_at,
        "calls left while it was paused\n{}",
        stage.fleet.logs()
    );
    assert!(paused_at < 250, "it was over before it was paused");
    stage.called("summer", others_at + 20).await;

    let shown = json(stage.batch(&["show", "spring", "--json"]));
    assert_eq!((&shown["state"], &shown["held"]["by"]), (&"paused".into(), &"night watch".into()), "{shown}");
    assert_eq!((&shown["jobs"], &shown["expected"]), (&250.into(), &250.into()), "{shown}");
    assert!(shown["set_aside"].as_u64().unwrap() > 0, "{shown}");
    // It takes more, and says that it waits.
    let (code, said, _) = ended(stage.enqueue_command("spring", 251));
    assert!(code == 0 && said.contains("the batch is paused by night watch"), "{said}");

    told(stage.batch(&["resume", "spring", "--by", "day watch"]));
    let (results, repetitions) = stage.fleet.collect(&mut *results, 251).await;
    assert!(results.values().all(|result| result.outcome == Outcome::Ok));
    assert_eq!((repetitions, stage.calls("spring").await), (0, 251), "each paid for once");
    let shown = stage.shown_when("spring", |shown| shown["complete"] == true).await;
    assert_eq!((&shown["set_aside"], &shown["held"]), (&0.into(), &Value::Null), "{shown}");
    // Nothing is left to be done: again does no harm.
    told(stage.batch(&["resume", "spring"]));
}

/// What a pause set aside is settled by a cancellation, without a call; and nothing brings it back.
async fn a_cancellation_settles_what_is_left_and_costs_nothing(mut stage: Stage) {
    let mut results = stage.fleet.subscribe("spring").await;
    stage.enqueue("spring", 400);
    stage.start_workers(2);
    stage.called("spring", 20).await;
    told(stage.batch(&["pause", "spring"]));
    stage.shown_when("spring", |shown| shown["set_aside"].as_u64() > Some(0)).await;
    let said = told(stage.batch(&["cancel", "spring", "--by", "wrong folder"]));
    assert!(said.contains("CANCELLED by wrong folder"), "{said}");
    let (results, _) = stage.fleet.collect(&mut *results, 400).await;
    let count = |outcome| results.values().filter(|result| result.outcome == outcome).count();
    let (ok, cancelled) = (count(Outcome::Ok), count(Outcome::Cancelled));
    assert!(cancelled > 0 && ok + cancelled == 400, "{ok} {cancelled}");
    assert_eq!(stage.calls("spring").await, ok, "a cancelled job made a call");
    let free = |result: &&pixfleet_shared::result::ImageResult| result.outcome == Outcome::Cancelled;
    assert!(results.values().filter(free).all(|result| result.call.is_none()));
    let shown = stage.shown_when("spring", |shown| shown["complete"] == true).await;
    assert_eq!(
        (&shown["tally"]["cancelled"], &shown["set_aside"]),
        (&cancelled.into(), &0.into()),
        "{shown}"
    );

    let (code, _, said) = ended(stage.batch(&["resume", "spring"]));
    assert!(code == 1 && said.contains("cancelled by wrong folder"), "{code} {said}");
    assert!(said.contains("can't be resumed") && said.contains("pixfleet batch manifest spring"), "{said}");
    let (code, _, said) = ended(stage.batch(&["pause", "spring"]));
    assert!(code == 1 && said.contains("nothing to pause"), "{code} {said}");
    let (code, _, said) = ended(stage.enqueue_command("spring", 401));
    assert!(code == 1 && said.contains("nothing is enqueued. Give another --batch"), "{code} {said}");
    let list = told(stage.batch(&["list", "--json"]));
    let first: Value = serde_json::from_str(list.lines().next().unwrap()).unwrap();
    assert_eq!((&first["batch"], &first["complete"]), (&"spring".into(), &true.into()), "{list}");
    let table = told(stage.batch(&["list"]));
    assert!(table.contains("cancelled by wrong folder") && table.contains("100.0 %"), "{table}");
    // Whoever reads the results is told the same counts.
    let summary = json(stage.fleet.command(&["results", "--batch", "spring", "--json"]));
    assert_eq!((&summary["cancelled"], &summary["done"]), (&cancelled.into(), &ok.into()), "{summary}");
    assert_eq!(summary["tally"]["cancelled"], cancelled, "{summary}");
}

/// A resume that is killed on its way puts back the rest when it is run again.
async fn a_resume_that_is_killed_is_run_again(mut stage: Stage) {
    let mut results = stage.fleet.subscribe("spring").await;
    stage.enqueue("spring", 600);
    told(stage.batch(&["pause", "spring"]));
    stage.start_workers(2);
    stage.shown_when("spring", |shown| shown["set_aside"] == 600).await;
    assert_eq!(stage.calls("spring").await, 0);
    for millis in [30, 120] {
        let mut resume = stage.batch(&["resume", "spring"]).spawn().unwrap();
        sleep(Duration::from_millis(millis)).await;
        resume.kill().unwrap();
        resume.wait().unwrap();
    }
    told(stage.batch(&["resume", "spring"]));
    // A kill may leave a job on both queues: its result may be told twice under one id, and it is paid for once.
    let (results, _) = stage.fleet.collect(&mut *results, 600).await;
    assert_eq!((results.len(), stage.calls("spring").await), (600, 600));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_reaches_four_workers_within_a_second_and_a_resume_loses_nothing() {
    a_pause_holds_and_a_resume_goes_on(Stage::fleet().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_reaches_four_processes_on_a_state_file_and_a_resume_loses_nothing() {
    a_pause_holds_and_a_resume_goes_on(Stage::one_machine().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_batch_of_a_fleet_makes_no_call_and_can_not_be_resumed() {
    a_cancellation_settles_what_is_left_and_costs_nothing(Stage::fleet().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_batch_of_a_state_file_makes_no_call_and_can_not_be_resumed() {
    a_cancellation_settles_what_is_left_and_costs_nothing(Stage::one_machine().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_of_a_fleet_that_is_killed_goes_on() {
    a_resume_that_is_killed_is_run_again(Stage::fleet().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_of_a_state_file_that_is_killed_goes_on() {
    a_resume_that_is_killed_is_run_again(Stage::one_machine().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_nobody_has_heard_of_is_refused_by_name_and_held_only_when_that_is_meant() {
    let stage = Stage::one_machine().await;
    for task in ["show", "pause", "resume", "cancel", "manifest"] {
        let (code, _, said) = ended(stage.batch(&[task, "sprong"]));
        assert!(code == 1 && said.contains("no batch `sprong` is known"), "{task}: {code} {said}");
        assert!(said.contains("pixfleet batch list"), "{task}: {said}");
    }
    told(stage.batch(&["pause", "later", "--anyway"]));
    let (code, said, _) = ended(stage.enqueue_command("later", 3));
    assert!(code == 0 && said.contains("the batch is paused by"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enqueue_without_redis_is_done_and_what_to_expect_is_known_once_it_is_told() {
    let mut stage = Stage::fleet().await;
    let mut results = stage.fleet.subscribe("spring").await;
    let mut command = stage.enqueue_command("spring", 20);
    command.env("PIXFLEET_REDIS_URL", "redis://127.0.0.1:1/0");
    let (code, _, said) = ended(command);
    assert!(code == 0 && said.contains("were not told what to expect"), "{code} {said}");
    stage.start_workers(1);
    stage.fleet.collect(&mut *results, 20).await;
    let shown = stage.shown_when("spring", |shown| shown["results"] == 20).await;
    assert_eq!((&shown["expected"], &shown["complete"]), (&Value::Null, &false.into()), "{shown}");
    let said = told(stage.batch(&["show", "spring"]));
    assert!(said.contains("it is not known how many to expect"), "{said}");
    // The same command tells it, and with it the end, which no worker will see any more.
    told(stage.enqueue_command("spring", 20));
    let shown = json(stage.batch(&["show", "spring", "--json"]));
    assert_eq!((&shown["expected"], &shown["complete"]), (&20.into(), &true.into()), "{shown}");
    let summary = json(stage.fleet.command(&["results", "--batch", "spring", "--json"]));
    assert_eq!(summary["tally"]["ok"], 20, "the event of its end: {summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_message_that_one_worker_has_in_hand_at_once_are_paid_for_once() {
    let mut stage = Stage::fleet().await;
    let mut results = stage.fleet.subscribe("spring").await;
    // As an enqueue or a resumption leaves them that was killed between a confirm and its record.
    for n in 0..100 {
        for _ in 0..2 {
            stage.fleet.queue.enqueue(vec![job("spring", n)]).await.unwrap();
        }
    }
    stage.start_workers(1);
    stage.fleet.collect(&mut *results, 100).await;
    // Copies come back until the ledger knows their jobs as settled.
    let page = "pixfleet_jobs_in_hand 0\n";
    stage.fleet.page_with(0, "/metrics", page).await;
    sleep(WATCHED).await;
    stage.fleet.page_with(0, "/metrics", page).await;
    assert_eq!(stage.fleet.sandbox.bill().total.charged, 100, "{}", stage.fleet.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_does_not_begin_on_a_paused_batch_and_settles_the_rest_of_a_cancelled_one() {
    let stage = Stage::one_machine().await;
    stage.enqueue("spring", 30);
    let out = stage.fleet.file("out.jsonl", "").with_file_name("results.jsonl");
    let run = || {
        let images = stage.fleet.file("again.csv", &stage::rows("spring", 30));
        let (images, out) = (images.to_str().unwrap().to_owned(), out.to_str().unwrap().to_owned());
        let line = ["run", &images, "--batch", "spring", "--models", "m", "--provider", "sandbox", "--quiet"];
        ended(stage.fleet.command(&[&line[..], &["--out", &out]].concat()))
    };
    told(stage.batch(&["pause", "spring", "--by", "night watch"]));
    let (code, _, said) = run();
    assert!(code == 1 && said.contains("paused by night watch"), "{code} {said}");
    assert!(said.contains("pixfleet batch resume spring --state"), "{said}");
    told(stage.batch(&["cancel", "spring", "--by", "wrong folder"]));
    let (code, report, said) = run();
    assert!(code == 0 && said.contains("cancelled by wrong folder"), "{code} {report} {said}");
    assert!(report.contains("batch spring is complete: 30 of 30 results: 0 done"), "{report}");
    assert!(report.contains("30 cancelled"), "{report}");
    assert_eq!(stage.calls("spring").await, 0);
    assert_eq!(std::fs::read_to_string(&out).unwrap().lines().count(), 30);
}
