//! What is kept of a provider's answers, and under which keys.

use pixfleet_shared::id::Id;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Provider, definition::Definition};
use crate::image::Picture;

/// The most that an answer can be kept for: a year.
const LONGEST_S: u64 = 31_536_000;

/// Answers that are kept, so that the same picture is not paid for twice. Nothing is kept without this table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// How long an answer is kept, in seconds, 1 to 31536000 (a year). No default.
    #[schemars(range(min = 1, max = 31_536_000))]
    pub ttl_s: u64,
    /// How a picture is known that goes to the provider by its URL; one that is sent as bytes is known by its content.
    /// Default: `off`.
    #[serde(default)]
    pub url: ByUrl,
    /// A word of yours, for example the version of the vendor's model: with another one nothing that was kept before is used.
    /// Default: empty.
    #[serde(default)]
    pub version: String,
}

/// How a picture is known that goes to the provider by its URL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ByUrl {
    /// Not at all: such a picture is asked about each time.
    #[default]
    Off,
    /// By its URL and the `ETag` or `Last-Modified` that its server tells; without one it is asked about each time.
    Validator,
    /// By its URL alone: there is never another picture under it.
    Trust,
}

impl Cache {
    /// What is wrong with the numbers: the field, and what to give instead.
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        if (1..=LONGEST_S).contains(&self.ttl_s) {
            return Vec::new();
        }
        vec![("cache.ttl_s", format!("give 1 to {LONGEST_S}"))]
    }
}

/// What a picture is known by.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Likeness<'a> {
    /// Its bytes, as they are sent.
    Content(&'a Picture),
    /// Its URL, and a word that changes when the picture does.
    Url(&'a str, &'a str),
}

impl Likeness<'_> {
    fn id(self) -> Id {
        match self {
            Self::Content(picture) => {
                Id::of(&[b"pixfleet.content.v1", picture.content_type.as_bytes(), &picture.bytes])
            }
            Self::Url(url, validator) => Id::of(&[b"pixfleet.url.v1", url.as_bytes(), validator.as_bytes()]),
        }
    }
}

impl Provider {
    /// What is kept of its answers; none where nothing is.
    pub(crate) fn cache(&self) -> Option<&Cache> {
        self.definition().cache.as_ref()
    }

    /// The keys of a picture's answers, one for each of `models`, in their order.
    pub(crate) fn keys(&self, cache: &Cache, picture: Likeness<'_>, models: &[String]) -> Vec<Id> {
        let (shape, picture) = (self.shape.to_bytes(), picture.id().to_bytes());
        let key = |model: &String| {
            Id::of(&[
                b"pixfleet.answer.v1",
                self.name().as_bytes(),
                model.as_bytes(),
                cache.version.as_bytes(),
                &shape,
                &picture,
            ])
        };
        models.iter().map(key).collect()
    }
}

/// Everything of a definition that shapes what is asked, or what is read of the answer. Who pays, how fast and how often is
/// none of it.
pub(super) fn shape(definition: &Definition) -> Id {
    let Definition { endpoint, request, fetch, prepare, options, answer, errors, .. } = definition;
    let shape = json!({
        "endpoint": endpoint, "request": request, "fetch": fetch, "prepare": prepare, "options": options,
        "answer": answer, "errors": errors,
    });
    // Its maps are sorted, so the same definition is the same text.
    Id::of(&[b"pixfleet.shape.v1", shape.to_string().as_bytes()])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;
    use pixfleet_shared::settings::Document;

    use super::*;
    use crate::provider::Source;

    fn keys(settings: &str, bytes: &'static [u8], models: &[&str]) -> Vec<Id> {
        let source = Source { env: &|_| Some("test-key-1234".into()), folder: Path::new(".") };
        let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        let usual = ["cache.ttl_s = 60", "cache.version = '1'"].into_iter();
        let lines: Vec<&str> = usual.filter(|line| name(line) != name(settings)).chain([settings]).collect();
        let document = Document::parse("t", &lines.join("\n")).unwrap();
        let provider = Provider::load("generic", &document, source).unwrap();
        let picture = Picture { bytes: Bytes::from_static(bytes), content_type: "image/png" };
        let models: Vec<String> = models.iter().map(|model| (*model).to_owned()).collect();
        provider.keys(provider.cache().unwrap(), Likeness::Content(&picture), &models)
    }

    #[test]
    fn a_key_changes_with_all_that_shapes_the_answer_and_with_nothing_else() {
        let known = keys("", b"a", &["m"]);
        for same in [
            "limits = [{ name = 'rate', calls = 4 }]",
            "cost = { price = 2 }",
            "auth.key_env = 'ANOTHER'",
            "retry.attempts = 2",
            "cache.ttl_s = 5",
            "models_per_call = 3",
            "breaker.failures = 3",
        ] {
            assert_eq!(keys(same, b"a", &["m"]), known, "{same}");
        }
        for other in [
            "cache.version = '2'",
            "options.prompt = 'what is it?'",
            "prepare.max_side_px = 100",
            "answer.keep_raw = true",
            "endpoint = 'http://staging.example'",
        ] {
            assert_ne!(keys(other, b"a", &["m"]), known, "{other}");
        }
        assert_ne!(keys("", b"b", &["m"]), known);
        assert_eq!(keys("", b"a", &["m", "n"])[0], known[0], "what else is asked with it does not matter");
        assert_ne!(keys("", b"a", &["m", "n"])[1], known[0]);
    }

    #[test]
    fn a_url_is_known_with_its_validator() {
        let id = |url, validator| Likeness::Url(url, validator).id();
        assert_eq!(id("http://a/1", "\"x\""), id("http://a/1", "\"x\""));
        assert_ne!(id("http://a/1", "\"x\""), id("http://a/1", "\"y\""));
        assert_ne!(id("http://a/1", ""), id("http://a/2", ""));
    }
}
