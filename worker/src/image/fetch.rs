//! Fetches the bytes of a picture's URL, with a client of its own.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use reqwest::header::{ACCEPT, LOCATION};
use url::Url;

use super::{
    BadConfig, Config, ImageError,
    guard::{Guard, GuardedResolver, Refused},
    too_large,
};
use crate::client::{self, Content};

/// Fetches pictures, each within its bounds.
#[derive(Debug)]
pub(super) struct Fetcher {
    client: reqwest::Client,
    guard: Arc<Guard>,
    max_redirects: u8,
    max_bytes: usize,
    total: Duration,
}

impl Fetcher {
    pub(super) fn new(config: &Config) -> Result<Self, BadConfig> {
        let guard = Arc::new(Guard::new(config)?);
        // No proxy: it would resolve names for us, behind the guard's back.
        let client = client::base_builder()
            .connect_timeout(Duration::from_millis(config.connect_ms))
            .dns_resolver(GuardedResolver(Arc::clone(&guard)))
            .build()
            .map_err(|error| BadConfig {
                field: "connect_ms",
                why: client::causes(&error),
            })?;
        Ok(Self {
            client,
            guard,
            max_redirects: config.max_redirects,
            max_bytes: config.max_bytes,
            total: Duration::from_millis(config.total_ms),
        })
    }

    /// The bytes at `url`.
    ///
    /// # Errors
    /// Rejected: a refused address, a 4xx, too many redirects or bytes. Transient: a timeout, a 5xx, a cut.
    pub(super) async fn fetch(&self, url: Url) -> Result<Bytes, ImageError> {
        let host = url.host_str().unwrap_or_default().to_owned();
        let fetched = tokio::time::timeout(self.total, self.follow(url)).await;
        let fetched = fetched.unwrap_or_else(|_| {
            Err(ImageError::Transient(format!(
                "no picture within {:?}",
                self.total
            )))
        });
        fetched.map_err(|error| match error {
            ImageError::Rejected(why) => ImageError::Rejected(format!("picture at {host}: {why}")),
            ImageError::Transient(why) => ImageError::Transient(format!("picture at {host}: {why}")),
        })
    }

    async fn follow(&self, mut url: Url) -> Result<Bytes, ImageError> {
        for _ in 0..=self.max_redirects {
            self.guard
                .check_url(&url)
                .map_err(|refused| ImageError::Rejected(refused.to_string()))?;
            let request = self.client.get(url.clone()).header(ACCEPT, "image/*,*/*;q=0.5");
            let response = request.send().await.map_err(failed)?;
            let status = response.status();
            if status.is_success() {
                return self.body(response).await;
            }
            if !status.is_redirection() {
                return Err(refused_status(status.as_u16()));
            }
            let next = response
                .headers()
                .get(LOCATION)
                .and_then(|to| url.join(to.to_str().ok()?).ok());
            url = next.ok_or_else(|| ImageError::Rejected(format!("status {status} leads nowhere")))?;
        }
        Err(ImageError::Rejected(format!(
            "more than {} redirects (image.max_redirects)",
            self.max_redirects
        )))
    }

    async fn body(&self, response: reqwest::Response) -> Result<Bytes, ImageError> {
        match client::read_body(response, self.max_bytes).await {
            Content::Whole(bytes) if bytes.is_empty() => {
                Err(ImageError::Rejected("the answer is empty".into()))
            }
            Content::Whole(bytes) => Ok(bytes),
            Content::TooLarge(limit) => Err(too_large(limit)),
            Content::Cut(why) => Err(ImageError::Transient(format!("the answer was cut off: {why}"))),
        }
    }
}

/// A picture's server says no: for good, unless it is a matter of time.
fn refused_status(status: u16) -> ImageError {
    let why = format!("status {status}");
    match status {
        408 | 425 | 429 => ImageError::Transient(why),
        400..=499 => ImageError::Rejected(why),
        _ => ImageError::Transient(why),
    }
}

/// A refusal by the guard comes back from deep inside the connector.
fn failed(error: reqwest::Error) -> ImageError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        if let Some(refused) = inner.downcast_ref::<Refused>() {
            return ImageError::Rejected(refused.to_string());
        }
        cause = inner.source();
    }
    ImageError::Transient(client::causes(&error.without_url()))
}
