//! Opening: a file or stdin becomes a text that can be read, decompressed, with its first bytes already looked at.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Cursor, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::sniff::{self, Compression, PICTURE_HEAD};

/// How much of a text may be looked at to tell its format.
const HEAD_BYTES: usize = 64 * 1024;
/// How much is read from a file at once.
const BUFFER_BYTES: usize = 64 * 1024;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A text, from its beginning, and the first bytes of it.
pub(super) struct Text {
    pub(super) head: Vec<u8>,
    pub(super) input: Box<dyn BufRead + Send>,
}

/// What a file turned out to be.
pub(super) enum Opened {
    Picture,
    Text(Text),
}

/// Opens a file and looks at what it is. `read` counts its bytes.
pub(super) fn file(path: &Path, read: &Arc<AtomicU64>) -> io::Result<Opened> {
    open(Box::new(File::open(path)?), read)
}

/// Opens stdin, and likewise.
pub(super) fn stdin(read: &Arc<AtomicU64>) -> io::Result<Opened> {
    open(Box::new(io::stdin()), read)
}

/// The first bytes of a file, as many as a picture is known by.
pub(super) fn picture_head(path: &Path) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path)?.take(PICTURE_HEAD as u64).read_to_end(&mut head)?;
    Ok(head)
}

fn open(raw: Box<dyn Read + Send>, read: &Arc<AtomicU64>) -> io::Result<Opened> {
    let mut raw = BufReader::with_capacity(BUFFER_BYTES, Counted { inner: raw, read: Arc::clone(read) });
    let mut magic = Vec::new();
    raw.by_ref().take(PICTURE_HEAD as u64).read_to_end(&mut magic)?;
    if sniff::is_picture(&magic) {
        return Ok(Opened::Picture);
    }
    let compression = Compression::of(&magic);
    let whole = Cursor::new(magic).chain(raw);
    let plain: Box<dyn Read + Send> = match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(whole)?),
    };
    text(plain).map(Opened::Text)
}

/// Looks at the beginning of a text, takes its byte order mark off, and puts the rest of the beginning back.
fn text(mut plain: Box<dyn Read + Send>) -> io::Result<Text> {
    let mut head = Vec::new();
    // No further than to the end of the first line that tells something: a pipe may be slow, and never end.
    while head.len() < HEAD_BYTES && !tells(&head) {
        let before = head.len();
        head.resize(HEAD_BYTES, 0);
        let got = loop {
            match plain.read(&mut head[before..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                got => break got?,
            }
        };
        head.truncate(before + got);
        if got == 0 {
            break;
        }
    }
    if head.starts_with(BYTE_ORDER_MARK) {
        head.drain(..BYTE_ORDER_MARK.len());
    }
    let whole = Cursor::new(head.clone()).chain(plain);
    Ok(Text { head, input: Box::new(BufReader::with_capacity(BUFFER_BYTES, whole)) })
}

fn tells(head: &[u8]) -> bool {
    let complete = head.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    sniff::first_line(&head[..complete]).is_some()
}

/// Counts the bytes that pass.
struct Counted {
    inner: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.read.fetch_add(got as u64, Ordering::Relaxed);
        Ok(got)
    }
}
