//! What a newcomer does wrong, one case after the other: the exit code, and a message that names the thing, the value
//! and what to do. docs/first-errors.md shows the same messages.

use std::{collections::BTreeMap, fs, net::TcpListener, os::unix::fs::symlink};

use pixfleet_tests::fleet::image_url;
use rusqlite::Connection;

use crate::stage::{Ended, Stage, content};

/// A command line that is wrong. `AT` stands for a provider and a model that are right.
struct Case {
    name: &'static str,
    /// What lies in the folder beside `images.csv`.
    given: fn(&Stage),
    line: &'static str,
    /// The key, in every provider's variable.
    key: Option<&'static str>,
    code: i32,
    says: &'static [&'static str],
}

const AT: &str = "--provider api --models m";

impl Case {
    const fn new(name: &'static str, line: &'static str, code: i32, says: &'static [&'static str]) -> Self {
        Self { name, given: nothing, line, key: Some(crate::stage::KEY), code, says }
    }

    const fn given(self, given: fn(&Stage)) -> Self {
        Self { given, ..self }
    }

    const fn key(self, key: Option<&'static str>) -> Self {
        Self { key, ..self }
    }

    /// What was there is as it was, and nothing was paid for; where the command line was wrong, nothing was begun.
    async fn holds(&self) {
        let stage = Stage::new(0).await;
        stage.manifest("images.csv", 0, 3);
        (self.given)(&stage);
        let before = contents(&stage);
        let ended = self.run(&stage).await;
        ended.assert(self.code, self.says, self.name);
        let after = contents(&stage);
        for (name, was) in &before {
            assert_eq!(after.get(name), Some(was), "{}: {name} is not as it was", self.name);
        }
        if self.code == 2 {
            assert_eq!(after.len(), before.len(), "{}: something was begun: {:?}", self.name, stage.names());
        }
        assert_eq!(stage.bill(), 0, "{}: something was paid for", self.name);
    }

    async fn run(&self, stage: &Stage) -> Ended {
        let line = self.line.replace("AT", AT);
        let mut command = stage.command(&line);
        for variable in ["GENERIC_API_KEY", "RESTB_CLIENT_KEY", "TILITER_API_KEY"] {
            match self.key {
                Some(key) => command.env(variable, key),
                None => command.env_remove(variable),
            };
        }
        crate::stage::end(command.spawn().unwrap(), self.name).await
    }
}

fn nothing(_: &Stage) {}

fn contents(stage: &Stage) -> BTreeMap<String, Option<Vec<u8>>> {
    stage.names().into_iter().map(|name| (name.clone(), content(&stage.path(&name)))).collect()
}

async fn all_hold(cases: &[Case]) {
    for case in cases {
        case.holds().await;
    }
}

#[tokio::test]
async fn a_wrong_provider_key_or_model_is_named_with_the_way_out() {
    all_hold(&[
        Case::new(
            "no key",
            "run images.csv --provider restb --models re_logo",
            2,
            &["key is missing", "RESTB_CLIENT_KEY"],
        )
        .key(None),
        Case::new(
            "an empty key",
            "run images.csv --provider restb --models re_logo",
            2,
            &["key is missing", "RESTB_CLIENT_KEY"],
        )
        .key(Some(" ")),
        Case::new(
            "a wrong key",
            "run images.csv --provider restb --models re_logo",
            1,
            &[
                "`restb` refuses the account: status 401",
                "Check the key in RESTB_CLIENT_KEY",
                "run the same command again",
            ],
        )
        .key(Some("wrong")),
        Case::new(
            "a wrong key of an API of one's own",
            "run images.csv AT",
            1,
            &["`api` refuses the account: status 401", "Check the key in GENERIC_API_KEY"],
        )
        .key(Some("wrong")),
        Case::new(
            "no key where the API wants one",
            "run images.csv AT",
            1,
            &["`api` refuses the account: status 401", "GENERIC_API_KEY"],
        )
        .key(None),
        Case::new(
            "a typing error in a provider",
            "run images.csv --provider tilter --models m",
            2,
            &["no provider `tilter`", "did you mean `tiliter`?"],
        ),
        Case::new(
            "no provider of several",
            "run images.csv --models m",
            2,
            &["the settings name several", "--provider api|restb"],
        ),
        Case::new(
            "no provider at all",
            "run images.csv --models m",
            2,
            &["the settings name no provider", "presets", "restb"],
        )
        .given(|stage| stage.write("pixfleet.toml", "")),
        Case::new(
            "a typing error in a model",
            "run images.csv --provider tiliter --models bag_recogniton",
            2,
            &["--models: ", "does not know the model `bag_recogniton`", "did you mean `bag_recognition`?"],
        ),
        Case::new(
            "a model that no pattern knows",
            "run images.csv --provider restb --models logo",
            2,
            &["the model `logo`", "it knows re_*"],
        ),
        Case::new(
            "no model of several",
            "run images.csv --provider tiliter",
            2,
            &["--models: none is named", "product_recognition, bag_recognition"],
        ),
        Case::new(
            "a model twice",
            "run images.csv --provider api --models m,m",
            2,
            &["--models: ", "`m` is named twice"],
        ),
    ])
    .await;
}

#[tokio::test]
async fn an_api_that_is_not_there_is_said_once_with_its_address() {
    // Held until the end, and never listened on by anybody else: bound, and refused.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stage = Stage::new(0).await;
    stage.manifest("images.csv", 0, 3);
    for (name, endpoint, says) in [
        ("nothing listens", format!("http://{free}"), "nothing listens there"),
        ("an unknown host", "http://no-such-host.invalid".to_owned(), "no-such-host.invalid:80"),
    ] {
        let line = format!("run images.csv {AT} --set providers.api.endpoint={endpoint}");
        let ended = stage.done(&line).await;
        let setting = format!("providers.api.endpoint is {endpoint}");
        ended.assert(1, &["`api` can't be reached at", says, &setting, "Is it running"], name);
        assert_eq!(ended.stderr.lines().count(), 1, "{name}: {}", ended.stderr);
        assert!(!stage.path("images.pixfleet").exists(), "{name}: nothing is begun");
    }
    let line = format!("run images.csv {AT} --set providers.api.endpoint=127.0.0.1:8089");
    stage.done(&line).await.assert(2, &["providers.api.endpoint", "no URL"], "an address without http://");
}

#[tokio::test]
async fn a_manifest_that_says_nothing_is_named_with_what_it_lacks() {
    all_hold(&[
        Case::new(
            "an empty file",
            "run empty.csv AT",
            1,
            &["there is no image in empty.csv", "at least one row"],
        )
        .given(|stage| stage.write("empty.csv", "")),
        Case::new("a header alone", "run head.csv AT", 1, &["there is no image in head.csv"])
            .given(|stage| stage.write("head.csv", "id,url\n")),
        Case::new("an empty stdin", "run - --batch b AT", 1, &["there is no image in stdin"]),
        Case::new(
            "a folder without pictures",
            "run texts/ AT",
            1,
            &["there is no image in texts/", "a folder with pictures"],
        )
        .given(|stage| fs::create_dir(stage.path("texts")).unwrap()),
        Case::new(
            "no usable column",
            "run a.csv AT",
            1,
            &["a.csv", "--column url=NAME", "found: name, photo"],
        )
        .given(|stage| stage.write("a.csv", "name,photo\na,http://e.com/1.jpg\n")),
        Case::new(
            "a column that is not there",
            "run images.csv --column url=foto AT",
            1,
            &["images.csv", "no column `foto`", "found: id, url"],
        ),
        Case::new(
            "a role that is none",
            "run images.csv --column foto=url AT",
            2,
            &["`foto=url` maps no column", "url, path and base64"],
        ),
        Case::new("bytes that are no text", "run a.csv AT", 1, &["a.csv", "does not begin with text"])
            .given(|stage| fs::write(stage.path("a.csv"), b"\x1b[31m\x00\x01\xfe\n\x02").unwrap()),
        Case::new("no such file", "run nothing.csv AT", 1, &["nothing.csv: there is no such file or folder"]),
        Case::new("no such folder", "run nothing/ AT", 1, &["nothing/: there is no such file or folder"]),
        Case::new("a link that leads nowhere", "run link.csv AT", 1, &["link.csv: there is no such file"])
            .given(|stage| symlink("nowhere", stage.path("link.csv")).unwrap()),
        Case::new(
            "a file as a folder",
            "run images.csv/ AT --batch b",
            1,
            &["images.csv/: a part of it is a file and no folder"],
        ),
        Case::new(
            "a pattern that nothing matches",
            "run photos/*.jpg AT --batch b",
            1,
            &["photos/*.jpg: no file matches"],
        ),
        Case::new("stdin without a name", "run - AT", 2, &["--batch: stdin has no name", "--batch NAME"]),
        Case::new("a name that is none", "run images.csv AT --batch a/b", 2, &["`a/b` can't name a batch"]),
        Case::new(
            "only bad rows",
            "run bad.csv AT --bad-rows skip",
            1,
            &["no row of bad.csv can be used", "--bad-rows FILE"],
        )
        .given(|stage| stage.write("bad.csv", "id,url\na,not a url\n")),
        Case::new(
            "a file for bad rows in no folder",
            "run images.csv AT --bad-rows no/such",
            1,
            &["no/such", "name a file in a folder"],
        ),
    ])
    .await;
}

#[tokio::test]
async fn an_output_that_can_not_be_is_refused_and_left_as_it_is() {
    all_hold(&[
        Case::new(
            "a file of somebody else's",
            "run images.csv AT --out mine.jsonl",
            1,
            &["`mine.jsonl` exists", "did not begin that file", "give another name"],
        )
        .given(|stage| stage.write("mine.jsonl", "my notes\n")),
        Case::new(
            "an unknown kind",
            "run images.csv AT --out a.xlsx",
            2,
            &["--out: `a.xlsx` does not say what kind", ".jsonl", ".parquet"],
        ),
        Case::new(
            "no such folder",
            "run images.csv AT --out no/such/a.csv",
            2,
            &["--out: no/such/a.csv: the folder no/such is not there", "mkdir -p"],
        ),
        Case::new("a folder", "run images.csv AT --out a.csv", 2, &["--out: a.csv is a folder"])
            .given(|stage| fs::create_dir(stage.path("a.csv")).unwrap()),
        Case::new(
            "a folder that nobody may write",
            "run images.csv AT --out /proc/a.csv --state s.pixfleet",
            1,
            &["can't write `/proc/a.csv`"],
        ),
        Case::new(
            "the manifest",
            "run images.csv AT --out images.csv",
            2,
            &["--out: images.csv is a manifest itself"],
        ),
        Case::new(
            "the manifest by another way",
            "run images.csv AT --out ./x/../images.csv",
            2,
            &["is a manifest itself"],
        )
        .given(|stage| fs::create_dir(stage.path("x")).unwrap()),
        Case::new(
            "one file twice",
            "run images.csv AT --out a.csv --out ./a.csv",
            2,
            &["--out: ./a.csv is named twice"],
        ),
        Case::new(
            "the state",
            "run images.csv AT --out a.sqlite --state a.sqlite",
            2,
            &["--state: a.sqlite is named twice"],
        ),
        Case::new(
            "several at once",
            "run images.csv AT --out a.xlsx --out no/b.csv",
            2,
            &["a.xlsx", "no/b.csv", "2 problems"],
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_state_file_that_can_not_be_is_refused_and_left_as_it_is() {
    let foreign = &["is not a state file of pixfleet", "give another --state"];
    all_hold(&[
        Case::new("a text", "run images.csv AT --state notes.txt", 1, foreign)
            .given(|stage| stage.write("notes.txt", "a shopping list\n")),
        Case::new("another program's database", "run images.csv AT --state theirs.db", 1, foreign).given(
            |stage| {
                Connection::open(stage.path("theirs.db"))
                    .unwrap()
                    .execute_batch("CREATE TABLE theirs (x)")
                    .unwrap();
            },
        ),
        Case::new("a folder", "run images.csv AT --state s", 2, &["--state: s is a folder"])
            .given(|stage| fs::create_dir(stage.path("s")).unwrap()),
        Case::new(
            "no such folder",
            "run images.csv AT --state no/s",
            2,
            &["--state: no/s: the folder no is not there"],
        ),
        Case::new(
            "the manifest",
            "run images.csv AT --state images.csv",
            2,
            &["--state: images.csv is a manifest itself"],
        ),
    ])
    .await;
}

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
