//! From a definition to a provider: every expression, template and key is checked, and every problem told at once.

mod accounts;
mod ask;
mod limits;

use std::collections::BTreeMap;

use pixfleet_shared::settings::{Document, Problems, nearest};
use reqwest::header::HeaderName;

use super::{
    Provider, Rule,
    answer::{Mapping, ModelMapping},
    definition::{Answer, AuthKind, Definition, Fetch, ImageForm, ModelAnswer},
    jq::Jq,
    keeping::{self, Cache},
};
use crate::{classify::Class, image::Wanted};

/// Where most APIs put their words.
const ERROR_MESSAGE: &str =
    "(.error? | objects | .message?), (.message?, .detail?, .error?, .errors?, .title?)
    | select(. != null and . != true and . != \"true\" and . != \"\")";

/// Looks up an environment variable; `None` where no key is to be read at all.
pub(super) type Env<'a> = Option<&'a dyn Fn(&str) -> Option<String>>;

/// Reads and compiles `document`, the whole description of the provider `name`.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn compile(name: &str, document: &Document, env: Env<'_>) -> Result<Provider, Problems> {
    let definition: Definition = document.read()?;
    let mut check = Check { document, options: &definition.options, found: Problems::default() };
    let accounts = check.accounts(name, &definition, env);
    let asks = definition.request.iter().enumerate().map(|(i, ask)| check.request(i, ask)).collect();
    let mapping = check.mapping(&definition.answer);
    let rules = check.rules(&definition);
    let error_message =
        check.jq("error_message", Some(definition.error_message.as_deref().unwrap_or(ERROR_MESSAGE)));
    let pause_in_body = check.jq("retry_after.body", definition.retry_after.body.as_deref());
    check.numbers(name, &definition);
    let found = check.found;
    let (Some(accounts), Some(error_message)) = (accounts, error_message) else {
        return Err(found);
    };
    let wanted = wanted(&definition);
    let provider = Provider {
        name: name.to_owned(),
        accounts,
        keyless: env.is_none() && definition.auth.kind != AuthKind::None,
        asks,
        mapping,
        rules,
        error_message,
        pause_in_body,
        wanted,
        shape: keeping::shape(&definition),
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
        let compiled = Jq::compile(code?);
        self.ok(field, compiled.map_err(|why| format!("the jq expression is wrong at {why}")))
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
            self.demand(says(own), &at, "give `labels` or `value`: without them an answer says nothing");
            models.push((name.clone(), self.model_mapping(answer, own, &at)));
        }
        models.sort_by_key(|(name, _)| (name.ends_with('*'), std::cmp::Reverse(name.len())));
        models.push(("*".to_owned(), self.model_mapping(answer, &ModelAnswer::default(), "answer")));
        Mapping { models, keep_raw: answer.keep_raw }
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
            self.demand(allowed, &at("class"), "give throttled, transient, rejected or unauthorized");
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
        self.demand(!definition.request.is_empty(), "request", "give at least one `[[request]]`");
        self.demand((1..=1000).contains(&definition.models_per_call), "models_per_call", "give 1 to 1000");
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
            self.demand(HeaderName::try_from(header.as_str()).is_ok(), "retry_after.headers", &fault);
        }
        self.limits("limits", &definition.limits, definition);
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        self.demand(
            !name.is_empty() && name.len() <= 60 && name.chars().all(plain),
            "",
            "a provider's name has 1 to 60 letters, digits, `-` or `_`",
        );
        let numbers = definition.http.faults().into_iter().chain(definition.prepare.faults());
        let patience = definition.breaker.faults().into_iter().chain(definition.retry.faults());
        let kept = definition.cache.iter().flat_map(Cache::faults);
        for (field, why) in numbers.chain(patience).chain(kept) {
            self.wrong(field, why);
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
