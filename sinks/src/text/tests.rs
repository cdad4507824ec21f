use std::{collections::BTreeSet, fs, path::PathBuf};

use pixfleet_shared::result::ImageResult;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::{
    Begin, Mark, Options, Sink, SinkError,
    sample::{sample, samples},
};
use pixfleet_shared::result::Outcome;

fn place(name: &str) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    (folder, path)
}

fn open(path: &std::path::Path, begin: Begin) -> Result<Sink, SinkError> {
    Sink::open(path, begin, &Options::default())
}

fn refusal(path: &std::path::Path, begin: Begin) -> SinkError {
    match open(path, begin) {
        Err(error) => error,
        Ok(_) => panic!("{} was taken", path.display()),
    }
}

/// The results of a file of JSON lines.
fn lines(path: &std::path::Path) -> Vec<ImageResult> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The ids of a CSV.
fn ids(path: &std::path::Path) -> Vec<String> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    reader.records().map(|record| record.unwrap()[0].to_owned()).collect()
}

fn once(found: &[String], expected: &[ImageResult]) {
    let wanted: BTreeSet<String> = expected.iter().map(|result| result.id.to_string()).collect();
    assert_eq!(found.len(), expected.len(), "each result once");
    assert_eq!(found.iter().cloned().collect::<BTreeSet<_>>(), wanted);
}

#[test]
fn json_lines_are_the_results_as_on_the_wire() {
    let (_folder, path) = place("out.jsonl");
    let mut sink = open(&path, Begin::New).unwrap();
    let results = samples(0, 100);
    sink.write(&results[..40]).unwrap();
    let mark = sink.commit().unwrap();
    assert_eq!((mark.rows, mark.bytes), (40, fs::metadata(&path).unwrap().len()));
    assert_eq!(lines(&path), results[..40], "what is committed can be read meanwhile");
    sink.write(&results[40..]).unwrap();
    let end = sink.finish().unwrap();
    assert_eq!((end.rows, end.bytes), (100, fs::metadata(&path).unwrap().len()));
    assert_eq!(lines(&path), results);
}

#[test]
fn a_file_torn_at_any_byte_behind_its_mark_goes_on_and_has_each_result_once() {
    let results = samples(0, 6);
    for name in ["out.jsonl", "out.csv"] {
        let (_folder, path) = place(name);
        let mut sink = open(&path, Begin::New).unwrap();
        sink.write(&results[..3]).unwrap();
        let mark = sink.commit().unwrap();
        sink.write(&results[3..]).unwrap();
        sink.finish().unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in mark.bytes as usize..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut sink = open(&path, Begin::After(mark)).unwrap();
            sink.write(&results[3..]).unwrap();
            assert_eq!(sink.finish().unwrap().rows, 6);
            assert_eq!(fs::read(&path).unwrap(), whole, "{name} torn at {cut}");
        }
        for cut in 0..mark.bytes as usize {
            fs::write(&path, &whole[..cut]).unwrap();
            let error = refusal(&path, Begin::After(mark));
            assert!(matches!(error, SinkError::Shortened { .. }), "{error}");
            let (has, wants) = (format!("has {cut} bytes"), mark.bytes.to_string());
            let said = error.to_string();
            assert!(said.contains(&has) && said.contains(&wants) && said.contains(name), "{said}");
            assert_eq!(fs::read(&path).unwrap().len(), cut, "it is left as it was");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn whatever_is_written_committed_and_lost_each_result_is_there_once(
        steps in proptest::collection::vec((1usize..40, any::<bool>(), any::<prop::sample::Index>()), 1..12)
    ) {
        for name in ["out.jsonl", "out.csv"] {
            let (_folder, path) = place(name);
            let results = samples(0, 400);
            let mut sink = open(&path, Begin::New).unwrap();
            let mut mark = sink.commit().unwrap();
            let mut at = 0;
            for (count, crash, cut) in &steps {
                let end = (at + count).min(results.len());
                sink.write(&results[at..end]).unwrap();
                if *crash {
                    // What the buffer held may have reached the disk in part.
                    drop(sink);
                    let whole = fs::read(&path).unwrap();
                    let keep = mark.bytes as usize + cut.index(whole.len() - mark.bytes as usize + 1);
                    fs::write(&path, &whole[..keep]).unwrap();
                    sink = open(&path, Begin::After(mark)).unwrap();
                } else {
                    mark = sink.commit().unwrap();
                    at = end;
                }
                prop_assert_eq!(mark.rows, at as u64);
            }
            sink.write(&results[at..]).unwrap();
            sink.finish().unwrap();
            match name {
                "out.csv" => once(&ids(&path), &results),
                _ => prop_assert_eq!(lines(&path), results),
            }
        }
    }
}

#[test]
fn a_csv_goes_on_below_its_header_and_keeps_what_has_no_column() {
    let (_folder, path) = place("out.csv");
    let mut sink = open(&path, Begin::New).unwrap();
    sink.write(&samples(0, 2)).unwrap();
    let mark = sink.finish().unwrap();
    let mut later = sample(2, "room", Outcome::Ok);
    later.metadata.insert("city".into(), "Riga".into());
    let mut sink = open(&path, Begin::After(mark)).unwrap();
    sink.write(&[later]).unwrap();
    sink.finish().unwrap();
    let mut reader = csv::Reader::from_path(&path).unwrap();
    let rows: Vec<std::collections::BTreeMap<String, String>> =
        reader.deserialize().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0]["error"], "rejected: no \"picture\",\nsorry");
    assert_eq!((&rows[1]["label"][..], &rows[1]["labels"][..]), ("kitchen", "kitchen=0.97; dining_room"));
    assert_eq!((&rows[2]["metadata.listing"][..], &rows[2]["more"][..]), ("L-2", r#"{"city":"Riga"}"#));
}

#[test]
fn the_metadata_columns_of_a_csv_can_be_chosen() {
    let (_folder, path) = place("out.csv");
    let options = Options { metadata: Some(vec!["city".into()]) };
    let mut sink = Sink::open(&path, Begin::New, &options).unwrap();
    sink.write(&samples(1, 2)).unwrap();
    sink.finish().unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("id,batch,") && text.contains("cost,cached,metadata.city,more\n"), "{text}");
    assert!(text.contains(r#"{""listing"":""L-1""}"#), "{text}");
}

#[test]
fn a_csv_of_somebody_else_is_not_gone_on_with() {
    let (_folder, path) = place("out.csv");
    fs::write(&path, "a,b\n1,2\n").unwrap();
    let error = refusal(&path, Begin::After(Mark { bytes: 8, rows: 1 }));
    assert!(matches!(error, SinkError::Foreign { .. }), "{error}");
}

#[test]
fn a_file_that_another_one_took_the_place_of_is_not_cut() {
    let (_folder, path) = place("out.jsonl");
    fs::write(&path, "another text, which has no line of that length\n").unwrap();
    let error = refusal(&path, Begin::After(Mark { bytes: 12, rows: 1 }));
    assert!(matches!(error, SinkError::Foreign { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap().len(), 47, "it is left as it was");
}

#[test]
fn a_new_file_takes_nobodys_place_and_one_that_is_gone_is_told_from_one_that_is_short() {
    for name in ["out.jsonl", "out.csv", "out.parquet", "out.db"] {
        let (_folder, path) = place(name);
        fs::write(&path, "something").unwrap();
        let said = refusal(&path, Begin::New).to_string();
        assert_eq!(said, format!("`{}` exists: give another name, or move it away", path.display()));
        assert_eq!(fs::read(&path).unwrap(), b"something");
        // An empty file is what a run leaves that was killed at once.
        fs::write(&path, "").unwrap();
        open(&path, Begin::New).unwrap().finish().unwrap();
    }
    for name in ["out.jsonl", "out.csv", "out.db"] {
        let (_folder, path) = place(name);
        let error = refusal(&path, Begin::After(Mark::default()));
        assert!(matches!(error, SinkError::Gone { .. }), "{error}");
        assert!(!path.exists());
    }
}

#[test]
fn a_folder_that_is_not_there_is_told_with_what_to_do() {
    for name in ["no/out.jsonl", "no/out.csv", "no/out.parquet", "no/out.sqlite"] {
        let (_folder, path) = place(name);
        let error = refusal(&path, Begin::New);
        let said = error.to_string();
        assert!(matches!(error, SinkError::Io { .. }) && said.contains("make its folder"), "{said}");
    }
}

#[test]
fn a_full_disk_is_told_with_what_to_do() {
    // A device of Linux that takes nothing.
    let full = std::path::Path::new("/dev/full");
    assert!(full.exists(), "this test needs /dev/full, a disk that is always full: run it on Linux");
    let (_folder, path) = place("out.jsonl");
    std::os::unix::fs::symlink(full, &path).unwrap();
    let mut sink = open(&path, Begin::New).unwrap();
    sink.write(&samples(0, 1)).unwrap();
    let said = sink.commit().unwrap_err().to_string();
    assert!(said.contains("make room on its disk") && said.contains("out.jsonl"), "{said}");
}
