//! Which limit stacks a command is about.

use std::sync::Arc;

use pixfleet_shared::limiter::{Stack, Weight};
use pixfleet_worker::provider::{Catalog, Provider};

/// A provider, or one of its stacks: `restb`, `restb/restb.second`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    provider: String,
    stack: Option<String>,
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (provider, stack) = match text.split_once('/') {
            Some((provider, stack)) => (provider, Some(stack)),
            None => (text, None),
        };
        if provider.is_empty() || stack == Some("") {
            return Err("give PROVIDER or PROVIDER/STACK".to_owned());
        }
        Ok(Self { provider: provider.to_owned(), stack: stack.map(str::to_owned) })
    }
}

/// One limit stack, and the providers whose calls pass it.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    pub(super) stack: Stack,
    /// At least one.
    pub(super) providers: Vec<Arc<Provider>>,
}

impl Owned {
    /// The heaviest call of each provider, as far as that is known before its picture is.
    pub(super) fn heaviest(&self) -> impl Iterator<Item = Weight> {
        self.providers.iter().map(|provider| heaviest(provider))
    }

    /// The providers' names.
    pub(super) fn provider_names(&self) -> Vec<String> {
        self.providers.iter().map(|provider| provider.name().to_owned()).collect()
    }
}

/// What a call weighs that asks as many models as the provider allows.
pub(crate) fn heaviest(provider: &Provider) -> Weight {
    provider.weight(provider.models_per_call(), 0)
}

/// The providers that are meant: the one that is named, or all.
///
/// # Errors
/// When there is none of this name, or none at all.
pub(super) fn providers(catalog: &Catalog, name: Option<&str>) -> Result<Vec<Arc<Provider>>, clap::Error> {
    if let Some(name) = name {
        return Ok(vec![catalog.get(name).cloned().map_err(misused)?]);
    }
    let all: Vec<Arc<Provider>> = catalog.iter().cloned().collect();
    if all.is_empty() {
        return Err(misused(
            "the settings name no provider: add [providers.NAME] with preset = \"...\" (docs/providers.md)"
                .to_owned(),
        ));
    }
    Ok(all)
}

/// A misuse of the command line, as clap's own.
pub(super) fn misused(why: String) -> clap::Error {
    clap::Error::raw(clap::error::ErrorKind::ValueValidation, why + "\n")
}

/// The stacks of these providers, each once, with everyone in the catalog that passes it.
pub(super) fn stacks(catalog: &Catalog, meant: &[Arc<Provider>]) -> Vec<Owned> {
    let mut found: Vec<Owned> = Vec::new();
    for stack in meant.iter().flat_map(|provider| provider.stacks()) {
        if found.iter().any(|owned| owned.stack.name == stack.name) {
            continue;
        }
        let passes = |provider: &&Arc<Provider>| provider.stacks().any(|own| own.name == stack.name);
        let providers = catalog.iter().filter(passes).cloned().collect();
        found.push(Owned { stack: stack.clone(), providers });
    }
    found
}

/// The stacks that `target` means.
///
/// # Errors
/// When there is no such provider, or it has no such stack.
pub(super) fn targeted(catalog: &Catalog, target: &Target) -> Result<Vec<Owned>, clap::Error> {
    let providers = providers(catalog, Some(&target.provider))?;
    let mut found = stacks(catalog, &providers);
    let Some(stack) = &target.stack else { return Ok(found) };
    let known: Vec<String> = found.iter().map(|owned| owned.stack.name.clone()).collect();
    found.retain(|owned| owned.stack.name == *stack);
    if found.is_empty() {
        return Err(misused(format!(
            "provider `{}` has no limit stack `{stack}`: it has {}",
            target.provider,
            known.join(", ")
        )));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_provider_or_one_of_its_stacks() {
        let target = |text: &str| text.parse::<Target>();
        assert_eq!(target("restb").unwrap(), Target { provider: "restb".into(), stack: None });
        assert_eq!(target("restb/b").unwrap().stack.as_deref(), Some("b"));
        assert!(target("restb/").is_err() && target("/b").is_err());
    }
}
