//! The source of a picture, as a manifest names it, checked and made into what travels.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use pixfleet_shared::job::{MAX_JOB_BYTES, Source};
use url::Url;

/// The longest URL in bytes: servers and proxies refuse longer ones.
const MAX_URL_BYTES: usize = 8 * 1024;
/// The largest picture that travels inside its job: what is left of a message in base64 after 16 KiB for the rest.
pub(super) const MAX_INLINE_BYTES: u64 = (MAX_JOB_BYTES as u64 - 16 * 1024) / 4 * 3;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How the sources of one manifest are read.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    /// Where relative paths begin.
    pub(super) folder: PathBuf,
    /// Files travel as their absolute path.
    pub(super) by_path: bool,
}

impl Sources {
    /// An `http` or `https` URL with a host, kept as it is written.
    pub(super) fn url(&self, text: &str) -> Result<Source, String> {
        url(text).map(|()| Source::Url(text.to_owned()))
    }

    /// A file below the manifest's folder, as its bytes or as its absolute path.
    pub(super) fn file(&self, text: &str) -> Result<Source, String> {
        self.path(&self.folder.join(text))
    }

    /// A file, as its bytes or as its absolute path. By path it is not opened: it may be there for the workers only.
    pub(super) fn path(&self, path: &Path) -> Result<Source, String> {
        if self.by_path {
            let absolute = std::path::absolute(path).map_err(|error| error.to_string())?;
            return absolute
                .into_os_string()
                .into_string()
                .map(Source::Object)
                .map_err(|_| "a path that is not UTF-8 can't travel in a job: rename the file".to_owned());
        }
        let bytes = read(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!("there is no file {}", path.display()),
            io::ErrorKind::FileTooLarge => too_large(&error.to_string()),
            _ => format!("{} can't be read: {error}", path.display()),
        })?;
        if bytes.is_empty() { Err("the file is empty".to_owned()) } else { Ok(inline(&bytes)) }
    }

    /// Base64 in either alphabet, with or without padding or a `data:` prefix; travels in the standard one.
    pub(super) fn base64(&self, text: &str) -> Result<Source, String> {
        let data = match text.strip_prefix("data:") {
            Some(url) => url.split_once(";base64,").ok_or("a data URL without `;base64,`")?.1,
            None => text,
        };
        let standard: String = data
            .chars()
            .map(|c| match c {
                '-' => '+',
                '_' => '/',
                c => c,
            })
            .collect();
        let bytes = BASE64.decode(standard).map_err(|error| format!("not base64: {error}"))?;
        match bytes.len() as u64 {
            0 => Err("no bytes at all".to_owned()),
            size if size > MAX_INLINE_BYTES => Err(too_large(&format!("{size} bytes"))),
            _ => Ok(inline(&bytes)),
        }
    }
}

fn inline(bytes: &[u8]) -> Source {
    Source::Inline(base64::engine::general_purpose::STANDARD.encode(bytes))
}

fn too_large(size: &str) -> String {
    format!(
        "the picture has {size}, above the {MAX_INLINE_BYTES} that fit into a job: give its URL, or use --by-path and let the workers read the file"
    )
}

/// The bytes of a file, unless there are too many; a file that grows meanwhile is not read beyond the bound either.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut bytes = Vec::new();
    if size <= MAX_INLINE_BYTES {
        file.take(MAX_INLINE_BYTES + 1).read_to_end(&mut bytes)?;
    }
    match size.max(bytes.len() as u64) {
        size if size > MAX_INLINE_BYTES => {
            Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{size} bytes")))
        }
        _ => Ok(bytes),
    }
}

fn url(text: &str) -> Result<(), String> {
    if text.len() > MAX_URL_BYTES {
        return Err(format!("a URL of {} bytes: give at most {MAX_URL_BYTES}", text.len()));
    }
    // The parser would drop tabs and newlines silently, and send what the user never wrote.
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("a URL with a blank or a control character in it: write a blank as %20".to_owned());
    }
    let parsed =
        Url::parse(text).map_err(|error| format!("not a URL ({error}): begin with https:// or http://"))?;
    match parsed.scheme() {
        "http" | "https" if parsed.host_str().is_some_and(|host| !host.is_empty()) => Ok(()),
        "http" | "https" => Err("a URL without a host".to_owned()),
        other => Err(format!("a URL of the scheme `{other}`: workers fetch https:// and http:// only")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn sources(folder: &Path, by_path: bool) -> Sources {
        Sources { folder: folder.to_owned(), by_path }
    }

    #[test]
    fn only_urls_that_a_worker_can_fetch_pass() {
        for good in ["https://e.com/a.jpg?x=%20,1", "http://127.0.0.1:8080/a", "HTTPS://E.COM/é.jpg"] {
            assert_eq!(url(good), Ok(()), "{good}");
        }
        let long = format!("https://e.com/{}", "a".repeat(MAX_URL_BYTES));
        for bad in [
            "",
            "a.jpg",
            "//e.com/a",
            "ftp://e.com/a",
            "file:///etc/passwd",
            "https://",
            "http://e.com/a b",
            "http://e.com/\ta",
            "http://[::1",
            &long,
        ] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn base64_of_any_writing_travels_as_the_standard_one() {
        let sources = sources(Path::new(""), false);
        let standard = Source::Inline("+/+/".into());
        for text in ["+/+/", "-_-_", "data:image/jpeg;base64,-_-_"] {
            assert_eq!(sources.base64(text).as_ref(), Ok(&standard), "{text}");
        }
        assert_eq!(sources.base64("QQ"), Ok(Source::Inline("QQ==".into())));
        for bad in ["", "a", "not base64!", "data:image/jpeg,abc"] {
            assert!(sources.base64(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_travels_inside_its_job_up_to_the_bound_and_beyond_it_the_way_out_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let sources = sources(folder.path(), false);
        fs::write(folder.path().join("a.jpg"), [0xff, 0xd8, 0xff]).unwrap();
        fs::write(folder.path().join("empty.jpg"), []).unwrap();
        fs::write(folder.path().join("most.jpg"), vec![0; MAX_INLINE_BYTES as usize]).unwrap();
        fs::write(folder.path().join("more.jpg"), vec![0; MAX_INLINE_BYTES as usize + 1]).unwrap();
        assert_eq!(sources.file("a.jpg"), Ok(Source::Inline("/9j/".into())));
        assert!(sources.file("most.jpg").is_ok());
        assert!(sources.file("more.jpg").unwrap_err().contains("--by-path"));
        assert!(sources.file("empty.jpg").unwrap_err().contains("empty"));
        assert!(sources.file("none.jpg").unwrap_err().contains("none.jpg"));
    }

    #[test]
    fn by_path_a_file_travels_as_its_absolute_path_even_if_only_workers_see_it() {
        let sources = sources(Path::new("/data"), true);
        assert_eq!(sources.file("a/b.jpg"), Ok(Source::Object("/data/a/b.jpg".into())));
        assert_eq!(sources.file("/elsewhere/b.jpg"), Ok(Source::Object("/elsewhere/b.jpg".into())));
    }
}
