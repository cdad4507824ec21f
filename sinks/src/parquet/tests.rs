use std::{fs, fs::File, path::Path};

use ::parquet::{
    arrow::arrow_reader::ParquetRecordBatchReaderBuilder,
    basic::{LogicalType, Type},
    file::reader::{FileReader, SerializedFileReader},
    record::{Field, Row},
};
use pixfleet_shared::result::{ImageResult, Outcome};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::{
    Options, Sink,
    sample::{sample, samples, valued},
};

fn written(path: &Path, results: &[ImageResult]) -> Mark {
    let mut sink = Sink::open(path, Begin::New, &Options::default()).unwrap();
    assert!(sink.replays());
    results.chunks(777).for_each(|some| sink.write(some).unwrap());
    assert_eq!(sink.commit().unwrap().rows, results.len() as u64);
    assert!(!path.exists(), "nobody sees half a file");
    sink.finish().unwrap()
}

fn rows(path: &Path) -> Vec<Row> {
    let reader = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
    reader.get_row_iter(None).unwrap().map(Result::unwrap).collect()
}

fn field<'a>(row: &'a Row, name: &str) -> &'a Field {
    row.get_column_iter().find(|(column, _)| *column == name).unwrap_or_else(|| panic!("no {name}")).1
}

fn text(row: &Row, name: &str) -> Option<String> {
    match field(row, name) {
        Field::Str(text) => Some(text.clone()),
        Field::Null => None,
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn a_result_is_read_back_with_its_types() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("out.parquet");
    let results = [sample(1, "room", Outcome::Ok), sample(5, "room", Outcome::Rejected)];
    let mark = written(&path, &results);
    assert_eq!((mark.rows, mark.bytes), (2, fs::metadata(&path).unwrap().len()));
    let [ok, rejected] = &rows(&path)[..] else { panic!("two rows") };

    assert_eq!(text(ok, "id"), Some(results[0].id.to_string()));
    assert_eq!(text(ok, "source").as_deref(), Some("https://example.com/photos/1.jpg"));
    assert_eq!((text(ok, "outcome").as_deref(), text(ok, "label").as_deref()), (Some("ok"), Some("kitchen")));
    assert_eq!(field(ok, "confidence"), &Field::Double(0.97));
    assert_eq!(field(ok, "sent_at"), &Field::TimestampMicros(1_700_000_001_000_001));
    assert_eq!(field(ok, "completed_at"), &Field::TimestampMicros(1_700_000_002_000_000));
    assert_eq!((field(ok, "status"), field(ok, "throttled")), (&Field::Int(200), &Field::Int(2)));
    assert_eq!(field(ok, "limit_per_s"), &Field::Double(4.0));
    let labels = field(ok, "labels").to_string();
    assert_eq!(labels, r#"[{label: "kitchen", confidence: 0.97}, {label: "dining_room", confidence: null}]"#);
    assert_eq!(field(ok, "metadata").to_string(), r#"{"listing" -> "L-1"}"#);

    assert_eq!(text(rejected, "failure_message").as_deref(), Some("no \"picture\",\nsorry"));
    assert_eq!(field(rejected, "labels").to_string(), "[]");
    assert_eq!(field(rejected, "confidence"), &Field::Null);
}

#[test]
fn the_columns_have_the_types_of_the_documentation() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("out.parquet");
    written(&path, &[sample(1, "room", Outcome::Ok)]);
    let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
    let schema = reader.metadata().file_metadata().schema_descr();
    let kind = |name: &str| {
        let column =
            (0..schema.num_columns()).map(|at| schema.column(at)).find(|one| one.path().string() == name);
        let column = column.unwrap_or_else(|| panic!("no {name}"));
        (column.physical_type(), column.logical_type_ref().cloned())
    };
    for name in ["id", "batch", "value_json", "labels.list.element.label", "metadata.key_value.value"] {
        assert_eq!(kind(name), (Type::BYTE_ARRAY, Some(LogicalType::String)), "{name}");
    }
    for name in
        ["confidence", "labels.list.element.confidence", "value_number", "duration_ms", "cost", "limit_per_s"]
    {
        assert_eq!(kind(name), (Type::DOUBLE, None), "{name}");
    }
    for name in ["status", "attempt", "throttled"] {
        assert_eq!(kind(name).0, Type::INT32, "{name}");
    }
    for name in ["sent_at", "enqueued_at", "completed_at"] {
        let (physical, logical) = kind(name);
        assert_eq!(physical, Type::INT64, "{name}");
        let shown = format!("{logical:?}");
        assert!(shown.contains("Timestamp") && shown.contains("is_adjusted_to_u_t_c: true"), "{shown}");
    }
}

#[test]
fn the_columns_of_few_words_are_dictionaries() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("out.parquet");
    written(&path, &[sample(1, "room", Outcome::Ok)]);
    let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
    let columns = reader.metadata().row_group(0).columns();
    let kept = |name: &str| {
        let column = columns.iter().find(|column| column.column_path().string() == name);
        column.unwrap_or_else(|| panic!("no {name}")).dictionary_page_offset().is_some()
    };
    for name in schema::WORDED {
        assert!(kept(name), "{name}");
    }
    assert!(!kept("id"), "a dictionary of ids");
}

#[test]
fn a_value_goes_to_the_column_of_its_type_and_loses_no_digit() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("out.parquet");
    let exact = 9_007_199_254_740_993_u64;
    let values = [json!("a text"), json!(4.5), json!(-3), json!({"a": [1]}), json!(true), json!(exact)];
    let results: Vec<ImageResult> =
        values.into_iter().enumerate().map(|(at, value)| valued(at as u32, value)).collect();
    written(&path, &results);
    let rows = rows(&path);
    let seen = |at: usize| {
        let number = match field(&rows[at], "value_number") {
            Field::Double(number) => Some(*number),
            _ => None,
        };
        (text(&rows[at], "value_text"), number, text(&rows[at], "value_json"))
    };
    assert_eq!(seen(0), (Some("a text".into()), None, None));
    assert_eq!(seen(1), (None, Some(4.5), None));
    assert_eq!(seen(2), (None, Some(-3.0), None));
    assert_eq!(seen(3), (None, None, Some(r#"{"a":[1]}"#.into())));
    assert_eq!(seen(4), (None, None, Some("true".into())));
    assert_eq!(seen(5), (None, None, Some(exact.to_string())));
}

#[test]
fn row_groups_are_bounded_in_rows_and_in_bytes() {
    let folder = TempDir::new().unwrap();
    let groups = |path: &Path| -> Vec<i64> {
        let reader = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
        reader.metadata().row_groups().iter().map(|group| group.num_rows()).collect()
    };
    let many = folder.path().join("many.parquet");
    written(&many, &samples(0, 25_000));
    assert_eq!(groups(&many), [10_000, 10_000, 5000]);
    let read = ParquetRecordBatchReaderBuilder::try_new(File::open(&many).unwrap()).unwrap().build().unwrap();
    assert_eq!(read.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 25_000);

    // Texts that do not compress: each group ends before it has its rows.
    let wide = folder.path().join("wide.parquet");
    let mut state = 1_u64;
    let results: Vec<ImageResult> =
        (0..2000).map(|number| valued(number, json!(noise(&mut state, 20_000)))).collect();
    let mut sink = Parquet::open(&wide, Begin::New).unwrap();
    let mut most = 0;
    for some in results.chunks(10) {
        sink.write(&wide, some).unwrap();
        most = most.max(sink.writer.memory_size() + sink.columns.bytes());
    }
    sink.finish(&wide).unwrap();
    assert!(most > GROUP_BYTES / 2, "{most} bytes: the bound was never near");
    assert!(most < GROUP_BYTES + 4 * BATCH_BYTES, "{most} bytes were held");
    let groups = groups(&wide);
    assert!(groups.len() >= 3 && groups.iter().sum::<i64>() == 2000, "{groups:?}");
}

/// Letters that look random.
fn noise(state: &mut u64, length: usize) -> String {
    let letter = |_| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'!' + (*state >> 33) as u8 % 90)
    };
    (0..length).map(letter).collect()
}

#[test]
fn a_file_that_is_made_again_takes_the_old_ones_place_when_it_is_whole() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("out.parquet");
    let mark = written(&path, &samples(0, 10));
    // What a killed run leaves.
    fs::write(partial(&path), "half a file").unwrap();
    let mut sink = Sink::open(&path, Begin::After(mark), &Options::default()).unwrap();
    sink.write(&samples(0, 20)).unwrap();
    assert_eq!(rows(&path).len(), 10, "the old one is there until then");
    sink.finish().unwrap();
    assert_eq!(rows(&path).len(), 20);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "one file, and no other");
}

#[test]
fn the_documentation_names_every_column() {
    let page = include_str!("../../../docs/results.md");
    let section = page.split("### The columns of the Parquet file").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    for field in schema::schema().fields() {
        assert!(section.contains(&format!("`{}`", field.name())), "{} is not there", field.name());
    }
}
