//! The request: all its bytes are made before the slot, so that sending it costs nothing.

use std::fmt;

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use jiff::Timestamp;
use pixfleet_shared::{id::Id, job::Job};
use reqwest::{
    Method,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
    multipart,
};
use url::Url;

use super::{
    Account, Provider,
    definition::{AuthKind, ImageForm},
    template::{JsonTemplate, Template, Values},
};
use crate::image::{Picture, Prepared};

/// A request whose every byte is made.
#[derive(Clone)]
pub struct PreparedRequest {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// The URL may hold the key and the body a picture: neither has a place in a log.
impl fmt::Debug for PreparedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, url, body, .. } = self;
        let host = url.host_str().unwrap_or_default();
        write!(f, "{method} {host}{} ({} bytes)", url.path(), body.len())
    }
}

/// This job can't be asked of this provider, now or later: it is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unaskable(String);

/// One compiled way of asking.
pub(super) struct Ask {
    pub(super) images: Vec<ImageForm>,
    pub(super) method: Method,
    pub(super) path: Vec<Template>,
    pub(super) path_many: Vec<Template>,
    pub(super) query: Vec<(String, Template)>,
    pub(super) headers: Vec<(HeaderName, Template)>,
    pub(super) body: Body,
}

/// The body of one way of asking.
pub(super) enum Body {
    None,
    Json(JsonTemplate),
    Form(Vec<(String, Template)>),
    Multipart(Vec<(String, Template)>),
    Raw,
}

/// The key by which a vendor knows that a call was sent before. A call that was never answered is sent again under its key; one
/// that failed by its answer is another call.
fn idempotency_key(job: &Job, models: &[String]) -> Id {
    let answered = job.attempt.saturating_sub(job.ambiguous);
    let tries = [job.replays.to_be_bytes(), answered.to_be_bytes()].concat();
    let id = job.id.to_bytes();
    let mut parts: Vec<&[u8]> = vec![b"pixfleet.idempotency.v1", &id, &tries];
    parts.extend(models.iter().map(String::as_bytes));
    Id::of(&parts)
}

impl Provider {
    /// The requests that ask `models` of the picture `image` of `job`, one for each account: the same body, to be sent
    /// by one of them.
    ///
    /// # Errors
    /// [`Unaskable`] when no request of the provider can carry such a picture, or a value fits no header.
    pub async fn requests(
        &self,
        job: &Job,
        models: &[String],
        image: &Prepared,
    ) -> Result<Vec<PreparedRequest>, Unaskable> {
        if self.keyless {
            return Err(Unaskable(format!("provider `{}` was loaded without its key", self.name)));
        }
        let (ask, form) = self.ask_for(image)?;
        let text = in_form(image, form);
        let job_id = job.id.to_string();
        let idempotency_key = idempotency_key(job, models).to_string();
        let now = Timestamp::now().to_string();
        let values = Values {
            image: &text,
            image_id: &job.image.id,
            job_id: &job_id,
            idempotency_key: &idempotency_key,
            models,
            content_type: image.content_type(),
            now: &now,
        };
        let mut headers = HeaderMap::new();
        let body = ask.body.fill(&values, image, &mut headers).await?;
        for (name, template) in &ask.headers {
            headers.insert(name, header(&template.fill(&values), name)?);
        }
        let of_account = |account: &Account| {
            let mut headers = headers.clone();
            let url = self.authorise(account, ask.url(&account.endpoint, &values), &mut headers)?;
            Ok(PreparedRequest { method: ask.method.clone(), url, headers, body: body.clone() })
        };
        self.accounts.iter().map(of_account).collect()
    }

    /// The first way of asking that can carry `image` as it is, and the form that it takes there.
    fn ask_for(&self, image: &Prepared) -> Result<(&Ask, ImageForm), Unaskable> {
        let is_url = matches!(image, Prepared::Url(_));
        let fits = |form: &ImageForm| (*form == ImageForm::Url) == is_url;
        self.asks.iter().find_map(|ask| Some((ask, *ask.images.iter().find(|form| fits(form))?))).ok_or_else(
            || {
                let what = if is_url { "a URL" } else { "bytes" };
                Unaskable(format!("provider `{}` has no request that takes {what}", self.name))
            },
        )
    }

    /// Adds the key. A secret in the URL or in a header is marked, so that it shows in no debug output.
    fn authorise(&self, account: &Account, mut url: Url, headers: &mut HeaderMap) -> Result<Url, Unaskable> {
        let Some(key) = &account.key else { return Ok(url) };
        let auth = &self.definition.auth;
        let (name, value) = match auth.kind {
            AuthKind::None => return Ok(url),
            AuthKind::Query => {
                url.query_pairs_mut().append_pair(&auth.name, key.expose());
                return Ok(url);
            }
            AuthKind::Bearer => (AUTHORIZATION, format!("Bearer {}", key.expose())),
            AuthKind::Header => {
                let name = HeaderName::try_from(auth.name.as_str())
                    .map_err(|_| Unaskable("auth.name is no header".into()))?;
                (name, format!("{}{}", auth.prefix, key.expose()))
            }
        };
        let mut value =
            HeaderValue::try_from(value).map_err(|_| Unaskable("the key fits no header".into()))?;
        value.set_sensitive(true);
        headers.insert(name, value);
        Ok(url)
    }
}

impl Ask {
    /// The URL: the path's segments below the endpoint's own, each encoded by itself.
    fn url(&self, endpoint: &Url, values: &Values<'_>) -> Url {
        let mut url = endpoint.clone();
        let path = if values.models.len() > 1 { &self.path_many } else { &self.path };
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty();
            segments.extend(path.iter().map(|segment| segment.fill(values)));
        }
        if !self.query.is_empty() {
            let mut pairs = url.query_pairs_mut();
            for (name, template) in &self.query {
                pairs.append_pair(name, &template.fill(values));
            }
        }
        url
    }
}

impl Body {
    async fn fill(
        &self,
        values: &Values<'_>,
        image: &Prepared,
        headers: &mut HeaderMap,
    ) -> Result<Bytes, Unaskable> {
        let (content_type, body) = match self {
            Self::None => return Ok(Bytes::new()),
            Self::Json(template) => ("application/json".to_owned(), template.fill(values).into()),
            Self::Form(fields) => {
                let mut form = url::form_urlencoded::Serializer::new(String::new());
                for (name, template) in fields {
                    form.append_pair(name, &template.fill(values));
                }
                ("application/x-www-form-urlencoded".to_owned(), form.finish().into())
            }
            Self::Multipart(fields) => multipart(fields, values, image).await?,
            Self::Raw => match image {
                Prepared::Bytes(picture) => (picture.content_type.to_owned(), picture.bytes.clone()),
                Prepared::Url(_) => {
                    return Err(Unaskable("a raw body takes bytes, and this is a URL".into()));
                }
            },
        };
        headers.insert(CONTENT_TYPE, header(&content_type, &CONTENT_TYPE)?);
        Ok(body)
    }
}

/// A multipart body as one piece: a stream would be sent without a length, which some APIs refuse.
async fn multipart(
    fields: &[(String, Template)],
    values: &Values<'_>,
    image: &Prepared,
) -> Result<(String, Bytes), Unaskable> {
    let mut form = multipart::Form::new();
    for (name, template) in fields {
        form = match image {
            Prepared::Bytes(picture) if template.is_image() && values.image.is_empty() => {
                form.part(name.clone(), file(picture)?)
            }
            _ => form.text(name.clone(), template.fill(values)),
        };
    }
    let content_type = format!("multipart/form-data; boundary={}", form.boundary());
    let body = form.into_stream().try_fold(BytesMut::new(), |mut body, chunk| async move {
        body.extend_from_slice(&chunk);
        Ok(body)
    });
    let body = body.await.map_err(|error| Unaskable(format!("the multipart body can't be made: {error}")))?;
    Ok((content_type, body.freeze()))
}

fn file(picture: &Picture) -> Result<multipart::Part, Unaskable> {
    let extension = picture.content_type.rsplit('/').next().unwrap_or("bin");
    multipart::Part::stream_with_length(picture.bytes.clone(), picture.bytes.len() as u64)
        .file_name(format!("image.{extension}"))
        .mime_str(picture.content_type)
        .map_err(|error| Unaskable(format!("content type `{}`: {error}", picture.content_type)))
}

/// The picture as text; empty where it travels as bytes.
fn in_form(image: &Prepared, form: ImageForm) -> String {
    match (image, form) {
        (Prepared::Url(url), _) => url.clone(),
        (Prepared::Bytes(picture), ImageForm::Base64) => STANDARD.encode(&picture.bytes),
        (Prepared::Bytes(picture), ImageForm::Base64url) => URL_SAFE.encode(&picture.bytes),
        (Prepared::Bytes(picture), ImageForm::DataUrl) => {
            let mut text = format!("data:{};base64,", picture.content_type);
            STANDARD.encode_string(&picture.bytes, &mut text);
            text
        }
        (Prepared::Bytes(_), ImageForm::Bytes | ImageForm::Url) => String::new(),
    }
}

fn header(value: &str, name: &HeaderName) -> Result<HeaderValue, Unaskable> {
    HeaderValue::try_from(value).map_err(|_| {
        Unaskable(format!("header `{name}` can't carry this job's values: they hold control characters"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pixfleet_shared::job::{Image, Source};

    #[test]
    fn an_idempotency_key_stays_while_nobody_answers_and_changes_with_each_answer() {
        let image = Image { id: "i".into(), source: Source::Url("https://images.example/1.jpg".into()) };
        let first = Job::new("b".parse().unwrap(), image, "p".into(), vec!["m".into(), "n".into()]);
        let key = |job: &Job| idempotency_key(job, &job.models);
        let unanswered = Job { attempt: 1, ambiguous: 1, ..first.clone() };
        assert_eq!(key(&first), key(&unanswered));
        let failed = Job { attempt: 1, ..first.clone() };
        let replayed = Job { replays: 1, ..first.clone() };
        let in_part = Job { models: vec!["n".into()], ..first.clone() };
        for other in [&failed, &replayed, &in_part] {
            assert_ne!(key(&first), key(other));
        }
    }
}
