//! Outputs between two runs: deleted, added, full; and a state file whose disk is full.

use std::{fs, os::unix::fs::symlink, process::Stdio};

use crate::stage::{Stage, end};

const RUN: &str = "run images.csv --provider api --models m --batch b";

#[tokio::test]
async fn an_output_that_was_deleted_or_added_between_two_runs_gets_every_result() {
    let stage = Stage::new(0).await;
    stage.manifest("images.csv", 0, 30);
    let before = ["a.jsonl", "a.csv", "a.parquet", "a.sqlite"];
    let line = format!("{RUN} --out a.jsonl --out a.csv --out a.parquet --out a.sqlite");
    stage.done(&line).await.assert(0, &[], "the first run");
    for output in before {
        fs::remove_file(stage.path(output)).unwrap();
    }
    let added = ["b.jsonl", "b.csv", "b.parquet", "b.sqlite"];
    let line = format!("{line} --out b.jsonl --out b.csv --out b.parquet --out b.sqlite");
    stage.done(&line).await.assert(0, &[], "the second run");
    stage.hold_each_once(&[before, added].concat(), 30);
    assert_eq!(stage.bill(), 30, "nothing is paid for twice");
}

#[tokio::test]
async fn an_output_on_a_full_disk_stops_the_run_and_loses_nothing() {
    assert!(
        fs::exists("/dev/full").unwrap(),
        "this test needs /dev/full, a disk that is always full: run it on Linux"
    );
    let stage = Stage::new(0).await;
    stage.manifest("images.csv", 0, 30);
    symlink("/dev/full", stage.path("full.csv")).unwrap();
    let line = format!("{RUN} --out full.csv --out good.jsonl");
    let says = ["full.csv", "make room on its disk", "run the same command again", "b.pixfleet"];
    stage.done(&line).await.assert(1, &says, "a full disk");

    fs::remove_file(stage.path("full.csv")).unwrap();
    stage.done(&line).await.assert(0, &[], "the disk has room again");
    stage.hold_each_once(&["full.csv", "good.jsonl"], 30);
}

#[tokio::test]
async fn a_state_file_on_a_full_disk_stops_the_run_and_loses_nothing() {
    let stage = Stage::new(0).await;
    stage.manifest("images.csv", 0, 3_000);
    fs::create_dir(stage.path("small")).unwrap();
    let binary = pixfleet_tests::fleet::pixfleet();
    let run = format!("{} {RUN} --out r.jsonl --state small/s.pixfleet --quiet", binary.display());
    // In a mount namespace of its own: the small disk goes with it, and nobody else sees it.
    let script = format!(
        "mount -t tmpfs -o size=400k none small || exit 99\n{run}; echo \"full: $?\"\n\
         mount -o remount,size=64m small || exit 99\n{run}; echo \"mended: $?\""
    );
    let mut command = tokio::process::Command::new("unshare");
    command
        .args(["--map-root-user", "--mount", "sh", "-c", &script])
        .current_dir(stage.folder.path())
        .env("GENERIC_API_KEY", crate::stage::KEY)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let ended = end(command.spawn().expect("unshare is needed: apt-get install util-linux"), "unshare").await;
    let needed = "this test mounts a small disk: it needs root or user namespaces";
    assert_eq!(ended.code, Some(0), "{needed}\n{}", ended.stderr);
    assert!(ended.stderr.contains("the disk is full: the state file small/s.pixfleet"), "{ended:?}");
    assert!(ended.stderr.contains("make room, then run the same command again"), "{ended:?}");
    assert!(ended.stdout.contains("full: 1") && ended.stdout.contains("mended: 0"), "{ended:?}");
    stage.hold_each_once(&["r.jsonl"], 3_000);
}

#[tokio::test]
async fn an_output_that_was_cut_is_refused_until_it_is_deleted() {
    let stage = Stage::new(0).await;
    stage.manifest("images.csv", 0, 30);
    let line = format!("{RUN} --out r.jsonl");
    stage.done(&line).await.assert(0, &[], "the first run");
    let cut: String = stage.read("r.jsonl").lines().take(3).map(|line| format!("{line}\n")).collect();
    stage.write("r.jsonl", &cut);
    let says = ["`r.jsonl` has ", "delete the file to have it written anew"];
    stage.done(&line).await.assert(1, &says, "a shorter output");
    assert_eq!(stage.read("r.jsonl"), cut, "it is left as it was");
    fs::remove_file(stage.path("r.jsonl")).unwrap();
    stage.done(&line).await.assert(0, &[], "deleted");
    stage.hold_each_once(&["r.jsonl"], 30);
}
