//! A plain list: one URL a line. Blank lines and lines that begin with `#` are passed over.

use std::{collections::BTreeMap, io::BufRead, sync::Arc};

use pixfleet_shared::job::Image;

use super::{
    Broken, Fault, MAX_ROW_BYTES, Place, Row, Wrong,
    lines::{Line, Lines},
    source::Sources,
};

/// The rows of a list.
pub(super) struct ListRows<R> {
    pub(super) lines: Lines<R>,
    pub(super) file: Arc<str>,
    pub(super) sources: Sources,
    pub(super) line: Vec<u8>,
}

impl<R: BufRead> Iterator for ListRows<R> {
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
            if text.is_empty() || text.starts_with(b"#") {
                continue;
            }
            let place = Place { file: Arc::clone(&self.file), line };
            let image = if whole { image(text, &self.sources) } else { Err(too_long()) };
            return Some(match image {
                Ok(image) => Ok(Row { place, image, metadata: BTreeMap::new() }),
                Err(wrong) => Err(wrong.at(place, text)),
            });
        }
    }
}

pub(super) fn too_long() -> Wrong {
    Wrong::row(format!("a row of more than {MAX_ROW_BYTES} bytes: give the picture's URL or path instead"))
}

fn image(text: &[u8], sources: &Sources) -> Result<Image, Wrong> {
    let text = str::from_utf8(text).map_err(|_| Wrong::row("not UTF-8: save the list as UTF-8"))?;
    let source = sources.url(text).map_err(Wrong::row)?;
    Ok(Image { id: super::columns::default_id(text), source })
}
