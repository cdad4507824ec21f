//! Results into files: of every kind, through a crash, and after Ctrl-C.

use std::{fs::File, path::PathBuf};

use parquet::file::reader::{FileReader, SerializedFileReader};
use rusqlite::Connection;

use super::*;

impl Stage {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The first column of the first row.
    fn query<T: rusqlite::types::FromSql>(&self, name: &str, query: &str) -> T {
        let db = Connection::open(self.path(name)).unwrap();
        db.query_row(query, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    fn parquet_rows(&self, name: &str) -> i64 {
        let reader = SerializedFileReader::new(File::open(self.path(name)).unwrap()).unwrap();
        reader.metadata().file_metadata().num_rows()
    }
}

#[tokio::test]
async fn a_batch_goes_into_files_of_every_kind_and_nothing_is_printed() {
    let (stage, batch) = (Stage::new().await, batch("spring"));
    let results = results_of(&batch, 36);
    stage.publish(results.clone()).await;
    // A redelivery shows nowhere.
    stage.publish(results[..10].to_vec()).await;
    stage.say(&batch, BatchState::Closed, 72).await;

    let line = "--batch spring --into a.jsonl --into a.csv --into a.parquet --into a.sqlite";
    let output = stage.results(line).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), "", "it goes into the files only");
    let expected: BTreeSet<String> = results.iter().map(|result| result.id.to_string()).collect();
    let lines = ids(&stage.file("a.jsonl"));
    assert_eq!((lines.len(), lines.into_iter().collect::<BTreeSet<_>>()), (72, expected));
    let rows = csv(&stage.file("a.csv"));
    assert_eq!(rows.len(), 72);
    assert!(rows.iter().any(|row| row["error"] == "rejected: no \"picture\",\nsorry"));
    assert_eq!(stage.parquet_rows("a.parquet"), 72);
    let counts =
        "SELECT count(*) || ' ' || sum(outcome = 'ok') || ' ' || (SELECT count(*) FROM images) FROM results";
    assert_eq!(stage.query::<String>("a.sqlite", counts), "72 64 36");
    assert_eq!(std::fs::read_dir(stage.folder.path()).unwrap().count(), 4, "no half files, no journals");

    // What is there is not overwritten; a database takes the same results again, and others.
    for name in ["a.jsonl", "a.csv", "a.parquet"] {
        let output = stage.results(&format!("--batch spring --into {name}")).await;
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(stderr(&output).contains("give another name"), "{}", stderr(&output));
    }
    let output =
        stage.results("--batch spring --into a.sqlite --into b.csv --outcome rejected --out b.jsonl").await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stage.query::<String>("a.sqlite", counts), "72 64 36");
    assert_eq!((csv(&stage.file("b.csv")).len(), stage.file("b.jsonl").lines().count()), (8, 8));
}

#[tokio::test]
async fn a_durable_subscriber_that_is_killed_goes_on_in_its_database_and_every_result_is_there_once() {
    let (stage, batch) = (Stage::new().await, batch("b"));
    let line = "--name warehouse --into w.db";
    let output = stage.results(&format!("{line} --timeout 1s")).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let results = results_of(&batch, 400);
    stage.publish(results[..300].to_vec()).await;
    let (mut child, _) = stage.start(line);
    let some = || stage.query::<i64>("w.db", "SELECT count(*) FROM results") > 0;
    wait_for(some, "the first rows").await;
    child.kill().unwrap();
    child.wait().unwrap();
    stage.publish(results[300..].to_vec()).await;
    stage.say(&batch, BatchState::Closed, 800).await;

    let output = stage.results(&format!("{line} --batch b --json")).await;
    let summary: Value =
        serde_json::from_str(&stdout(&output)).unwrap_or_else(|_| panic!("{}", stderr(&output)));
    assert_eq!((&summary["complete"], &summary["results"]), (&true.into(), &800.into()));
    assert_eq!(stage.query::<i64>("w.db", "SELECT count(*) FROM results"), 800, "each result once");
    assert_eq!(stage.query::<i64>("w.db", "SELECT count(*) FROM calls"), 400);
    assert_eq!(stage.waiting("warehouse"), "0");
    assert_eq!(std::fs::read_dir(stage.folder.path()).unwrap().count(), 1, "one file, and no journal");
}

#[tokio::test]
async fn ctrl_c_leaves_whole_files() {
    let (stage, batch) = (Stage::new().await, batch("b"));
    stage.publish(results_of(&batch, 5)).await;
    let (mut child, mut rows) =
        stage.start("--since 1h --follow --into f.jsonl --into f.parquet --into f.db");
    let all = || std::fs::read_to_string(stage.path("f.jsonl")).is_ok_and(|text| text.lines().count() == 10);
    wait_for(all, "the rows").await;
    assert!(!stage.path("f.parquet").exists(), "nobody sees half a file");
    signal(&child, "INT");
    assert_eq!(rows.next(), None, "nothing is printed");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(stage.parquet_rows("f.parquet"), 10);
    assert_eq!(stage.query::<i64>("f.db", "SELECT count(*) FROM results"), 10);
    assert_eq!(std::fs::read_dir(stage.folder.path()).unwrap().count(), 3);
}
