//! From a definition to a provider: every expression, template and key is checked, and every problem told at once.

use std::collections::BTreeMap;

use pixfleet_shared::{
    judge,
    settings::{Document, Problems, nearest},
};
use reqwest::header::HeaderName;
use url::Url;

use super::{
    Provider, Rule,
    answer::{Mapping, ModelMapping},
    definition::{Answer, AuthKind, Definition, Fetch, ImageForm, Method, ModelAnswer, Request},
    jq::Jq,
    request::{Ask, Body},
    secret::{self, Secret},
    template::{JsonTemplate, Template},
};
use crate::{classify::Class, image::Wanted};

/// Where most APIs put their words.
const ERROR_MESSAGE: &str =
    "(.error? | objects | .message?), (.message?, .detail?, .error?, .errors?, .title?)
    | select(. != null and . != true and . != \"true\" and . != \"\")";

/// Reads and compiles `document`, the whole description of the provider `name`.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn compile(
    name: &str,
    document: &Document,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Provider, Problems> {
    let definition: Definition = document.read()?;
    let mut check = Check {
        document,
        options: &definition.options,
        found: Problems::default(),
    };
    let endpoint = check.endpoint(&definition.endpoint);
    let key = check.key(&definition, env);
    let asks = definition
        .request
        .iter()
        .enumerate()
        .map(|(i, ask)| check.request(i, ask))
        .collect();
    let mapping = check.mapping(&definition.answer);
    let rules = check.rules(&definition);
    let error_message = check.jq(
        "error_message",
        Some(definition.error_message.as_deref().unwrap_or(ERROR_MESSAGE)),
    );
    let pause_in_body = check.jq("retry_after.body", definition.retry_after.body.as_deref());
    check.numbers(name, &definition);
    let found = check.found;
    let (Some(endpoint), Some(error_message)) = (endpoint, error_message) else {
        return Err(found);
    };
    let wanted = wanted(&definition);
    let provider = Provider {
        name: name.to_owned(),
        endpoint,
        key,
        asks,
        mapping,
        rules,
        error_message,
        pause_in_body,
        wanted,
        definition,
    };
    found.or(provider)
}

/// How the provider wants its pictures.
fn wanted(definition: &Definition) -> Wanted {
    let forms = || definition.request.iter().flat_map(|request| &request.image);
    Wanted {
        url: definition.fetch != Fetch::Always && forms().any(|form| *form == ImageForm::Url),
        bytes: forms().any(|form| *form != ImageForm::Url),
        fetch: definition.fetch != Fetch::Never,
        preparation: definition.prepare.clone(),
    }
}

/// Finds problems, each at its field.
struct Check<'a> {
    document: &'a Document,
    options: &'a BTreeMap<String, serde_json::Value>,
    found: Problems,
}

impl Check<'_> {
    fn wrong(&mut self, field: &str, why: impl Into<String>) {
        self.found.push(self.document.problem(field, why));
    }

    fn demand(&mut self, holds: bool, field: &str, why: &str) {
        if !holds {
            self.wrong(field, why);
        }
    }

    /// `result`'s value; its error is a problem of `field`.
    fn ok<T>(&mut self, field: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|why| self.wrong(field, why)).ok()
    }

    fn jq(&mut self, field: &str, code: Option<&str>) -> Option<Jq> {
        self.ok(field, Jq::compile(code?))
    }

    fn template(&mut self, field: &str, text: &str) -> Option<Template> {
        let template = Template::compile(text, self.options);
        self.ok(field, template)
    }

    fn endpoint(&mut self, text: &str) -> Option<Url> {
        const FIELD: &str = "endpoint";
        let url = self.ok(
            FIELD,
            Url::parse(text).map_err(|error| format!("no URL: {error}")),
        )?;
        let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        self.demand(
            ["http", "https"].contains(&url.scheme()),
            FIELD,
            "give an http or https URL",
        );
        self.demand(
            plain && url.password().is_none(),
            FIELD,
            "give scheme, host, port and path only; the key goes into `auth`, parameters into `query`",
        );
        Some(url)
    }

    fn key(&mut self, definition: &Definition, env: &dyn Fn(&str) -> Option<String>) -> Option<Secret> {
        let auth = &definition.auth;
        let named = matches!(auth.kind, AuthKind::Query | AuthKind::Header);
        self.demand(
            !named || !auth.name.is_empty(),
            "auth.name",
            "missing: the name of the parameter or header that carries the key",
        );
        if auth.kind == AuthKind::Header && !auth.name.is_empty() {
            self.demand(
                HeaderName::try_from(auth.name.as_str()).is_ok(),
                "auth.name",
                "no header has such a name",
            );
        }
        if auth.kind == AuthKind::None {
            return None;
        }
        let key = self.ok("auth", secret::read(auth, env))?;
        let optional = auth.kind == AuthKind::Bearer;
        if key.is_none() && !optional {
            self.wrong("auth", format!("the key is missing: {}", secret::places(auth)));
        }
        key
    }

    fn request(&mut self, index: usize, request: &Request) -> Ask {
        let at = |field: &str| format!("request[{index}].{field}");
        self.demand(
            !request.image.is_empty(),
            &at("image"),
            "empty: name at least one of url, base64, base64url, data_url, bytes",
        );
        let path = self.path(&at("path"), &request.path);
        let path_many = match &request.path_many {
            Some(path) => self.path(&at("path_many"), path),
            None => path.clone(),
        };
        let query = self.templates(&at("query"), &request.query);
        let headers = self.headers(&at("headers"), &request.headers);
        let body = self.body(index, request);
        let carried = query.iter().any(|(_, template)| template.has_image())
            || headers.iter().any(|(_, template)| template.has_image())
            || body.has_image();
        self.demand(
            carried,
            &at("image"),
            "nothing in this request holds `${image}`: put it into query, headers or the body",
        );
        let bytes = request.image.contains(&ImageForm::Bytes);
        let takes_bytes = matches!(body, Body::Raw) || !request.multipart.is_empty();
        self.demand(
            !bytes || takes_bytes,
            &at("image"),
            "`bytes` goes into `multipart` or `raw` only: elsewhere give base64, base64url or data_url",
        );
        self.demand(
            !request.raw || request.image == [ImageForm::Bytes],
            &at("image"),
            "a raw body takes `bytes` and nothing else",
        );
        let method = match request.method {
            Method::Get => reqwest::Method::GET,
            Method::Post => reqwest::Method::POST,
            Method::Put => reqwest::Method::PUT,
        };
        self.demand(
            request.method != Method::Get || matches!(body, Body::None),
            &at("method"),
            "GET has no body: give POST, or use `query`",
        );
        Ask {
            images: request.image.clone(),
            method,
            path,
            path_many,
            query,
            headers,
            body,
        }
    }

    fn path(&mut self, field: &str, path: &str) -> Vec<Template> {
        self.demand(path.starts_with('/'), field, "begin it with `/`");
        self.demand(!path.contains(['?', '#']), field, "parameters go into `query`");
        let segments = path.strip_prefix('/').unwrap_or(path).split('/');
        segments
            .filter_map(|segment| self.template(field, segment))
            .collect()
    }

    fn templates(&mut self, field: &str, texts: &BTreeMap<String, String>) -> Vec<(String, Template)> {
        let compile = |(name, text): (&String, &String)| {
            Some((name.clone(), self.template(&format!("{field}.\"{name}\""), text)?))
        };
        texts.iter().filter_map(compile).collect()
    }

    fn headers(&mut self, field: &str, texts: &BTreeMap<String, String>) -> Vec<(HeaderName, Template)> {
        let templates = self.templates(field, texts);
        let named = |(name, template): (String, Template)| {
            let header =
                HeaderName::try_from(name.as_str()).map_err(|_| "no header has such a name".to_owned());
            Some((self.ok(&format!("{field}.\"{name}\""), header)?, template))
        };
        templates.into_iter().filter_map(named).collect()
    }

    fn body(&mut self, index: usize, request: &Request) -> Body {
        let at = |field: &str| format!("request[{index}].{field}");
        let given = [
            request.json.is_some(),
            !request.form.is_empty(),
            !request.multipart.is_empty(),
            request.raw,
        ];
        if given.iter().filter(|given| **given).count() > 1 {
            self.wrong(
                &format!("request[{index}]"),
                "a request has one body: give only one of json, form, multipart and raw",
            );
        }
        if let Some(json) = &request.json {
            let template = JsonTemplate::compile(json, self.options);
            return self.ok(&at("json"), template).map_or(Body::None, Body::Json);
        }
        match () {
            () if !request.form.is_empty() => Body::Form(self.templates(&at("form"), &request.form)),
            () if !request.multipart.is_empty() => {
                Body::Multipart(self.templates(&at("multipart"), &request.multipart))
            }
            () if request.raw => Body::Raw,
            () => Body::None,
        }
    }

    /// The models' own expressions, the longest name first, and at last those of `answer` itself.
    fn mapping(&mut self, answer: &Answer) -> Mapping {
        let says = |own: &ModelAnswer| {
            own.labels.is_some() || own.value.is_some() || answer.labels.is_some() || answer.value.is_some()
        };
        self.demand(
            says(&ModelAnswer::default()) || !answer.models.is_empty(),
            "answer",
            "give `labels` or `value`: without them an answer says nothing",
        );
        let mut models = Vec::new();
        for (name, own) in &answer.models {
            let at = format!("answer.models.\"{name}\"");
            self.demand(
                says(own),
                &at,
                "give `labels` or `value`: without them an answer says nothing",
            );
            models.push((name.clone(), self.model_mapping(answer, own, &at)));
        }
        models.sort_by_key(|(name, _)| (name.ends_with('*'), std::cmp::Reverse(name.len())));
        models.push((
            "*".to_owned(),
            self.model_mapping(answer, &ModelAnswer::default(), "answer"),
        ));
        Mapping {
            models,
            keep_raw: answer.keep_raw,
        }
    }

    fn model_mapping(&mut self, answer: &Answer, own: &ModelAnswer, at: &str) -> ModelMapping {
        let mut one = |field: &str, own: &Option<String>, general: &Option<String>| match own {
            Some(code) => self.jq(&format!("{at}.{field}"), Some(code)),
            None => self.jq(&format!("answer.{field}"), general.as_deref()),
        };
        ModelMapping {
            part: one("part", &own.part, &answer.part),
            labels: one("labels", &own.labels, &answer.labels),
            value: one("value", &own.value, &answer.value),
            error: one("error", &own.error, &answer.error),
        }
    }

    fn rules(&mut self, definition: &Definition) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (i, rule) in definition.errors.iter().enumerate() {
            let at = |field: &str| format!("errors[{i}].{field}");
            let allowed = !matches!(rule.class, Class::Ok | Class::Ambiguous);
            self.demand(
                allowed,
                &at("class"),
                "give throttled, transient, rejected or unauthorized",
            );
            let statuses = rule.status.iter().all(|status| (100..600).contains(status));
            self.demand(statuses, &at("status"), "a status is a number from 100 to 599");
            self.demand(
                rule.when.is_some() || !rule.status.is_empty(),
                &format!("errors[{i}]"),
                "it fits everything: give `status` or `when`",
            );
            rules.push(Rule {
                status: rule.status.clone(),
                when: self.jq(&at("when"), rule.when.as_deref()),
                class: rule.class,
            });
        }
        rules
    }

    fn numbers(&mut self, name: &str, definition: &Definition) {
        self.demand(
            !definition.request.is_empty(),
            "request",
            "give at least one `[[request]]`",
        );
        self.demand(
            (1..=1000).contains(&definition.models_per_call),
            "models_per_call",
            "give 1 to 1000",
        );
        let price = definition.cost.price;
        self.demand(price.is_finite() && price >= 0.0, "cost.price", "give 0 or more");
        let pauses = &definition.retry_after;
        self.demand(
            (1..=86_400_000).contains(&pauses.max_ms),
            "retry_after.max_ms",
            "give 1 to 86400000, a day",
        );
        self.demand(
            (1..=pauses.max_ms).contains(&pauses.default_ms),
            "retry_after.default_ms",
            "give 1 to retry_after.max_ms",
        );
        for header in &pauses.headers {
            let fault = format!("no header has the name `{header}`");
            self.demand(
                HeaderName::try_from(header.as_str()).is_ok(),
                "retry_after.headers",
                &fault,
            );
        }
        let mut names = Vec::new();
        for (i, limit) in definition.limits.iter().enumerate() {
            if let Some(why) = judge::fault(limit) {
                self.wrong(&format!("limits[{i}]"), why);
            }
            self.demand(
                !names.contains(&&limit.name),
                &format!("limits[{i}].name"),
                "another limit has this name",
            );
            names.push(&limit.name);
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        self.demand(
            !name.is_empty() && name.len() <= 60 && name.chars().all(plain),
            "",
            "a provider's name has 1 to 60 letters, digits, `-` or `_`",
        );
        for (field, why) in definition
            .http
            .faults()
            .into_iter()
            .chain(definition.prepare.faults())
        {
            self.wrong(field, why);
        }
    }
}

impl Body {
    fn has_image(&self) -> bool {
        match self {
            Self::None => false,
            Self::Raw => true,
            Self::Json(template) => template.has_image(),
            Self::Form(fields) | Self::Multipart(fields) => {
                fields.iter().any(|(_, template)| template.has_image())
            }
        }
    }
}

/// The preset that `word` was probably meant to be, in words.
pub(super) fn meant<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(word, known.clone()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("there are {}", known.into_iter().collect::<Vec<_>>().join(", ")),
    }
}
