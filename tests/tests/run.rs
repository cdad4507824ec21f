//! `pixfleet run` as a user has it: one command, one state file, no server; whatever ends it in between.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "run/files.rs"]
mod files;
#[path = "run/mended.rs"]
mod mended;
#[path = "run/refusals.rs"]
mod refusals;
#[path = "run/refused_files.rs"]
mod refused_files;
#[path = "run/sharing.rs"]
mod sharing;
#[path = "run/stage.rs"]
mod stage;

use std::fs;

use pixfleet_sandbox::answer::label_for;
use pixfleet_tests::fleet::image_url;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::timeout,
};

use stage::{KINDS, PATIENCE, Stage, end, kill, parsed, signal};

/// A run with outputs of every kind.
const RUN: &str = "run images.csv --provider api --models m --batch b --out r.jsonl --out r.csv --out r.parquet --out r.sqlite";
/// Calls that can be in flight, as the stage's settings say.
const IN_FLIGHT: u64 = 8;

#[tokio::test]
async fn one_command_asks_about_every_image_and_fills_outputs_of_every_kind() {
    let stage = Stage::new(0).await;
    stage.manifest("images.csv", 0, 40);
    let ended = stage.done(&format!("{RUN} --json --quiet")).await;
    ended.assert(0, &[], "a run");
    assert_eq!(ended.stderr, "", "--quiet");
    let report = parsed(ended.stdout.trim_end());
    assert_eq!(
        (&report["complete"], &report["results"], &report["done"]),
        (&true.into(), &40.into(), &40.into())
    );
    stage.hold_each_once(&KINDS, 40);
    for line in stage.read("r.jsonl").lines().map(parsed) {
        let number: usize = line["image"].as_str().unwrap()[1..].parse().unwrap();
        let label = &line["answer"]["labels"][0]["label"];
        assert_eq!(label, &label_for(&image_url(number), "m"), "the answer of image {number}");
    }
    assert_eq!(stage.bill(), 40);
    let files = ["b.pixfleet", "images.csv", "pixfleet.toml", "r.csv", "r.jsonl", "r.parquet", "r.sqlite"];
    assert!(stage.names().iter().eq(files), "no half files, no journals: {:?}", stage.names());

    // The same once more: everything is there, and nothing is paid for.
    stage.done(RUN).await.assert(0, &[], "the same command again");
    stage.hold_each_once(&KINDS, 40);
    assert_eq!(stage.bill(), 40, "nothing is paid for twice");
}

#[tokio::test]
async fn without_any_name_the_manifest_names_the_batch_the_output_and_the_state() {
    let stage = Stage::new(0).await;
    stage.manifest("kitchens.csv", 0, 3);
    let ended = stage.done("run kitchens.csv --provider api --models m").await;
    ended.assert(0, &[], "a run");
    assert!(ended.stdout.contains("results: kitchens.jsonl; state: kitchens.pixfleet"), "{}", ended.stdout);
    stage.hold_each_once(&["kitchens.jsonl"], 3);
    assert!(stage.path("kitchens.pixfleet").is_file());
}

#[tokio::test]
async fn a_run_that_is_killed_goes_on_by_the_same_command_and_every_result_is_there_once() {
    let stage = Stage::new(100).await;
    stage.manifest("images.csv", 0, 200);
    let child = stage.start(RUN);
    let paid = stage.charged(60).await;
    kill(child).await;
    assert!(paid < 200, "it was killed in the middle, not after {paid} calls");

    stage.done(RUN).await.assert(0, &[], "the same command again");
    stage.hold_each_once(&KINDS, 200);
    let paid = stage.bill();
    assert!(
        (200..=200 + IN_FLIGHT).contains(&paid),
        "{paid} calls: only those in flight may be paid for again"
    );
}

#[tokio::test]
async fn ctrl_c_finishes_what_is_in_flight_and_the_same_command_goes_on() {
    let stage = Stage::new(50).await;
    stage.manifest("images.csv", 0, 200);
    let child = stage.start(RUN);
    stage.charged(40).await;
    signal(&child, "INT");
    let ended = end(child, RUN).await;
    ended.assert(
        4,
        &["stopping: calls in flight are finished", "run the same command again to go on"],
        "Ctrl-C",
    );
    assert!(ended.stdout.contains("batch b is not complete"), "{}", ended.stdout);
    let paid = stage.bill();
    assert!(paid < 200, "it stopped in the middle, not after {paid} calls");
    stage.hold_each_once(&KINDS, paid as usize);

    stage.done(RUN).await.assert(0, &[], "the same command again");
    stage.hold_each_once(&KINDS, 200);
    assert_eq!(stage.bill(), 200, "nothing was in flight, so nothing is paid for twice");
}

#[tokio::test]
async fn a_second_ctrl_c_stops_at_once_and_the_same_command_goes_on_all_the_same() {
    // Calls that take longer than the test's patience: whoever waits for one fails it.
    let stage = Stage::new(10 * PATIENCE.as_millis() as u64).await;
    stage.manifest("images.csv", 0, 20);
    let mut child = stage.start(RUN);
    stage::wait_for(|| stage.sandbox.bill().in_flight == IN_FLIGHT, "calls in flight").await;
    signal(&child, "INT");
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let stopping =
        async { while !said.next_line().await.unwrap().expect("a word").starts_with("stopping") {} };
    timeout(PATIENCE, stopping).await.expect("it says that it stops");
    signal(&child, "INT");
    assert_eq!(end(child, RUN).await.code, Some(4), "the second one ends it");

    let stage = stage.with_latency(0).await;
    stage.done(RUN).await.assert(0, &[], "the same command again");
    stage.hold_each_once(&KINDS, 20);
}

#[tokio::test]
async fn the_pictures_of_a_folder_reach_the_api_as_their_bytes() {
    let stage = Stage::new(0).await;
    let mut hashes = Vec::new();
    for name in ["a.jpg", "deeper/b.jpg"] {
        let bytes = [b"\xff\xd8\xff\xe0 a picture named ".as_slice(), name.as_bytes()].concat();
        let path = stage.path("scans").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &bytes).unwrap();
        hashes.push(Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    }
    stage.write("scans/notes.txt", "no picture");
    let ended = stage.done("run scans/ --provider api --models m").await;
    ended.assert(0, &[], "a folder");
    let mut seen: Vec<String> =
        stage.sandbox.access().await.into_iter().filter_map(|line| line.image).collect();
    seen.sort();
    hashes.sort();
    assert_eq!(seen, hashes, "the bytes that the API was sent");
    stage.hold_each_once(&["scans.jsonl"], 2);
}
