//! The picture of a job, made ready before the slot is asked for.
//!
//! `fetch.rs` brings the bytes of a URL, behind the `guard.rs` that keeps jobs from reaching into the network that
//! the worker stands in; `object.rs` reads files below the roots; `preparation.rs` says what a provider wants,
//! and `prepare.rs` scales and encodes.

mod fetch;
mod guard;
mod object;
mod preparation;
mod prepare;

use std::path::PathBuf;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use pixfleet_shared::job::Source;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

pub use preparation::{Format, Preparation};

use fetch::Fetched;

/// How pictures are fetched, and from where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folders below which `object` pictures may lie; a link that leads out of them is refused. Default: none, so
    /// such jobs are rejected.
    pub roots: Vec<PathBuf>,
    /// Whether pictures may be fetched from private and loopback addresses (10/8, 172.16/12, 192.168/16, 127/8,
    /// fc00::/7, ::1). Default: no, so that a job's URL can't reach into your network.
    pub allow_private: bool,
    /// Further networks that pictures may be fetched from, as CIDRs; they go before every refusal. Default: none.
    pub allow: Vec<String>,
    /// The ports that pictures may be fetched from. Default: 80 and 443; empty means any.
    pub ports: Vec<u16>,
    /// Most redirects that are followed, each checked like the first URL. Default: 3.
    pub max_redirects: u8,
    /// Largest picture, in bytes. Default: 20971520 (20 MiB).
    pub max_bytes: usize,
    /// Largest picture that is decoded, in pixels: a small file may unpack into gigabytes. One with 16 bits a channel counts
    /// twice, and all that are decoded at once have the room of the largest. Default: 64000000.
    pub max_pixels: u64,
    /// Longest time to connect, in milliseconds. Default: 3000.
    pub connect_ms: u64,
    /// Longest time of a fetch, redirects included, in milliseconds. Default: 20000.
    pub total_ms: u64,
    /// Most pictures that are scaled and encoded at once. Default: 0, which is one a processor.
    pub encoders: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            roots: Vec::new(),
            allow_private: false,
            allow: Vec::new(),
            ports: vec![80, 443],
            max_redirects: 3,
            max_bytes: 20 * 1024 * 1024,
            max_pixels: 64_000_000,
            connect_ms: 3000,
            total_ms: 20_000,
            encoders: 0,
        }
    }
}

/// How a provider wants its pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// It takes the URL of a picture that has one.
    pub url: bool,
    /// It takes bytes.
    pub bytes: bool,
    /// A URL may be fetched for it.
    pub fetch: bool,
    /// How bytes are made ready.
    pub preparation: Preparation,
}

/// A picture in the form in which it goes into a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Prepared {
    /// Its URL: the provider fetches it.
    Url(String),
    /// Its bytes.
    Bytes(Picture),
}

/// A picture's bytes; cloning shares them.
#[derive(Clone, PartialEq)]
pub struct Picture {
    /// The file's content.
    pub bytes: Bytes,
    /// Its content type, by what it holds and not by what anyone says.
    pub content_type: &'static str,
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({}, {} bytes)", self.content_type, self.bytes.len())
    }
}

impl Prepared {
    /// The content type; empty for a URL.
    pub fn content_type(&self) -> &'static str {
        match self {
            Self::Url(_) => "",
            Self::Bytes(picture) => picture.content_type,
        }
    }
}

/// There is no picture to send. The text names no query and no credentials of a URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Reject the image: it is missing, refused, too large, or no picture.
    #[error("{0}")]
    Rejected(String),
    /// Try again: a timeout, a server's trouble, a name that can't be resolved now.
    #[error("{0}")]
    Transient(String),
}

impl ImageError {
    /// Whether the same picture may come through later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Transient(_))
    }
}

/// The image settings can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("worker.fetch.{field}: {why}")]
pub struct BadConfig {
    /// The field of [`Config`].
    pub field: &'static str,
    /// What is wrong with it, and what to give instead.
    pub why: String,
}

/// Brings pictures and makes them ready; one a process.
#[derive(Debug)]
pub struct Images {
    fetcher: fetch::Fetcher,
    roots: object::Roots,
    workshop: prepare::Workshop,
    max_bytes: usize,
}

impl Images {
    /// From the settings; looks at the roots.
    ///
    /// # Errors
    /// [`BadConfig`] for a network that is none, a root that is not there, or no way to make an HTTP client.
    pub fn new(config: &Config) -> Result<Self, BadConfig> {
        let at_least_one = [
            ("max_bytes", config.max_bytes as u64),
            ("max_pixels", config.max_pixels),
            ("connect_ms", config.connect_ms),
            ("total_ms", config.total_ms),
        ];
        if let Some((field, _)) = at_least_one.into_iter().find(|(_, value)| *value == 0) {
            return Err(BadConfig { field, why: "give 1 or more".into() });
        }
        Ok(Self {
            fetcher: fetch::Fetcher::new(config)?,
            roots: object::Roots::new(&config.roots)?,
            workshop: prepare::Workshop::new(config.encoders, config.max_pixels),
            max_bytes: config.max_bytes,
        })
    }

    /// The picture at `source` as a provider wants it. Bounded in time and size.
    ///
    /// # Errors
    /// [`ImageError`].
    pub async fn prepare(&self, source: &Source, wanted: &Wanted) -> Result<Prepared, ImageError> {
        let bytes = match source {
            Source::Url(url) => {
                let parsed = web_url(url, source)?;
                match wanted {
                    Wanted { url: true, .. } => return Ok(Prepared::Url(url.clone())),
                    Wanted { bytes: true, fetch: true, .. } => {
                        let Fetched { bytes, room: _room } = self.fetcher.fetch(parsed).await?;
                        return self.workshop.prepare(bytes, &wanted.preparation).await.map(Prepared::Bytes);
                    }
                    _ => {
                        return Err(ImageError::Rejected(
                            "the provider does not take pictures by URL, and `fetch` is `never`".into(),
                        ));
                    }
                }
            }
            _ if !wanted.bytes => {
                let why = "the provider takes pictures by URL only, and this one has none";
                return Err(ImageError::Rejected(why.into()));
            }
            Source::Inline(base64) => self.decode(base64)?,
            Source::Object(path) => self.roots.read(path, self.max_bytes).await?,
        };
        self.workshop.prepare(bytes, &wanted.preparation).await.map(Prepared::Bytes)
    }

    /// A word of the server's of `url` that changes when the picture does; none where it tells none, or not in time.
    pub(crate) async fn validator(&self, url: &str) -> Option<String> {
        let url = web_url(url, &Source::Url(url.to_owned())).ok()?;
        self.fetcher.validator(url).await
    }

    fn decode(&self, base64: &str) -> Result<Bytes, ImageError> {
        if base64.len() / 4 * 3 > self.max_bytes + 2 {
            return Err(too_large(self.max_bytes));
        }
        let decoded = STANDARD
            .decode(base64)
            .map_err(|error| ImageError::Rejected(format!("the inline picture is no base64: {error}")))?;
        Ok(decoded.into())
    }
}

/// A URL that names a host on the web.
fn web_url(url: &str, source: &Source) -> Result<Url, ImageError> {
    let shown = || source.public().chars().take(200).collect::<String>();
    let parsed =
        Url::parse(url).map_err(|error| ImageError::Rejected(format!("`{}` is no URL: {error}", shown())))?;
    if matches!(parsed.scheme(), "http" | "https") && parsed.host().is_some() {
        Ok(parsed)
    } else {
        Err(ImageError::Rejected(format!("`{}`: a picture's URL begins with http:// or https://", shown())))
    }
}

fn too_large(max_bytes: usize) -> ImageError {
    ImageError::Rejected(format!("the picture has more than {max_bytes} bytes (worker.fetch.max_bytes)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(url: bool, bytes: bool, fetch: bool) -> Wanted {
        Wanted { url, bytes, fetch, preparation: Preparation::default() }
    }

    async fn prepare(source: Source, wanted: Wanted) -> Result<Prepared, ImageError> {
        Images::new(&Config { max_bytes: 9, ..Config::default() }).unwrap().prepare(&source, &wanted).await
    }

    #[tokio::test]
    async fn a_url_goes_to_a_provider_that_takes_urls_untouched() {
        let url = "https://a.example/1.jpg?sig=x".to_owned();
        assert_eq!(prepare(Source::Url(url.clone()), wanted(true, true, true)).await, Ok(Prepared::Url(url)));
    }

    #[tokio::test]
    async fn a_picture_in_a_form_that_the_provider_does_not_take_is_rejected() {
        let url = || Source::Url("https://a.example/1.jpg".into());
        for (source, wanted) in [
            (url(), wanted(false, true, false)),
            (Source::Inline("QUJD".into()), wanted(true, false, true)),
            (Source::Url("ftp://a.example/1.jpg".into()), wanted(true, true, true)),
            (Source::Url("1.jpg".into()), wanted(true, true, true)),
            (Source::Object("1.jpg".into()), wanted(true, true, true)),
        ] {
            assert!(!prepare(source, wanted).await.unwrap_err().is_transient());
        }
    }

    #[tokio::test]
    async fn inline_bytes_are_decoded_up_to_the_bound() {
        // The first bytes of a GIF.
        let picture =
            prepare(Source::Inline("R0lGODlhAQ==".into()), wanted(false, true, true)).await.unwrap();
        assert_eq!(picture.content_type(), "image/gif");
        for base64 in ["R0lGODlhAQAB".repeat(4), "R0lG ODlh".into(), String::new()] {
            assert!(prepare(Source::Inline(base64), wanted(false, true, true)).await.is_err());
        }
    }
}
