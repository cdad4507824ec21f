//! The image of a call: its reference, and the reasons to refuse it.

use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sha2::{Digest, Sha256};

use crate::contract::Refusal;

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const PLAIN: GeneralPurpose = GeneralPurpose::new(&STANDARD, LENIENT);
const URL: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, LENIENT);

/// Which base64 letters a contract takes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Alphabet {
    Standard,
    UrlSafe,
}

/// The reference of an image given by URL: the URL as it stands.
///
/// Refused: anything that is not `http(s)://host…`, and a file name that begins with `broken` (so that a test has an
/// image that can never be read).
pub(crate) fn by_url(url: &str) -> Result<String, Refusal> {
    let unreadable = |why: &str| Refusal::InvalidImage(why.to_owned());
    let parsed = url::Url::parse(url).map_err(|_| unreadable("image_url is not a URL"))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(unreadable("image_url must be http or https"));
    }
    if parsed
        .path_segments()
        .and_then(|mut path| path.next_back())
        .is_some_and(|file| file.starts_with("broken"))
    {
        return Err(unreadable("the image could not be read"));
    }
    Ok(url.to_owned())
}

/// The reference of an uploaded image: the SHA-256 of its bytes in lower-case hex.
///
/// Refused: what is not base64 of that alphabet, and bytes that begin like no image.
pub(crate) fn by_base64(text: &str, alphabet: Alphabet) -> Result<String, Refusal> {
    let engine = match alphabet {
        Alphabet::Standard => PLAIN,
        Alphabet::UrlSafe => URL,
    };
    let bytes = engine.decode(text).map_err(|_| {
        Refusal::InvalidImage(match alphabet {
            Alphabet::Standard => "the image is not base64".into(),
            Alphabet::UrlSafe => "image_base64 is not URL-safe base64".into(),
        })
    })?;
    if ::image::guess_format(&bytes).is_err() {
        return Err(Refusal::InvalidImage("the upload is not an image of a known format".into()));
    }
    Ok(hex(&Sha256::digest(&bytes)))
}

/// The reference of an image given by URL or by a `data:` URL with base64.
pub(crate) fn by_url_or_data(url: &str) -> Result<String, Refusal> {
    match url.strip_prefix("data:") {
        None => by_url(url),
        Some(data) => match data.split_once(";base64,") {
            Some((kind, text)) if kind.starts_with("image/") => by_base64(text, Alphabet::Standard),
            _ => Err(Refusal::InvalidImage("a data URL must be data:image/...;base64,...".into())),
        },
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
