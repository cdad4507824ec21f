//! Several processes on one state file: what may go on beside a run, and what may not.

use std::time::Duration;

use tokio::time::timeout;

use crate::stage::{PATIENCE, Stage, end, jsonl_ids, signal};

const RUN: &str = "run images.csv --provider api --models m --batch b --out r.jsonl --state s.pixfleet";

#[tokio::test]
async fn others_enqueue_work_and_read_on_the_state_file_of_a_run() {
    let stage = Stage::new(50).await;
    stage.manifest("images.csv", 0, 200);
    stage.manifest("others.csv", 0, 50);
    let run = stage.start(RUN);
    stage.charged(10).await;
    let results = stage.start("results --batch b --state s.pixfleet");
    let line = "enqueue others.csv --provider api --models m --batch other --state s.pixfleet";
    stage.done(line).await.assert(0, &[], "an enqueue beside a run");
    let worker = stage.start("worker --state s.pixfleet --set admin.listen=");
    let others = stage.done("results --batch other --state s.pixfleet --timeout 25s").await;
    others.assert(0, &["batch other is complete: 50 of 50 results: 50 done"], "the other batch");

    end(run, RUN).await.assert(0, &[], "the run");
    let seen = end(results, "results").await;
    seen.assert(0, &["batch b is complete: 200 of 200 results"], "results beside a run");
    signal(&worker, "TERM");
    end(worker, "worker").await.assert(0, &[], "the worker");
    stage.hold_each_once(&["r.jsonl"], 200);
    let mut read = jsonl_ids(&seen.stdout);
    let mut collected = stage.ids("r.jsonl");
    read.sort();
    collected.sort();
    assert_eq!(read, collected, "whoever reads sees what the run collects");
    assert_eq!(jsonl_ids(&others.stdout).len(), 50);
    assert_eq!(stage.bill(), 250, "each image is paid for once, whoever asks");
}

#[tokio::test]
async fn a_second_run_of_a_batch_that_is_under_way_is_refused_and_does_no_harm() {
    let stage = Stage::new(50).await;
    stage.manifest("images.csv", 0, 200);
    let run = stage.start(RUN);
    stage.charged(10).await;
    let says =
        ["another `pixfleet run` is at work on batch `b` (state: s.pixfleet)", "wait for it, or end it"];
    stage.done(RUN).await.assert(1, &says, "the same command at the same time");
    stage.done(&format!("{RUN} --out more.csv")).await.assert(1, &says, "the same batch at the same time");
    end(run, RUN).await.assert(0, &[], "the first run");
    stage.hold_each_once(&["r.jsonl"], 200);
    assert_eq!(stage.bill(), 200);
    stage.done(RUN).await.assert(0, &[], "once the first has ended");
}

#[tokio::test]
async fn two_batches_never_write_into_one_output() {
    let stage = Stage::new(50).await;
    stage.manifest("images.csv", 0, 100);
    let run = stage.start(RUN);
    stage.charged(10).await;
    let other = RUN.replace("--batch b", "--batch other");
    let says = ["`r.jsonl` is in use by another program"];
    stage.done(&other).await.assert(1, &says, "another batch, the same output, at the same time");
    let elsewhere = other.replace("s.pixfleet", "other.pixfleet");
    stage.done(&elsewhere).await.assert(1, &says, "another state file, the same output, at the same time");
    end(run, RUN).await.assert(0, &[], "the first run");
    let says =
        ["`r.jsonl` exists", "batch `other` of s.pixfleet did not begin that file", "give another name"];
    stage.done(&other).await.assert(1, &says, "another batch, the same output, afterwards");
    stage.hold_each_once(&["r.jsonl"], 100);
    stage.done(RUN).await.assert(0, &[], "the first batch goes on with its output");
    stage.hold_each_once(&["r.jsonl"], 100);
}

#[tokio::test]
async fn a_run_that_came_to_nothing_lays_no_claim_to_its_output() {
    let stage = Stage::new(0).await;
    stage.manifest("images.csv", 0, 30);
    let refused = stage.command(RUN).env("GENERIC_API_KEY", "wrong").spawn().unwrap();
    end(refused, RUN).await.assert(1, &["refuses the account"], "a wrong key");
    let other = RUN.replace("--batch b", "--batch other").replace("s.pixfleet", "other.pixfleet");
    stage.done(&other).await.assert(0, &[], "another batch, the same output");
    let written = stage.read("r.jsonl");
    stage.done(RUN).await.assert(
        1,
        &["`r.jsonl` exists", "batch `b` of s.pixfleet did not begin"],
        "the first one again",
    );
    assert_eq!(stage.read("r.jsonl"), written, "the output is as it was");
}

#[tokio::test]
async fn two_batches_of_one_state_file_have_their_own_results() {
    let stage = Stage::new(0).await;
    stage.manifest("images.csv", 0, 30);
    let other = RUN.replace("--batch b", "--batch other").replace("r.jsonl", "other.jsonl");
    stage.done(RUN).await.assert(0, &[], "one batch");
    stage.done(&other).await.assert(0, &[], "another batch");
    for (output, batch) in [("r.jsonl", "b"), ("other.jsonl", "other")] {
        let lines = stage.read(output);
        assert_eq!(lines.lines().count(), 30, "{output}");
        assert!(lines.lines().all(|line| line.contains(&format!("\"batch\":\"{batch}\""))), "{output}");
    }
}

#[tokio::test]
async fn a_run_waits_for_nobody_that_died() {
    let stage = Stage::new(10 * PATIENCE.as_millis() as u64).await;
    stage.manifest("images.csv", 0, 10);
    let run = stage.start(RUN);
    crate::stage::wait_for(|| stage.sandbox.bill().in_flight > 0, "a call in flight").await;
    crate::stage::kill(run).await;
    let stage = stage.with_latency(0).await;
    // What it had in hand, and that it was at work, is free at once: a lease would hold for 15 s.
    let again = timeout(Duration::from_secs(10), stage.done(RUN)).await;
    again.expect("nobody waits for the lease of the dead").assert(0, &[], "after a kill");
    stage.hold_each_once(&["r.jsonl"], 10);
}
