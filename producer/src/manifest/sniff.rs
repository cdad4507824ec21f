//! What some first bytes are: a picture, a compression, or a manifest's format. Pure.

use std::{path::Path, str::FromStr};

use super::columns::{ColumnNames, Layout};

/// The formats of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A header that names the columns, then one row a record. Delimited by `,`, `;`, a tab or `|`.
    Csv,
    /// One JSON object a line.
    Jsonl,
    /// One URL a line; lines that begin with `#` are comments.
    List,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 3] = [Self::Csv, Self::Jsonl, Self::List];

    /// The format's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Jsonl => "jsonl",
            Self::List => "list",
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|format| format.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is no manifest format: say csv, jsonl or list"))
    }
}

/// How some bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub(super) fn of(head: &[u8]) -> Self {
        if head.starts_with(&[0x1f, 0x8b]) {
            Self::Gzip
        } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Self::Zstd
        } else {
            Self::None
        }
    }
}

/// How many first bytes [`is_picture`] looks at.
pub(super) const PICTURE_HEAD: usize = 16;

/// Whether a file that begins with `head` is a picture: JPEG, PNG, GIF, WebP, BMP, TIFF, or HEIC and AVIF.
pub(super) fn is_picture(head: &[u8]) -> bool {
    let starts = |magic: &[u8]| head.starts_with(magic);
    let brand = |brands: &[&[u8]]| head.get(8..12).is_some_and(|found| brands.contains(&found));
    starts(&[0xff, 0xd8, 0xff])
        || starts(b"\x89PNG\r\n\x1a\n")
        || starts(b"GIF87a")
        || starts(b"GIF89a")
        || (starts(b"RIFF") && brand(&[b"WEBP"]))
        || starts(b"II*\0")
        || starts(b"MM\0*")
        // "BM" may begin a text; behind it a bitmap has its size and four reserved zeros.
        || (starts(b"BM") && head.get(6..10) == Some(&[0; 4]))
        || (head.get(4..8) == Some(b"ftyp") && brand(&[b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis"]))
}

/// Whether a file is named like a picture.
pub(super) fn has_picture_name(path: &Path) -> bool {
    const NAMES: [&str; 11] =
        ["jpg", "jpeg", "jfif", "png", "gif", "webp", "bmp", "tif", "tiff", "heic", "avif"];
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    NAMES.iter().any(|name| extension.eq_ignore_ascii_case(name))
}

/// The format of a text that begins with `head` (its byte order mark taken off).
pub(super) fn format(head: &[u8], columns: &ColumnNames) -> Result<Format, String> {
    if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
        return Err("the text is UTF-16: save it as UTF-8".to_owned());
    }
    let Some(first) = first_line(head) else {
        return Ok(Format::List); // nothing but blank lines and comments
    };
    match first {
        line if line.starts_with(b"{") => Ok(Format::Jsonl),
        line if line.starts_with(b"[") => Err(
            "a JSON array can't be streamed: write one object a line (jq -c '.[]')".to_owned(),
        ),
        line if is_url(line) && line.iter().any(|byte| b",;\t|\"".contains(byte)) => Err(
            "the first line is a URL with a delimiter in it: if this is CSV, add a header such as `url,id`; if it is a list of URLs, say --format list".to_owned(),
        ),
        line if is_url(line) => Ok(Format::List),
        line => csv(line, columns).map(|()| Format::Csv),
    }
}

/// The delimiter of the CSV text that begins with `head`: the one under which its header names a picture's place and
/// has the most columns.
pub(super) fn delimiter(head: &[u8], columns: &ColumnNames) -> u8 {
    let first = first_line(head).unwrap_or_default();
    let width = |delimiter: &u8| {
        let names = header(first, *delimiter);
        (Layout::of(&names, columns).is_ok(), names.len())
    };
    // The first of equals, hence the reversal: max_by_key takes the last.
    [b'|', b'\t', b';', b','].into_iter().max_by_key(width).unwrap_or(b',')
}

fn csv(first: &[u8], columns: &ColumnNames) -> Result<(), String> {
    let names = header(first, delimiter(first, columns));
    Layout::of(&names, columns).map(drop).map_err(|reason| {
        if !is_text(first) {
            // Its bytes say nothing to anybody, and much to a terminal.
            return "neither CSV with a header, nor JSONL, nor a list of URLs, nor a picture: it does not begin with text"
                .to_owned();
        }
        format!(
            "neither CSV with a header, nor JSONL, nor a list of URLs: as CSV, {reason}; as a list, its first line begins with neither https:// nor http://"
        )
    })
}

fn header(first: &[u8], delimiter: u8) -> Vec<String> {
    first
        .split(|byte| *byte == delimiter)
        .map(|name| String::from_utf8_lossy(name).trim().trim_matches('"').to_owned())
        .collect()
}

fn is_text(line: &[u8]) -> bool {
    std::str::from_utf8(line).is_ok_and(|line| !line.chars().any(|c| c.is_control() && c != '\t'))
}

/// The first line that is neither blank nor a comment.
pub(super) fn first_line(head: &[u8]) -> Option<&[u8]> {
    head.split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .find(|line| !line.is_empty() && !line.starts_with(b"#"))
}

fn is_url(line: &[u8]) -> bool {
    let begins =
        |scheme: &[u8]| line.get(..scheme.len()).is_some_and(|head| head.eq_ignore_ascii_case(scheme));
    begins(b"https://") || begins(b"http://")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(head: &str) -> Result<Format, String> {
        format(head.as_bytes(), &ColumnNames::default())
    }

    #[test]
    fn a_format_is_told_by_its_first_line() {
        assert_eq!(told("id,url\n1,https://e.com/1.jpg"), Ok(Format::Csv));
        assert_eq!(told("url"), Ok(Format::Csv));
        assert_eq!(told("id;\"image_url\"\r\n"), Ok(Format::Csv));
        assert_eq!(told("\n {\"url\": 1}"), Ok(Format::Jsonl));
        assert_eq!(told("# mine\n\nhttps://e.com/1.jpg\n"), Ok(Format::List));
        assert_eq!(told(""), Ok(Format::List));
    }

    #[test]
    fn what_can_be_misread_is_refused_with_a_way_out() {
        for (text, hint) in [
            ("https://e.com/1.jpg,row1\n", "--format list"),
            ("[{\"url\": 1}]", "jq"),
            ("\u{1}binary", "does not begin with text"),
            ("name,town\n", "found: name, town"),
        ] {
            let reason = told(text).unwrap_err();
            assert!(reason.contains(hint), "{text}: {reason}");
        }
        assert!(format(&[0xff, 0xfe, b'i', 0], &ColumnNames::default()).unwrap_err().contains("UTF-16"));
    }

    #[test]
    fn the_delimiter_is_the_one_that_makes_sense_of_the_header() {
        let of = |head: &str| delimiter(head.as_bytes(), &ColumnNames::default());
        assert_eq!(of("id,url"), b',');
        assert_eq!(of("id;url;price, net"), b';');
        assert_eq!(of("id\turl"), b'\t');
        assert_eq!(of("a|url"), b'|');
        assert_eq!(of("url"), b',');
    }

    #[test]
    fn pictures_are_known_by_their_first_bytes() {
        assert!(is_picture(b"\x89PNG\r\n\x1a\n...."));
        assert!(is_picture(b"RIFF....WEBPVP8 "));
        assert!(is_picture(b"BM\x01\x02\x03\x04\0\0\0\0"));
        assert!(!is_picture(b"BMW,url\n1,https://e.com"));
        assert!(!is_picture(b"RIFF....WAVE"));
        assert!(!is_picture(b""));
    }
}
