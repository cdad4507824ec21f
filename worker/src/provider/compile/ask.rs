//! One `[[request]]`: its path, its templates and its body.

use std::collections::BTreeMap;

use reqwest::header::HeaderName;

use super::Check;
use crate::provider::{
    definition::{ImageForm, Method, Request},
    request::{Ask, Body},
    template::{JsonTemplate, Template},
};

impl Check<'_> {
    fn template(&mut self, field: &str, text: &str) -> Option<Template> {
        let template = Template::compile(text, self.options);
        self.ok(field, template)
    }

    /// One compiled way of asking.
    pub(super) fn request(&mut self, index: usize, request: &Request) -> Ask {
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
        let ask = Ask {
            images: request.image.clone(),
            method: match request.method {
                Method::Get => reqwest::Method::GET,
                Method::Post => reqwest::Method::POST,
                Method::Put => reqwest::Method::PUT,
            },
            path,
            path_many,
            query,
            headers,
            body,
        };
        self.picture(&at("image"), request, &ask);
        self.demand(
            request.method != Method::Get || matches!(ask.body, Body::None),
            &at("method"),
            "GET has no body: give POST, or use `query`",
        );
        ask
    }

    /// The picture is in the request, and in a form that fits its place.
    fn picture(&mut self, field: &str, request: &Request, ask: &Ask) {
        let carried = ask.query.iter().any(|(_, template)| template.has_image())
            || ask.headers.iter().any(|(_, template)| template.has_image())
            || ask.body.has_image()
            // A document that can't be read has its own problem.
            || (request.json.is_some() && matches!(ask.body, Body::None));
        self.demand(
            carried,
            field,
            "nothing in this request holds `${image}`: put it into query, headers or the body",
        );
        self.demand(
            !request.image.contains(&ImageForm::Bytes) || request.raw || !request.multipart.is_empty(),
            field,
            "`bytes` goes into `multipart` or `raw` only: elsewhere give base64, base64url or data_url",
        );
        self.demand(
            !request.raw || request.image == [ImageForm::Bytes],
            field,
            "a raw body takes `bytes` and nothing else",
        );
    }

    fn path(&mut self, field: &str, path: &str) -> Vec<Template> {
        self.demand(path.starts_with('/'), field, "begin it with `/`");
        self.demand(!path.contains(['?', '#']), field, "parameters go into `query`");
        let segments = path.strip_prefix('/').unwrap_or(path).split('/');
        segments.filter_map(|segment| self.template(field, segment)).collect()
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
        let given =
            [request.json.is_some(), !request.form.is_empty(), !request.multipart.is_empty(), request.raw];
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
