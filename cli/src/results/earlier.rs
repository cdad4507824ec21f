//! What an earlier run of a durable subscriber left in its file: the ids are known again, and a torn tail is cut.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use anyhow::{Context as _, bail};
use pixfleet_shared::{id::Id, result::Outcome};
use pixfleet_sinks::row;
use serde::Deserialize;

use super::rows::Format;

/// A line above this size is no result of ours.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// A file to write on, and what it holds already.
#[derive(Debug)]
pub(crate) struct Earlier {
    /// Open for writing, at its end.
    pub file: File,
    /// The header of a CSV that was begun.
    pub header: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Line {
    id: Id,
    outcome: Outcome,
}

/// Opens `path` to go on where an earlier run stopped, and tells `known` of each result in it. A row that was
/// torn by a crash is cut off: it was not committed, so it comes again.
pub(crate) fn open(
    path: &Path,
    format: Format,
    known: &mut dyn FnMut(Id, Outcome),
) -> anyhow::Result<Earlier> {
    let shown = path.display();
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).with_context(
            || format!("can't open {shown}: give --out a file in a folder that you may write"),
        )?;
    let (whole, header) = match format {
        Format::Jsonl => (lines(&file, known), None),
        Format::Csv => match records(&file, known) {
            Ok((whole, header)) => (Ok(whole), header),
            Err(error) => (Err(error), None),
        },
        Format::Table => {
            bail!("a table can't be continued: give --format jsonl or csv with --name and --out")
        }
    };
    let whole = whole.with_context(|| {
        format!("{shown} is not a file of results that --name could continue: give another --out")
    })?;
    file.set_len(whole).with_context(|| format!("can't cut the torn end of {shown}"))?;
    file.seek(SeekFrom::Start(whole))?;
    Ok(Earlier { file, header })
}

/// Reads JSON lines; returns where the last whole one ends.
fn lines(file: &File, known: &mut dyn FnMut(Id, Outcome)) -> anyhow::Result<u64> {
    let mut reader = BufReader::new(file);
    let (mut whole, mut number, mut line) = (0, 0, Vec::new());
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Ok(whole);
        }
        number += 1;
        let Line { id, outcome } =
            serde_json::from_slice(&line).with_context(|| format!("line {number} is not a result"))?;
        known(id, outcome);
        whole += read as u64;
    }
}

/// Reads CSV records; returns where the last whole one ends, and the header.
///
/// A record is whole when it has every column and its newline: the last column never holds a newline of its own.
fn records(file: &File, known: &mut dyn FnMut(Id, Outcome)) -> anyhow::Result<(u64, Option<Vec<String>>)> {
    let mut reader = csv::Reader::from_reader(file);
    let header: Vec<String> = reader.headers()?.iter().map(str::to_owned).collect();
    let length = file.metadata()?.len();
    if !ends_in_newline(file, reader.position().byte())? {
        return Ok((0, None));
    }
    if !row::knows(&header) {
        bail!("its header is not the one that this version writes");
    }
    let mut record = csv::StringRecord::new();
    let mut whole = reader.position().byte();
    loop {
        match reader.read_record(&mut record) {
            Ok(true) if ends_in_newline(file, reader.position().byte())? => {}
            Ok(true) => break,
            Ok(false) => break,
            Err(error) if reader.is_done() || reader.position().byte() >= length => {
                tracing::debug!(%error, "the last record is torn");
                break;
            }
            Err(error) => return Err(error.into()),
        }
        let field = |column: usize| record.get(column).unwrap_or_default().to_owned();
        let outcome = serde_json::from_value(serde_json::Value::String(field(6)))
            .with_context(|| format!("line {}", reader.position().line()))?;
        known(field(0).parse()?, outcome);
        whole = reader.position().byte();
    }
    Ok((whole, Some(header)))
}

fn ends_in_newline(file: &File, position: u64) -> anyhow::Result<bool> {
    use std::os::unix::fs::FileExt as _;
    let mut last = [0];
    if position > 0 {
        file.read_exact_at(&mut last, position - 1)?;
    }
    Ok(last == [b'\n'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{rows::Rows, sample};
    use std::io::Write as _;

    fn written(format: Format) -> Vec<u8> {
        let mut rows = Rows::new(format, None, Vec::new(), None);
        for image in ["1", "a\nb", "3"] {
            let mut result = sample(image, "m", Outcome::Ok, 1);
            result.metadata.insert("note".into(), "two\nlines, \"quoted\"".into());
            rows.result(&result).unwrap();
        }
        rows.drain().unwrap()
    }

    fn reopened(bytes: &[u8], format: Format) -> (Vec<Id>, Earlier, u64) {
        let mut file = tempfile();
        file.1.write_all(bytes).unwrap();
        let mut ids = Vec::new();
        let earlier = open(&file.0, format, &mut |id, _| ids.push(id)).unwrap();
        let length = std::fs::metadata(&file.0).unwrap().len();
        std::fs::remove_file(&file.0).unwrap();
        (ids, earlier, length)
    }

    fn tempfile() -> (std::path::PathBuf, File) {
        let name = format!("pixfleet-earlier-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name.replace(['(', ')'], ""));
        (path.clone(), File::create(&path).unwrap())
    }

    #[test]
    fn a_file_torn_at_any_byte_goes_on_with_its_whole_rows() {
        for format in [Format::Jsonl, Format::Csv] {
            let all = written(format);
            for cut in 0..=all.len() {
                let (ids, _, length) = reopened(&all[..cut], format);
                assert!(length <= cut as u64 && all[..length as usize].ends_with(b"\n") | (length == 0));
                if cut == all.len() {
                    assert_eq!((ids.len(), length), (3, cut as u64));
                } else {
                    assert!(ids.len() < 3, "{format:?} torn at {cut} of {}", all.len());
                }
            }
        }
    }

    #[test]
    fn a_file_of_something_else_is_refused_by_name() {
        for (format, text) in
            [(Format::Jsonl, "hello\nworld\n"), (Format::Csv, "a,b\n1,2\n"), (Format::Table, "")]
        {
            let (path, mut file) = tempfile();
            file.write_all(text.as_bytes()).unwrap();
            let error = open(&path, format, &mut |_, _| {}).unwrap_err();
            assert!(format!("{error:#}").contains("give"), "{error:#}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "it is left as it was");
            std::fs::remove_file(&path).unwrap();
        }
    }
}
