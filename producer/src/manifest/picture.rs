//! A file that is a row itself: a picture, named on the command line or found in a folder.

use std::{collections::BTreeMap, path::Path};

use pixfleet_shared::job::Image;

use super::{Fault, Place, Reading, Row, Wrong, name_of, sniff, source::Sources};

/// The row of the picture at `path`; its path, as it was named, is its id.
pub(super) fn row(path: &Path, reading: &Reading) -> Result<Row, Fault> {
    let place = Place { file: name_of(path), line: 0 };
    let sources = Sources { folder: std::path::PathBuf::new(), by_path: reading.by_path };
    match sources.path(path) {
        Ok(source) => {
            Ok(Row { image: Image { id: place.file.to_string(), source }, place, metadata: BTreeMap::new() })
        }
        Err(reason) => Err(Wrong::row(reason).at(place, b"")),
    }
}

/// What a file of a folder is: a picture, something else (`None`), or something else that is named like a picture.
pub(super) fn found(path: &Path, reading: &Reading) -> Option<Result<Row, Fault>> {
    let wrong = |reason: String| {
        let place = Place { file: name_of(path), line: 0 };
        Some(Err(Wrong::row(reason).at(place, b"")))
    };
    match super::open::picture_head(path) {
        Ok(head) if sniff::is_picture(&head) => Some(row(path, reading)),
        Ok(head) if sniff::has_picture_name(path) && head.is_empty() => wrong("the file is empty".to_owned()),
        Ok(_) if sniff::has_picture_name(path) => {
            wrong("named like a picture, and its content is none".to_owned())
        }
        Ok(_) => None,
        Err(error) => wrong(format!("can't be read: {error}")),
    }
}
