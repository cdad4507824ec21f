//! What a newcomer does wrong with files: manifests that say nothing, outputs and state files that can't be.

use std::{fs, os::unix::fs::symlink};

use rusqlite::Connection;

use crate::refusals::{Case, all_hold};

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
        Case::new("a header alone", "run head.csv AT", 1, &["there is no image in", "in head.csv:"])
            .given(|stage| stage.write("head.csv", "id,url\n")),
        Case::new("an empty stdin", "run - --batch b AT", 1, &["there is no image in", "in stdin:"]),
        Case::new(
            "a folder without pictures",
            "run texts/ AT",
            1,
            &["there is no image in", "in texts/:", "a folder with pictures"],
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
        Case::new("no such folder", "run nothing/ AT", 1, &["there is no such file or folder", "nothing/"]),
        Case::new(
            "a link that leads nowhere",
            "run link.csv AT",
            1,
            &["there is no such file or folder", "link.csv"],
        )
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
            &["is named twice", "--state: a.sqlite"],
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
