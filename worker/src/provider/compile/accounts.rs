//! `endpoint`, `auth`, `limits` and `[[accounts]]`: where calls go, who pays, and what they pass.

use pixfleet_shared::limiter::Stack;
use reqwest::header::HeaderName;
use url::Url;

use super::{
    super::{
        Account,
        definition::{Auth, AuthKind, Definition},
        secret::{self, Secret},
    },
    Check, Env,
};

impl Check<'_> {
    /// The accounts: at least one. Nothing where one of them is wrong.
    pub(super) fn accounts(
        &mut self,
        provider: &str,
        definition: &Definition,
        env: Env<'_>,
    ) -> Option<Vec<Account>> {
        self.auth(&definition.auth);
        let endpoint = self.endpoint("endpoint", &definition.endpoint);
        if definition.accounts.is_empty() {
            let key = self.key("auth", &definition.auth, env);
            let name = definition.stack.clone().unwrap_or_else(|| provider.to_owned());
            self.stack_name("stack", &name);
            let stack = Stack { name, limits: definition.limits.clone() };
            return Some(vec![Account { endpoint: endpoint?, key, stack }]);
        }
        self.demand(
            definition.stack.is_none(),
            "stack",
            "each account has a limit stack of its own: name them in `accounts`",
        );
        let place = Place { provider, definition, endpoint: endpoint.as_ref() };
        let accounts: Vec<Option<Account>> =
            (0..definition.accounts.len()).map(|i| self.account(&place, i, env)).collect();
        accounts.into_iter().collect()
    }

    fn account(&mut self, place: &Place<'_>, i: usize, env: Env<'_>) -> Option<Account> {
        let definition = place.definition;
        let (own, earlier) = (&definition.accounts[i], &definition.accounts[..i]);
        let at = |field: &str| format!("accounts[{i}].{field}");
        self.demand(!own.name.is_empty(), &at("name"), "give it a name");
        let twice = earlier.iter().any(|other| other.name == own.name);
        self.demand(!twice, &at("name"), "another account has this name");
        let endpoint = match &own.endpoint {
            Some(text) => self.endpoint(&at("endpoint"), text),
            None => place.endpoint.cloned(),
        };
        let mut auth = definition.auth.clone();
        if own.key_env.is_some() || own.key_file.is_some() {
            (auth.key_env, auth.key_file) = (own.key_env.clone(), own.key_file.clone());
        }
        let key = self.key(&format!("accounts[{i}]"), &auth, env);
        let limits = own.limits.as_ref().unwrap_or(&definition.limits).clone();
        if own.limits.is_some() {
            self.limits(&at("limits"), &limits, definition);
        }
        let name = own.stack.clone().unwrap_or_else(|| format!("{}.{}", place.provider, own.name));
        self.stack_name(&at("stack"), &name);
        let used = own.stack.is_some() && earlier.iter().any(|other| other.stack == own.stack);
        self.demand(
            !used,
            &at("stack"),
            "another account of this provider passes this stack: give each its own",
        );
        Some(Account { endpoint: endpoint?, key, stack: Stack { name, limits } })
    }

    fn stack_name(&mut self, field: &str, name: &str) {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        self.demand(
            !name.is_empty() && name.len() <= 130 && name.chars().all(plain),
            field,
            "a stack's name has 1 to 130 letters, digits, `-`, `_` or `.`",
        );
    }

    fn endpoint(&mut self, field: &str, text: &str) -> Option<Url> {
        let url = self.ok(field, Url::parse(text).map_err(|error| format!("no URL: {error}")))?;
        let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        self.demand(["http", "https"].contains(&url.scheme()), field, "give an http or https URL");
        self.demand(
            plain && url.password().is_none(),
            field,
            "give scheme, host, port and path only; the key goes into `auth`, parameters into `query`",
        );
        Some(url)
    }

    fn auth(&mut self, auth: &Auth) {
        let named = matches!(auth.kind, AuthKind::Query | AuthKind::Header);
        self.demand(
            !named || !auth.name.is_empty(),
            "auth.name",
            "missing: the name of the parameter or header that carries the key",
        );
        if auth.kind == AuthKind::Header && !auth.name.is_empty() {
            let fits = HeaderName::try_from(auth.name.as_str()).is_ok();
            self.demand(fits, "auth.name", "no header has such a name");
        }
    }

    fn key(&mut self, field: &str, auth: &Auth, env: Env<'_>) -> Option<Secret> {
        let env = env.filter(|_| auth.kind != AuthKind::None)?;
        let key = self.ok(field, secret::read(auth, env))?;
        let optional = auth.kind == AuthKind::Bearer;
        if key.is_none() && !optional {
            self.wrong(field, format!("the key is missing: {}", secret::places(auth)));
        }
        key
    }
}

/// What the accounts of one provider have in common.
struct Place<'a> {
    provider: &'a str,
    definition: &'a Definition,
    endpoint: Option<&'a Url>,
}
