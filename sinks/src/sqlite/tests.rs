use std::{fs, path::Path};

use pixfleet_shared::result::{ImageResult, Outcome};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::{
    Options, Sink,
    sample::{sample, samples, valued},
};

fn open(path: &Path, begin: Begin) -> Sink {
    Sink::open(path, begin, &Options::default()).unwrap()
}

fn refusal(path: &Path, begin: Begin) -> SinkError {
    match Sink::open(path, begin, &Options::default()) {
        Err(error) => error,
        Ok(_) => panic!("{} was taken", path.display()),
    }
}

/// The first column of the first row.
fn one<T: rusqlite::types::FromSql>(path: &Path, query: &str) -> T {
    let db = Connection::open(path).unwrap();
    db.query_row(query, [], |row| row.get(0)).unwrap()
}

#[test]
fn results_images_and_calls_are_rows_that_a_query_joins() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("out.sqlite");
    let mut sink = open(&path, Begin::New);
    for number in 0..10 {
        // Both models of one call.
        sink.write(&[sample(number, "room", Outcome::Ok), sample(number, "style", Outcome::Rejected)])
            .unwrap();
    }
    assert_eq!(sink.commit().unwrap().rows, 20);
    let found: i64 = one(&path, "SELECT count(*) FROM results");
    assert_eq!(found, 20, "what is committed can be queried meanwhile");
    let mark = sink.finish().unwrap();
    assert_eq!((mark.rows, mark.bytes), (20, fs::metadata(&path).unwrap().len()));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "one file, and no journal");

    let counts: String = one(
        &path,
        "SELECT (SELECT count(*) FROM images) || ' ' || (SELECT count(*) FROM calls) || ' ' || (SELECT count(*) FROM results)",
    );
    assert_eq!(counts, "10 10 20");
    let row: String = one(
        &path,
        "SELECT image || ' ' || label || ' ' || confidence || ' ' || (labels ->> '$[1].label') || ' '
             || (metadata ->> 'listing') || ' ' || duration_ms || ' ' || sent_at
         FROM results JOIN images USING (batch, image, source) JOIN calls ON calls.id = results.call
         WHERE image = 'image-7' AND outcome = 'ok'",
    );
    assert_eq!(row, "image-7 kitchen 0.97 dining_room L-7 1163.5 2023-11-14T22:13:21.000007Z");
    let failed: String =
        one(&path, "SELECT failure_class || ': ' || failure_message FROM results WHERE outcome = 'rejected'");
    assert_eq!(failed, "rejected: no \"picture\",\nsorry");
}

#[test]
fn a_better_outcome_wins_whatever_the_order_and_of_two_alike_the_last() {
    use Outcome::{Dead, Ok, Rejected};
    let folder = TempDir::new().unwrap();
    for (at, order) in
        [[Dead, Rejected, Ok], [Ok, Rejected, Dead], [Rejected, Ok, Dead], [Dead, Ok, Rejected]]
            .into_iter()
            .enumerate()
    {
        let path = folder.path().join(format!("{at}.db"));
        let mut sink = open(&path, Begin::New);
        for outcome in order {
            sink.write(&[sample(1, "room", outcome)]).unwrap();
        }
        sink.finish().unwrap();
        let seen: String =
            one(&path, "SELECT count(*) || outcome || label || (failure_class IS NULL) FROM results");
        assert_eq!(seen, "1okkitchen1", "{order:?}");
    }
    let path = folder.path().join("alike.db");
    let mut sink = open(&path, Begin::New);
    for value in [1, 2] {
        sink.write(&[ImageResult { id: sample(1, "room", Ok).id, ..valued(1, json!(value)) }]).unwrap();
    }
    sink.finish().unwrap();
    assert_eq!(one::<i64>(&path, "SELECT value FROM results"), 2);
}

#[test]
fn a_value_keeps_its_type() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("out.db");
    let mut sink = open(&path, Begin::New);
    let values = [json!(4.5), json!(3), json!("4.5"), json!([1]), json!(true), json!(u64::MAX)];
    for (number, value) in values.into_iter().enumerate() {
        sink.write(&[valued(number as u32, value)]).unwrap();
    }
    sink.finish().unwrap();
    let seen: String = one(
        &path,
        "SELECT group_concat(typeof(value) || ' ' || value, '; ') FROM (SELECT value FROM results ORDER BY rowid)",
    );
    assert_eq!(seen, "real 4.5; integer 3; text 4.5; text [1]; text true; text 18446744073709551615");
}

#[test]
fn what_was_not_committed_is_given_again_and_shows_nowhere() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("out.db");
    let results = samples(0, 50);
    let mut sink = open(&path, Begin::New);
    sink.write(&results[..20]).unwrap();
    let mark = sink.commit().unwrap();
    sink.write(&results[20..30]).unwrap();
    drop(sink);
    assert_eq!(one::<i64>(&path, "SELECT count(*) FROM results"), 20, "a transaction is whole, or is not");
    let mut sink = open(&path, Begin::After(mark));
    // Some of it twice, too.
    sink.write(&results[10..]).unwrap();
    assert_eq!(sink.finish().unwrap().rows, 60);
    assert_eq!(one::<i64>(&path, "SELECT count(*) FROM results"), 50);
}

#[test]
fn a_database_that_lost_results_is_refused_and_one_that_was_tidied_is_not() {
    let folder = TempDir::new().unwrap();
    let (path, backup) = (folder.path().join("out.db"), folder.path().join("old.db"));
    let mut sink = open(&path, Begin::New);
    sink.write(&samples(0, 10)).unwrap();
    let old = sink.finish().unwrap();
    fs::copy(&path, &backup).unwrap();
    let mut sink = open(&path, Begin::After(old));
    sink.write(&samples(10, 30)).unwrap();
    let mark = sink.finish().unwrap();
    Connection::open(&path).unwrap().execute("DELETE FROM results WHERE outcome <> 'ok'", []).unwrap();
    open(&path, Begin::After(mark)).finish().unwrap();
    let said = refusal(&backup, Begin::After(mark)).to_string();
    assert!(said.contains("has 10 results, and 30 were written"), "{said}");
}

#[test]
fn two_writers_of_one_file_count_together() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("out.db");
    let mut one_sink = open(&path, Begin::New);
    let mut other = open(&path, Begin::After(Mark::default()));
    one_sink.write(&samples(0, 10)).unwrap();
    assert_eq!(one_sink.commit().unwrap().rows, 10);
    other.write(&samples(5, 20)).unwrap();
    assert_eq!(other.commit().unwrap().rows, 25);
    one_sink.write(&samples(20, 21)).unwrap();
    assert_eq!(one_sink.commit().unwrap().rows, 26);
    assert_eq!(one::<i64>(&path, "SELECT count(*) FROM results"), 21);
}

#[test]
fn another_programs_database_is_refused_by_name_and_left_as_it_was() {
    let folder = TempDir::new().unwrap();
    let after = Begin::After(Mark::default());
    let text = folder.path().join("text.db");
    fs::write(&text, "this is a text, and long enough to have a header of its own. ".repeat(20)).unwrap();
    let theirs = folder.path().join("theirs.db");
    Connection::open(&theirs).unwrap().execute_batch("CREATE TABLE people (name)").unwrap();
    let later = folder.path().join("later.db");
    open(&later, Begin::New).finish().unwrap();
    Connection::open(&later).unwrap().pragma_update(None, "user_version", 3).unwrap();
    for (path, word) in
        [(text, "not a database of pixfleet"), (theirs, "not a database of pixfleet"), (later, "version 3")]
    {
        let before = fs::read(&path).unwrap();
        let error = refusal(&path, after);
        let said = error.to_string();
        assert!(matches!(error, SinkError::Foreign { .. }), "{said}");
        assert!(said.contains(word) && said.contains("give another name"), "{said}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}

#[test]
fn a_database_of_the_first_version_is_gone_on_with_and_gets_the_column_that_it_lacks() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("old.db");
    let mut sink = open(&path, Begin::New);
    sink.write(&samples(1, 4)).unwrap();
    sink.finish().unwrap();
    let old = "ALTER TABLE results DROP COLUMN cached; PRAGMA user_version = 1;";
    Connection::open(&path).unwrap().execute_batch(old).unwrap();
    let mut sink = open(&path, Begin::After(Mark::default()));
    let before = ImageResult { cached: true, call: None, ..sample(9, "room", Outcome::Ok) };
    sink.write(std::slice::from_ref(&before)).unwrap();
    sink.finish().unwrap();
    assert_eq!(one::<i64>(&path, "SELECT count(*) FROM results WHERE cached = 0"), 3);
    assert_eq!(one::<String>(&path, "SELECT id FROM results WHERE cached = 1"), before.id.to_string());
}

#[test]
fn a_reader_stops_neither_a_commit_nor_the_end() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("out.db");
    let mut sink = open(&path, Begin::New);
    sink.write(&samples(0, 10)).unwrap();
    sink.commit().unwrap();
    let reader = Connection::open(&path).unwrap();
    let mut query = reader.prepare("SELECT id FROM results").unwrap();
    let mut rows = query.query([]).unwrap();
    assert!(rows.next().unwrap().is_some());
    sink.write(&samples(10, 20)).unwrap();
    sink.commit().unwrap();
    sink.finish().unwrap();
    drop(rows);
    drop(query);
    drop(reader);
    assert_eq!(one::<i64>(&path, "SELECT count(*) FROM results"), 20);
}

#[test]
fn the_documentation_names_every_column_and_its_queries_run() {
    let page = include_str!("../../../docs/results.md");
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("out.db");
    open(&path, Begin::New).finish().unwrap();
    let db = Connection::open(&path).unwrap();
    for table in ["images", "results", "calls"] {
        let section = page.split(&format!("\n| `{table}` |")).nth(1).unwrap_or_else(|| panic!("no {table}"));
        let section = section.split("\n\n").next().unwrap();
        let columns = "SELECT name FROM pragma_table_info(?1)";
        let mut columns = db.prepare(columns).unwrap();
        let names = columns.query_map([table], |row| row.get::<_, String>(0)).unwrap();
        for name in names.map(Result::unwrap) {
            assert!(section.contains(&format!("`{name}`")), "{table} has {name}, and the page does not");
        }
    }
    let queries = page.split("```sql\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert_eq!(queries.matches("SELECT").count(), 3);
    db.execute_batch(queries).unwrap();
}
