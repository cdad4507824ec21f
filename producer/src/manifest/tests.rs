use std::{
    fs,
    io::{Cursor, Write},
    path::Path,
    sync::Arc,
};

use pixfleet_shared::job::Source;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn written(folder: &TempDir, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = folder.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

fn items(input: &str, reading: Reading) -> Vec<Result<Row, Fault>> {
    Manifest::open(&[input.to_owned()], reading).unwrap().collect()
}

fn rows(input: &str, reading: Reading) -> Vec<Row> {
    items(input, reading).into_iter().collect::<Result<_, _>>().unwrap()
}

/// Each item as one line: `line id source {metadata}`, or `line! field: reason`.
fn told(content: impl AsRef<[u8]>) -> Vec<String> {
    let folder = folder();
    let items = items(&written(&folder, "manifest", content), Reading::default());
    items.into_iter().map(tell).collect()
}

fn tell(item: Result<Row, Fault>) -> String {
    match item {
        Ok(row) => {
            let Row { place, image, metadata } = row;
            let source = match image.source {
                Source::Url(text) | Source::Inline(text) | Source::Object(text) => text,
            };
            format!("{} {} {source} {metadata:?}", place.line, image.id)
        }
        Err(Fault::Row(bad)) => {
            format!("{}! {}: {}", bad.place.line, bad.field.unwrap_or_default(), bad.reason)
        }
        Err(Fault::Broken(broken)) => format!("broken: {}", broken.reason),
    }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

const CSV: &str = "id,url,city\n1,https://e.com/1.jpg,Bern\n2,https://e.com/2.jpg,\"Basel, BS\"\n";
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n0123456789";

#[test]
fn a_csv_maps_its_header_and_carries_further_columns() {
    assert_eq!(
        told(CSV),
        [r#"2 1 https://e.com/1.jpg {"city": "Bern"}"#, r#"3 2 https://e.com/2.jpg {"city": "Basel, BS"}"#,]
    );
}

#[test]
fn a_csv_may_be_of_another_office_with_a_mark_semicolons_and_windows_line_ends() {
    assert_eq!(
        told("\u{feff}\"Image_URL\";Ort\r\nhttps://e.com/1.jpg;Zürich\r\n\r\nhttps://e.com/2.jpg;Chur"),
        [
            r#"2 https://e.com/1.jpg https://e.com/1.jpg {"Ort": "Zürich"}"#,
            r#"4 https://e.com/2.jpg https://e.com/2.jpg {"Ort": "Chur"}"#,
        ]
    );
}

#[test]
fn bad_rows_of_a_csv_have_the_line_on_which_they_begin_and_the_rows_behind_them_are_read() {
    let seen = told(
        "id,url,note\n1,https://e.com/1.jpg,\"two\nlines\"\n2,https://e.com/2.jpg\n\n3,e.com/3.jpg,\n4,https://e.com/4.jpg,ok\n5,,\n",
    );
    assert_eq!(seen[0], r#"2 1 https://e.com/1.jpg {"note": "two\nlines"}"#);
    assert!(seen[1].starts_with("4! : has 2 fields, and the header names 3"), "{}", seen[1]);
    assert!(seen[2].starts_with("6! url: not a URL"), "{}", seen[2]);
    assert_eq!(seen[3], r#"7 4 https://e.com/4.jpg {"note": "ok"}"#);
    assert!(seen[4].starts_with("8! : says nowhere where the picture is: give `url`"), "{}", seen[4]);
}

#[test]
fn a_bad_row_shows_what_was_read_as_csv_again() {
    let folder = folder();
    let path = written(&folder, "m.csv", "url,note\nftp://e.com/1.jpg,\"say \"\"no\"\"\nnow\"\n");
    let Some(Err(Fault::Row(bad))) = items(&path, Reading::default()).pop() else {
        panic!("expected a bad row");
    };
    assert_eq!(bad.raw, "ftp://e.com/1.jpg,\"say \"\"no\"\"\nnow\"");
    assert_eq!(bad.to_string(), format!("{path}:2: url: {}", bad.reason));
    let json = serde_json::to_value(&bad).unwrap();
    assert_eq!((json["line"].as_u64(), json["field"].as_str()), (Some(2), Some("url")));
}

#[test]
fn columns_are_mapped_by_the_user_where_their_names_say_nothing() {
    let folder = folder();
    let path = written(&folder, "m.csv", "nr,foto,url\n7,https://e.com/7.jpg,https://e.com/page\n");
    let reading = Reading { columns: "id=nr,url=foto".parse().unwrap(), ..Reading::default() };
    let row = rows(&path, reading).remove(0);
    assert_eq!(row.image.id, "7");
    assert_eq!(row.image.source, Source::Url("https://e.com/7.jpg".into()));
    assert_eq!(row.metadata["url"], "https://e.com/page");
}

#[test]
fn a_header_that_can_mean_two_things_or_names_a_column_twice_is_refused_before_any_row() {
    let seen = told("id,url,id\n1,https://e.com/1.jpg,2\n");
    assert_eq!(seen.len(), 1);
    assert!(seen[0].starts_with("broken: the header names `id` twice"), "{}", seen[0]);
    let folder = folder();
    let path = written(&folder, "m.csv", "url,image_url\nhttps://e.com/a,https://e.com/b\n");
    let reading = Reading { format: Some(Format::Csv), ..Reading::default() };
    assert!(tell(items(&path, reading).remove(0)).contains("--column url=NAME"));
}

#[test]
fn a_field_that_is_cut_within_a_character_is_a_bad_row_not_a_crash() {
    let seen = told(b"id,url\n\xc3,\xa9\n2,https://e.com/2.jpg\n");
    assert_eq!(seen[0], "2! id: not UTF-8: save the file as UTF-8");
    assert!(seen[1].starts_with("3 2 "));
}

#[test]
fn a_quote_that_is_never_closed_takes_no_more_memory_than_the_longest_row() {
    let mut manifest = b"id,url\n1,\"https://e.com/".to_vec();
    manifest.resize(5 * MAX_ROW_BYTES, b'x');
    let seen = told(&manifest);
    assert_eq!(seen.len(), 1);
    assert!(seen[0].starts_with("2! : a row of more than"), "{}", seen[0]);
    assert!(seen[0].contains("quote"));
}

#[test]
fn a_row_that_is_too_long_does_not_hide_the_next_one() {
    let long = "x".repeat(MAX_ROW_BYTES + 10);
    let wide = ",".repeat(2000);
    let csv = told(format!("id,url\n1,\"{long}\n{long}\"\n2{wide}\n3,https://e.com/3.jpg\n"));
    assert!(csv[0].starts_with("2! ") && csv[1].starts_with("4! "), "{} {}", csv[0], csv[1]);
    assert_eq!(csv[2], "5 3 https://e.com/3.jpg {}");
    let jsonl = told(format!("{{\"url\":\"{long}\"}}\n{{\"url\":\"https://e.com/2.jpg\"}}\n"));
    assert!(jsonl[0].starts_with("1! : a row of more than") && jsonl[1].starts_with("2 "), "{jsonl:?}");
    let list = told(format!("https://e.com/1.jpg\nhttps://e.com/{long}\nhttps://e.com/3.jpg"));
    assert!(list[1].starts_with("2! : a row of more than") && list[2].starts_with("3 "));
}

#[test]
fn jsonl_keeps_numbers_as_written_and_says_what_is_wrong_with_a_line() {
    let seen = told(concat!(
        "{\"id\": 12345678901234567890123, \"url\": \"https://e.com/1.jpg\", \"n\": 1.50, \"ok\": true, \"none\": null, \"tags\": [\"a\"]}\n",
        "\n{\"id\": 2}\nnonsense\n[1]\n",
        "{\"id\": \"b\", \"base64\": \"_9j_\"}\n{\"base64\": \"QUJD\"}\n",
        "{\"url\": \"https://e.com/\", \"path\": \"a.jpg\"}\n",
    ));
    assert_eq!(
        seen[0],
        r#"1 12345678901234567890123 https://e.com/1.jpg {"n": "1.50", "ok": "true", "tags": "[\"a\"]"}"#
    );
    assert!(seen[1].starts_with("3! : no column says where the picture is"), "{}", seen[1]);
    assert!(seen[2].starts_with("4! : not a JSON object") && seen[3].starts_with("5! : not a JSON object"));
    assert_eq!(seen[4], "6 b /9j/ {}");
    assert!(seen[5].starts_with("7! : a picture in base64 needs an id"), "{}", seen[5]);
    assert!(seen[6].starts_with("8! : has both `url` and `path`"), "{}", seen[6]);
}

#[test]
fn a_list_passes_over_comments_and_blank_lines() {
    assert_eq!(
        told("# today's\n\nhttps://e.com/1.jpg#top\n  https://e.com/2.jpg  \nnot a url\n"),
        [
            "3 https://e.com/1.jpg#top https://e.com/1.jpg#top {}",
            "4 https://e.com/2.jpg https://e.com/2.jpg {}",
            "5! : a URL with a blank or a control character in it: write a blank as %20",
        ]
    );
}

#[test]
fn compression_is_told_by_content_whatever_the_name_says_and_may_come_in_several_members() {
    let plain = told(CSV);
    assert_eq!(told(gzip(CSV.as_bytes())), plain);
    assert_eq!(told(zstd::encode_all(CSV.as_bytes(), 3).unwrap()), plain);
    let (one, two) = CSV.split_at(40);
    assert_eq!(told([gzip(one.as_bytes()), gzip(two.as_bytes())].concat()), plain);
    let jsonl = "{\"url\": \"https://e.com/1.jpg\"}\n";
    assert_eq!(told(gzip(jsonl.as_bytes())), told(jsonl));
    assert_eq!(told(zstd::encode_all(&b"https://e.com/1.jpg"[..], 3).unwrap()).len(), 1);
}

#[test]
fn a_file_that_breaks_off_says_so_after_the_rows_that_could_be_read() {
    let many: String = (0..20_000).map(|n| format!("https://e.com/{n}-{}.jpg\n", n * n)).collect();
    let whole = gzip(many.as_bytes());
    let mut seen = told(&whole[..whole.len() / 2]);
    assert!(seen.pop().unwrap().starts_with("broken: "));
    assert!(seen.len() > 100 && seen.iter().all(|row| !row.contains('!')));
}

#[test]
fn after_an_input_that_broke_off_nothing_more_is_read() {
    let folder = folder();
    let inputs = [written(&folder, "a", "name\n1\n"), written(&folder, "b", "https://e.com/1.jpg\n")];
    let seen: Vec<_> = Manifest::open(&inputs, Reading::default()).unwrap().map(tell).collect();
    assert_eq!(seen.len(), 1, "{seen:?}");
}

#[test]
fn inputs_follow_each_other_in_the_order_given_and_urls_are_inputs_too() {
    let folder = folder();
    let inputs = [
        written(&folder, "b", "https://e.com/1.jpg\n"),
        "https://e.com/2.jpg".into(),
        written(&folder, "a", CSV),
    ];
    let manifest = Manifest::open(&inputs, Reading::default()).unwrap();
    let extent = manifest.extent();
    let ids: Vec<_> = manifest.map(|row| row.unwrap().image.id).collect();
    assert_eq!(ids, ["https://e.com/1.jpg", "https://e.com/2.jpg", "1", "2"]);
    assert_eq!(Some(extent.read()), extent.total());
}

#[test]
fn an_input_that_does_not_exist_is_refused_before_anything_is_read() {
    for missing in ["/nowhere/manifest.csv", "/nowhere/*.csv", ""] {
        assert!(
            Manifest::open(&["https://e.com/".into(), missing.into()], Reading::default()).is_err(),
            "{missing}"
        );
    }
}

#[test]
fn a_folder_is_read_by_name_and_only_its_pictures() {
    let folder = folder();
    for name in
        ["photos/b.png", "photos/a/z.png", "photos/a/no-extension", "photos/.hidden.png", "photos/.git/x.png"]
    {
        written(&folder, name, PNG);
    }
    written(&folder, "photos/notes.txt", "https://e.com/1.jpg");
    written(&folder, "photos/c.jpg", "<html>404</html>");
    let root = folder.path().join("photos");
    let seen: Vec<_> = items(root.to_str().unwrap(), Reading::default());
    let (good, bad): (Vec<_>, Vec<_>) = seen.into_iter().partition(Result::is_ok);
    let ids: Vec<_> = good.into_iter().map(|row| row.unwrap().image.id).collect();
    let expected: Vec<_> = ["a/no-extension", "a/z.png", "b.png"]
        .map(|name| root.join(name).to_str().unwrap().to_owned())
        .into();
    assert_eq!(ids, expected);
    assert_eq!(bad.len(), 1);
    assert!(tell(bad.into_iter().next().unwrap()).contains("named like a picture"));
}

#[test]
fn a_glob_takes_pictures_folders_and_manifests_alike() {
    let folder = folder();
    written(&folder, "in/1.png", PNG);
    written(&folder, "in/2.csv.gz", gzip(CSV.as_bytes()));
    written(&folder, "in/3/4.png", PNG);
    let pattern = folder.path().join("in/*");
    assert_eq!(rows(pattern.to_str().unwrap(), Reading::default()).len(), 4);
}

#[test]
fn a_picture_travels_inside_its_job_or_by_its_path() {
    let folder = folder();
    let path = written(&folder, "a.png", PNG);
    let inline = rows(&path, Reading::default()).remove(0);
    assert!(matches!(inline.image.source, Source::Inline(_)));
    let reading = Reading { by_path: true, ..Reading::default() };
    let by_path = rows(&path, reading).remove(0);
    assert_eq!(by_path.image.source, Source::Object(path.clone()));
    assert_eq!((inline.image.id, by_path.image.id), (path.clone(), path));
}

#[test]
fn the_paths_of_a_manifest_begin_at_its_folder() {
    let folder = folder();
    written(&folder, "below/photos/1.png", PNG);
    let path = written(&folder, "below/m.csv", "id,path\n1,photos/1.png\n2,photos/2.png\n");
    let seen: Vec<_> = items(&path, Reading::default()).into_iter().map(tell).collect();
    assert!(seen[0].starts_with("2 1 iVBORw0KGgo"), "{}", seen[0]);
    assert!(seen[1].starts_with("3! path: there is no file"), "{}", seen[1]);
}

/// The rows of `content` as each reader sees it, from an input that hands out `step` bytes at a time.
fn readers(content: &[u8], step: usize) -> Vec<Rows> {
    let input = || Box::new(std::io::BufReader::with_capacity(step, Cursor::new(content.to_vec())));
    let reading = Arc::new(Reading::default());
    let sources = || source::Sources { folder: "/nowhere".into(), by_path: true };
    let file: Arc<str> = "fuzz".into();
    let csv: Rows = match csv::CsvRows::open(input(), b',', file.clone(), sources(), &reading) {
        Ok(Some(rows)) => Box::new(rows),
        _ => Box::new(std::iter::empty()),
    };
    vec![
        csv,
        Box::new(jsonl::JsonlRows {
            lines: lines::Lines::new(input()),
            file: file.clone(),
            sources: sources(),
            reading: Arc::clone(&reading),
            line: Vec::new(),
        }),
        Box::new(list::ListRows {
            lines: lines::Lines::new(input()),
            file,
            sources: sources(),
            line: Vec::new(),
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_bytes_crash_a_reader_and_no_line_says_more_than_one_thing(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        header in proptest::bool::ANY, step in 1usize..64,
    ) {
        let mut content = if header { b"id,url\n".to_vec() } else { Vec::new() };
        content.extend(bytes);
        let lines = content.split(|byte| *byte == b'\n' || *byte == b'\r').count();
        for rows in readers(&content, step) {
            let mut last = 0;
            let mut count = 0;
            for item in rows {
                let place = match item {
                    Ok(row) => row.place,
                    Err(Fault::Row(bad)) => bad.place,
                    Err(Fault::Broken(broken)) => panic!("memory can't break off: {broken}"),
                };
                prop_assert!(place.line >= last && place.line <= lines as u64, "line {} after {last}", place.line);
                last = place.line;
                count += 1;
            }
            prop_assert!(count <= lines);
        }
    }

    #[test]
    fn no_file_crashes_the_opening(
        magic in prop_oneof![
            Just(&b""[..]), Just(&[0x1f, 0x8b][..]), Just(&[0x28, 0xb5, 0x2f, 0xfd][..]), Just(&b"\xef\xbb\xbf"[..]),
            Just(&b"{\"url\":"[..]), Just(&b"url;"[..]), Just(&b"https://"[..]), Just(&b"BM"[..]),
        ],
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let seen = told([magic, &bytes].concat());
        prop_assert!(seen.len() <= 302);
    }

    /// Whatever the fields hold, quoted as CSV wants it, they come back, each row with its line.
    #[test]
    fn a_quoted_csv_is_read_back(
        notes in proptest::collection::vec("[a-z\",;\n\r é]{0,12}", 1..20), step in 1usize..40,
    ) {
        let mut content = "id,url,note\n".to_owned();
        let mut expected = Vec::new();
        for (index, note) in notes.iter().enumerate() {
            let line = content.matches('\n').count() as u64 + 1;
            expected.push((line, note.clone()));
            content += &format!("{index},https://e.com/,\"{}\"\n", note.replace('"', "\"\""));
        }
        let rows = readers(content.as_bytes(), step).remove(0);
        let seen: Vec<_> = rows.map(|row| row.map(|mut row| (row.place.line, row.metadata.remove("note").unwrap())).unwrap()).collect();
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn a_jsonl_is_read_back(notes in proptest::collection::vec(any::<String>(), 1..20), step in 1usize..40) {
        let content: String = notes
            .iter()
            .map(|note| format!("{}\n", serde_json::json!({"url": "https://e.com/", "note": note})))
            .collect();
        let rows = readers(content.as_bytes(), step).remove(1);
        let seen: Vec<_> = rows.map(|row| row.unwrap().metadata.remove("note").unwrap()).collect();
        prop_assert_eq!(seen, notes);
    }
}

#[test]
fn a_wrong_extension_does_not_matter() {
    let folder = folder();
    let path = written(&folder, "manifest.csv", "https://e.com/1.jpg\n");
    assert_eq!(rows(&path, Reading::default()).len(), 1);
    let picture = written(&folder, "really-a-picture.csv", PNG);
    assert!(Path::new(&picture).exists());
    assert!(matches!(rows(&picture, Reading::default())[0].image.source, Source::Inline(_)));
}
