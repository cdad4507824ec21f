//! The manifest that closes a batch: it agrees with what was promised, or says what does not.

use std::{collections::BTreeMap, path::Path, process::Command};

use pixfleet_tests::site::told;
use serde_json::Value;

use crate::stage::{Stage, ended, json};

fn manifest(stage: &Stage, further: &[&str]) -> Command {
    stage.batch(&[&["manifest", "spring"], further].concat())
}

fn rows(path: &Path) -> Vec<BTreeMap<String, String>> {
    csv::Reader::from_path(path).unwrap().deserialize().map(Result::unwrap).collect()
}

async fn a_batch_is_closed_with_a_line_for_each_image_and_model(mut stage: Stage) {
    stage.enqueue("spring", 60);
    stage.enqueue("other", 5);
    // Nothing works on it yet.
    let (code, said, _) = ended(manifest(&stage, &["--json"]));
    let running: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &running["running"], &running["lines"]), (4, &true.into(), &0.into()), "{running}");
    stage.start_workers(2);
    stage.shown_when("spring", |shown| shown["complete"] == true).await;
    let out = stage.fleet.file("closed.csv", "");
    let closed = json(manifest(&stage, &["--json", "--out", out.to_str().unwrap()]));
    assert_eq!(
        (&closed["ok"], &closed["lines"], &closed["expected"]),
        (&true.into(), &60.into(), &60.into())
    );
    assert_eq!((&closed["counts"], &closed["counts"]["ok"]), (&closed["tally"], &60.into()), "{closed}");
    assert!(closed["completed_at"].is_string(), "its end was announced: {closed}");
    let lines = rows(&out);
    let mut images: Vec<&str> = lines.iter().map(|line| line["image"].as_str()).collect();
    images.sort_unstable();
    images.dedup();
    assert_eq!((lines.len(), images.len()), (60, 60), "each image once");
    assert!(
        lines.iter().all(|line| line["outcome"] == "ok" && line["model"] == "m" && line["cost"] == "0.01")
    );
    assert!(lines.iter().all(|line| line["call"].len() == 32 && line["job"].len() == 32));
    // It is not written over.
    let (code, _, said) = ended(manifest(&stage, &["--out", out.to_str().unwrap()]));
    assert!(code == 1 && said.contains("holds something"), "{code} {said}");
    let (code, _, said) = ended(manifest(&stage, &["--out", "closed.txt"]));
    assert!(code == 2 && said.contains(".csv or .jsonl"), "{code} {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_a_fleet_is_closed_with_a_line_for_each_image_and_model() {
    a_batch_is_closed_with_a_line_for_each_image_and_model(Stage::fleet().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_a_state_file_is_closed_with_a_line_for_each_image_and_model() {
    a_batch_is_closed_with_a_line_for_each_image_and_model(Stage::one_machine().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_the_log_has_lost_is_missed_and_named() {
    let mut stage = Stage::one_machine().await;
    let rows: String = (0..12).map(|n| format!("i{n},http://images.example/{n}.jpg\n")).collect();
    let images = stage.fleet.file("images.csv", &format!("id,url\n{rows}"));
    let images = images.to_str().unwrap();
    let models = ["--models", "m,n", "--models-per-call", "1"];
    let enqueue = ["enqueue", images, "--batch", "spring", "--provider", "sandbox", "--quiet"];
    told(stage.fleet.command(&[&enqueue[..], &models].concat()));
    stage.start_workers(1);
    stage.shown_when("spring", |shown| shown["complete"] == true).await;
    let whole = json(manifest(&stage, &["--json", "--images", images]));
    assert_eq!((&whole["ok"], &whole["lines"], &whole["missing"]), (&true.into(), &24.into(), &0.into()));

    // One model of an image, and all of another image.
    let state = rusqlite::Connection::open(Path::new(images).with_file_name("fleet.pixfleet")).unwrap();
    let lose = "DELETE FROM log WHERE kind = 0 AND body ->> 'image' = ?1 AND body ->> 'model' LIKE ?2";
    assert_eq!(state.execute(lose, ["i3", "n"]).unwrap() + state.execute(lose, ["i7", "%"]).unwrap(), 3);
    let (code, said, _) = ended(manifest(&stage, &["--json"]));
    let lost: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &lost["missing"], &lost["counts"]["ok"]), (1, &3.into(), &21.into()), "{lost}");
    let named = lost["missing_named"].as_array().unwrap();
    assert_eq!(named[0], serde_json::json!({ "image": "i3", "model": "n" }), "{lost}");
    // Of an image of which nothing is there, the record knows the jobs; the manifest knows the rows.
    assert_eq!(named.iter().filter(|missing| missing["job"].is_string()).count(), 2, "{lost}");
    let (code, said, _) = ended(manifest(&stage, &["--images", images]));
    assert_eq!(code, 1, "{said}");
    for line in ["missing: i3 n", "missing: i7 m", "missing: i7 n", "3 results are missing in the log"] {
        assert!(said.contains(line), "{line} is not in\n{said}");
    }
    assert!(said.contains("ok: 21 lines in the log, 24 counted by the fleet"), "{said}");
}

/// Dead letters that are sent again count as what came of them; their first results are in the log, too.
async fn a_replayed_dead_letter_counts_as_its_last_word(mut stage: Stage) {
    stage.enqueue("spring", 50);
    stage.start_workers(1);
    stage.shown_when("spring", |shown| shown["complete"] == true).await;
    let before = json(manifest(&stage, &["--json"]));
    let dead = before["counts"]["dead"].as_u64().unwrap();
    assert!(dead > 5 && before["ok"] == true, "{before}");
    told(stage.fleet.command(&["dead", "replay", "--batch", "spring", "--yes"]));
    stage
        .shown_when("spring", |shown| {
            shown["complete"] == true && shown["tally"]["ok"].as_u64() > Some(50 - dead)
        })
        .await;
    let out = stage.fleet.file("closed.jsonl", "");
    let (code, said, told) = ended(manifest(&stage, &["--json", "--out", out.to_str().unwrap()]));
    assert_eq!(code, 0, "{said}{told}");
    let after: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&after["lines"], &after["counts"]), (&50.into(), &after["tally"]), "{after}");
    assert!(after["counts"]["ok"].as_u64() > before["counts"]["ok"].as_u64(), "{before} {after}");
    assert_eq!(std::fs::read_to_string(&out).unwrap().lines().count(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_of_a_fleet_that_is_sent_again_counts_as_its_last_word() {
    a_replayed_dead_letter_counts_as_its_last_word(Stage::of_failures(true).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_of_a_state_file_that_is_sent_again_counts_as_its_last_word() {
    a_replayed_dead_letter_counts_as_its_last_word(Stage::of_failures(false).await).await;
}
