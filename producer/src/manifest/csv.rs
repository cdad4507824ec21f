//! CSV: a header that names the columns, then one row a record. Quoted fields may hold delimiters and newlines.
//!
//! The parser runs on buffers of ours, so that a record of any length (a quote that is never closed swallows the
//! rest of the file) takes no more memory than the longest row.

use std::{
    io::{self, BufRead},
    sync::Arc,
};

use csv_core::ReadRecordResult;

use super::{Broken, Fault, MAX_ROW_BYTES, Place, Reading, Row, Wrong, columns::Layout, source::Sources};

/// The most columns of a row.
const MAX_COLUMNS: usize = 1024;
/// What is kept of a record that is too long, to show it.
const KEPT_BYTES: usize = 4096;

/// The records of a CSV text, each in the same buffers.
struct Records<R> {
    parser: csv_core::Reader,
    input: R,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// How many fields the current record has; 0 when it is too long.
    used: usize,
}

/// How a record was read.
struct Record {
    /// The line on which it begins.
    line: u64,
    /// All of it is in the buffers.
    whole: bool,
}

impl<R: BufRead> Records<R> {
    fn new(input: R, delimiter: u8) -> Self {
        Self {
            parser: csv_core::ReaderBuilder::new().delimiter(delimiter).build(),
            input,
            bytes: vec![0; KEPT_BYTES],
            ends: vec![0; 64],
            used: 0,
        }
    }

    /// The next record; `None` at the end of the text.
    fn next(&mut self) -> io::Result<Option<Record>> {
        let (mut used, mut ends, mut whole) = (0, 0, true);
        let (mut newlines, mut last) = (0, 0);
        loop {
            let available = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                available => available?,
            };
            let (result, read, wrote, ended) =
                self.parser.read_record(available, &mut self.bytes[used..], &mut self.ends[ends..]);
            last = available[..read].last().copied().unwrap_or(last);
            newlines += self.bytes[used..used + wrote].iter().filter(|byte| **byte == b'\n').count() as u64;
            self.input.consume(read);
            used += wrote;
            ends += ended;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if whole && self.bytes.len() < MAX_ROW_BYTES => {
                    self.bytes.resize(self.bytes.len() * 2, 0);
                }
                ReadRecordResult::OutputEndsFull if whole && self.ends.len() < MAX_COLUMNS => {
                    self.ends.resize(self.ends.len() * 2, 0);
                }
                // Too long: its beginning stays, the rest is written over and over.
                ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {
                    whole = false;
                    used = used.min(KEPT_BYTES / 2);
                    ends = 0;
                }
                ReadRecordResult::Record => {
                    self.used = if whole { ends } else { 0 };
                    let after = u64::from(last == b'\n');
                    let line = self.parser.line().saturating_sub(after + newlines);
                    return Ok(Some(Record { line, whole }));
                }
                ReadRecordResult::End => return Ok(None),
            }
        }
    }

    /// The fields of the current record.
    fn fields(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends[..self.used].iter().map(move |end| {
            let field = &self.bytes[start..*end];
            start = *end;
            field
        })
    }
}

/// The rows of a CSV text.
pub(super) struct CsvRows<R> {
    records: Records<R>,
    delimiter: u8,
    names: Vec<String>,
    layout: Layout,
    file: Arc<str>,
    sources: Sources,
}

impl<R: BufRead> CsvRows<R> {
    /// Reads the header. `None` for an empty text.
    pub(super) fn open(
        input: R,
        delimiter: u8,
        file: Arc<str>,
        sources: Sources,
        reading: &Reading,
    ) -> Result<Option<Self>, Broken> {
        let broken = |reason: String| Broken::new(&*file, reason);
        let mut records = Records::new(input, delimiter);
        let Some(header) = records.next().map_err(|error| broken(error.to_string()))? else {
            return Ok(None);
        };
        if !header.whole {
            return Err(broken(format!(
                "the header has more than {MAX_COLUMNS} columns or {MAX_ROW_BYTES} bytes"
            )));
        }
        let names = header_names(records.fields()).map_err(broken)?;
        let layout = Layout::of(&names, &reading.columns).map_err(broken)?;
        Ok(Some(Self { records, delimiter, names, layout, file, sources }))
    }

    fn row(&self, record: &Record, place: Place) -> Result<Row, Fault> {
        let bad = |wrong: Wrong| wrong.at(place.clone(), &self.raw());
        if !record.whole {
            return Err(bad(Wrong::row(format!(
                "a row of more than {MAX_COLUMNS} columns or {MAX_ROW_BYTES} bytes: is a quote not closed?"
            ))));
        }
        let mut fields = Vec::with_capacity(self.names.len());
        for (index, field) in self.records.fields().enumerate() {
            let name = self.names.get(index).map_or("", String::as_str);
            let text = str::from_utf8(field)
                .map_err(|_| bad(Wrong::field(name, "not UTF-8: save the file as UTF-8")))?;
            fields.push(Some(text));
        }
        if fields.len() != self.names.len() {
            return Err(bad(Wrong::row(format!(
                "has {} fields, and the header names {}: quote fields that hold the delimiter",
                fields.len(),
                self.names.len()
            ))));
        }
        let (image, metadata) = self.layout.image(&self.names, &fields, &self.sources).map_err(bad)?;
        Ok(Row { place, image, metadata })
    }

    /// The current record as CSV again, its first bytes.
    fn raw(&self) -> Vec<u8> {
        let mut raw = Vec::new();
        if self.records.used == 0 {
            // Too long: where its fields end was overwritten.
            return self.records.bytes[..KEPT_BYTES / 2].to_vec();
        }
        for (index, field) in self.records.fields().enumerate() {
            if index > 0 {
                raw.push(self.delimiter);
            }
            let field = &field[..field.len().min(KEPT_BYTES)];
            if field.iter().any(|byte| *byte == self.delimiter || b"\"\r\n".contains(byte)) {
                let quoted = field.iter().flat_map(|byte| {
                    if *byte == b'"' { b"\"\"".as_slice() } else { std::slice::from_ref(byte) }
                });
                raw.push(b'"');
                raw.extend(quoted);
                raw.push(b'"');
            } else {
                raw.extend_from_slice(field);
            }
            if raw.len() > KEPT_BYTES {
                break;
            }
        }
        raw
    }
}

impl<R: BufRead> Iterator for CsvRows<R> {
    type Item = Result<Row, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.records.next() {
            Ok(Some(record)) => {
                let place = Place { file: Arc::clone(&self.file), line: record.line };
                Some(self.row(&record, place))
            }
            Ok(None) => None,
            Err(error) => Some(Err(Broken::new(&*self.file, error).into())),
        }
    }
}

fn header_names<'a>(fields: impl Iterator<Item = &'a [u8]>) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = Vec::new();
    for (index, field) in fields.enumerate() {
        let name =
            str::from_utf8(field).map_err(|_| "the header is not UTF-8: save the file as UTF-8")?.trim();
        let name = if name.is_empty() { format!("column_{}", index + 1) } else { name.to_owned() };
        if names.contains(&name) {
            return Err(format!("the header names `{}` twice: rename one", super::shown(name.as_bytes())));
        }
        names.push(name);
    }
    Ok(names)
}
