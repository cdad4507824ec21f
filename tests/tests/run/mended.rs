//! Refusals that are about an earlier run, and those that are mended: the same command then goes on.

use std::fs;

use pixfleet_tests::fleet::image_url;
use rusqlite::Connection;

use crate::{refusals::AT, stage::Stage};

#[tokio::test]
async fn a_run_that_is_another_one_or_whose_state_is_damaged_is_refused() {
    let stage = Stage::new(0).await;
    stage.manifest("images.csv", 0, 30);
    stage.manifest("others.csv", 1_000, 1_030);
    let run = format!("run images.csv {AT} --batch b");
    stage.done(&run).await.assert(0, &[], "the first run");
    let good = fs::read(stage.path("b.pixfleet")).unwrap();
    let output = stage.read("b.jsonl");
    for (name, line, says) in [
        (
            "another manifest",
            run.replace("images.csv", "others.csv"),
            ["the manifest is not the one that batch `b`", "Give another --batch"],
        ),
        (
            "another model",
            run.replace("--models m", "--models n"),
            ["with models `m`, and now it is `n`", "choose another --batch"],
        ),
        (
            "another provider",
            run.replace("--provider api", "--provider restb").replace("--models m", "--models re_logo"),
            ["with provider `api`, and now it is `restb`", "keep to `api`"],
        ),
    ] {
        let ended = stage.done(&line).await;
        ended.assert(1, &says, name);
        assert!(!ended.stdout.contains("not complete"), "{name}: the batch is as it was\n{}", ended.stdout);
    }
    stage.done(&run).await.assert(0, &[], "the first run's command again");

    let db = Connection::open(stage.path("b.pixfleet")).unwrap();
    db.pragma_update(None, "user_version", 9).unwrap();
    drop(db);
    let says = ["b.pixfleet is of format 9", "use the newer pixfleet"];
    stage.done(&run).await.assert(1, &says, "a later format");
    for (name, keep) in [("cut off", 5_000), ("overwritten", 4_096)] {
        let mut bytes = good.clone();
        if name == "cut off" {
            bytes.truncate(keep)
        } else {
            bytes[keep..].fill(0xa5)
        }
        fs::write(stage.path("b.pixfleet"), bytes).unwrap();
        let says = ["the state file b.pixfleet is damaged", "restore it from a backup", "another --state"];
        stage.done(&run).await.assert(1, &says, name);
        assert_eq!(stage.read("b.jsonl"), output, "{name}: the output is as it was");
    }
    fs::write(stage.path("b.pixfleet"), good).unwrap();
    stage.done(&run).await.assert(0, &[], "the state file is restored");
    assert_eq!(stage.bill(), 30, "nothing of it was paid for");
}

#[tokio::test]
async fn a_key_that_is_mended_goes_on_by_the_same_command_without_a_wait() {
    let stage = Stage::new(0).await;
    stage.manifest("images.csv", 0, 30);
    let line = format!("run images.csv {AT} --batch b");
    let refused = stage.command(&line).env("GENERIC_API_KEY", "wrong").spawn().unwrap();
    let refused = crate::stage::end(refused, "a wrong key").await;
    refused.assert(1, &["GENERIC_API_KEY"], "a wrong key");
    let told = refused.stderr.matches("the account is refused").count();
    assert_eq!(told, 1, "the calls in flight beside it say nothing new\n{}", refused.stderr);
    // Within the test's patience, which is half of the pause that a worker makes.
    stage.done(&line).await.assert(0, &[], "the right key");
    stage.hold_each_once(&["b.jsonl"], 30);
}

#[tokio::test]
async fn a_bad_row_stops_the_run_and_once_it_is_mended_the_same_command_goes_on() {
    let stage = Stage::new(0).await;
    let rows = |third: &str| {
        format!("id,url\na,{}\nb,{}\nc,{third}\nd,{}\n", image_url(1), image_url(2), image_url(4))
    };
    stage.write("images.csv", &rows("not a url"));
    let line = format!("run images.csv {AT} --batch b");
    let says = [
        "images.csv:4: url: ",
        "stopped at this row: mend it and run the same command again",
        "--bad-rows skip",
    ];
    stage.done(&line).await.assert(1, &says, "a bad row");
    stage.write("images.csv", &rows(&image_url(3)));
    stage.done(&line).await.assert(0, &[], "mended");
    stage.hold_each_once(&["b.jsonl"], 4);
    assert_eq!(stage.bill(), 4);

    stage.write("images.csv", &rows("not a url"));
    let kept = stage.done(&format!("run images.csv {AT} --batch c --bad-rows left.jsonl")).await;
    kept.assert(3, &[], "left out");
    assert!(kept.stdout.contains("1 of 4 rows could not be used"), "{}", kept.stdout);
    assert!(stage.read("left.jsonl").contains("\"line\":4"), "{}", stage.read("left.jsonl"));
    stage.hold_each_once(&["c.jsonl"], 3);
}

#[tokio::test]
async fn images_that_the_api_refuses_are_results_and_the_report_says_why() {
    let stage = Stage::new(0).await;
    stage.manifest("images.csv", 0, 3);
    let line = "run images.csv --provider restb --models re_lgo --set providers.restb.limits=[{name=\"rate\",calls=100}]";
    let ended = stage.done(line).await;
    ended.assert(0, &[], "a model that only the API knows to be wrong");
    let says = "3 rejected (404): status 404: 002: Unknown model: re_lgo";
    assert!(ended.stdout.contains(says), "{}", ended.stdout);
    stage.hold_each_once(&["images.jsonl"], 3);
    assert_eq!(stage.bill(), 0);
}
