//! JSONL: one object a line. Its fields play the same roles as the columns of a CSV; the further ones are metadata.

use std::{borrow::Cow, collections::BTreeMap, io::BufRead, sync::Arc};

use pixfleet_shared::job::Image;
use serde_json::value::RawValue;

use super::{
    Broken, Fault, Place, Reading, Row, Wrong,
    columns::Layout,
    lines::{Line, Lines},
    list::too_long,
    source::Sources,
};

/// The rows of a JSONL text.
pub(super) struct JsonlRows<R> {
    pub(super) lines: Lines<R>,
    pub(super) file: Arc<str>,
    pub(super) sources: Sources,
    pub(super) reading: Arc<Reading>,
    pub(super) line: Vec<u8>,
}

impl<R: BufRead> Iterator for JsonlRows<R> {
    type Item = Result<Row, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (line, whole) = match self.lines.next(&mut self.line) {
                Ok(Some(Line::Whole(line))) => (line, true),
                Ok(Some(Line::TooLong(line))) => (line, false),
                Ok(None) => return None,
                Err(error) => return Some(Err(Broken::new(&*self.file, error).into())),
            };
            let text = self.line.trim_ascii();
            if text.is_empty() {
                continue;
            }
            let place = Place { file: Arc::clone(&self.file), line };
            let row = if whole { row(text, &self.reading, &self.sources) } else { Err(too_long()) };
            return Some(match row {
                Ok((image, metadata)) => Ok(Row { place, image, metadata }),
                Err(wrong) => Err(wrong.at(place, text)),
            });
        }
    }
}

fn row(
    text: &[u8],
    reading: &Reading,
    sources: &Sources,
) -> Result<(Image, BTreeMap<String, String>), Wrong> {
    let text = str::from_utf8(text).map_err(|_| Wrong::row("not UTF-8: JSON is always UTF-8"))?;
    // Raw values: a number keeps every digit that it is written with.
    let object: BTreeMap<Cow<'_, str>, &RawValue> =
        serde_json::from_str(text).map_err(|error| Wrong::row(format!("not a JSON object: {error}")))?;
    let names: Vec<&str> = object.keys().map(AsRef::as_ref).collect();
    let layout = Layout::of(&names, &reading.columns).map_err(Wrong::row)?;
    let values: Vec<Option<Cow<'_, str>>> = object.values().map(|value| plain(value.get())).collect();
    let fields: Vec<Option<&str>> = values.iter().map(Option::as_deref).collect();
    layout.image(&names, &fields, sources)
}

/// A text without its quotes, nothing for null, and any other value as it is written.
fn plain(json: &str) -> Option<Cow<'_, str>> {
    match json.as_bytes().first() {
        Some(b'"') => serde_json::from_str::<String>(json).ok().map(Cow::Owned),
        Some(b'n') => None,
        _ => Some(Cow::Borrowed(json)),
    }
}
