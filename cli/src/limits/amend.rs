//! Changes at run time: what they are, who makes them, and what refuses them.

use jiff::Timestamp;
use pixfleet_shared::{
    judge,
    limiter::{Amendment, Change, LimiterError, Numbers, RateLimiter},
};

use super::stacks::Owned;

/// Who changes something, where nobody says so by `--by`.
pub(crate) const BY: &str = "PIXFLEET_BY";

/// Who changes something: what was said, else `user@host` of this process.
pub(crate) fn author(said: Option<String>) -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let user = variable("USER").or_else(|| variable("LOGNAME")).unwrap_or_else(|| "somebody".to_owned());
    let host = variable("HOSTNAME").or_else(host).unwrap_or_default();
    let host = host.trim();
    let of_process = if host.is_empty() { user } else { format!("{user}@{host}") };
    said.or_else(|| variable(BY)).unwrap_or(of_process)
}

/// The changes that `limits set` asks for.
pub(super) fn changes(limit: &str, numbers: Numbers, spent: Option<f64>) -> Vec<Change> {
    let set = (numbers != Numbers::default()).then(|| Change::Set { limit: limit.to_owned(), numbers });
    let spent = spent.map(|units| Change::Spent { limit: limit.to_owned(), units });
    set.into_iter().chain(spent).collect()
}

/// Makes the changes at every stack, or at none where one of them would be refused.
///
/// # Errors
/// [`LimiterError::Impossible`] for what a stack can't be changed to.
pub(super) async fn amend(
    limiter: &dyn RateLimiter,
    stacks: &[Owned],
    changes: &[Change],
    by: &str,
) -> Result<(), LimiterError> {
    let amendments: Vec<Amendment> = changes
        .iter()
        .map(|change| Amendment { at: Timestamp::now(), by: by.to_owned(), change: change.clone() })
        .collect();
    for owned in stacks {
        let mut terms = limiter.terms(&owned.stack.name).await?;
        for amendment in &amendments {
            let refused =
                |judge::Problem(why)| LimiterError::Impossible { stack: owned.stack.name.clone(), why };
            terms.check(&owned.stack, amendment).map_err(refused)?;
            terms = terms.amended(amendment);
        }
        // A call that the changed limits never let go would wait for ever.
        let changed = terms.applied(&owned.stack);
        owned.heaviest().try_for_each(|weight| judge::fits(&changed, weight))?;
    }
    for owned in stacks {
        for amendment in &amendments {
            limiter.amend(&owned.stack, amendment).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_said_wins() {
        assert_eq!(author(Some("deploy".into())), "deploy");
        assert!(!author(None).is_empty());
    }

    #[test]
    fn numbers_and_what_is_spent_are_two_changes() {
        let numbers = Numbers { calls: Some(2), ..Numbers::default() };
        assert_eq!(changes("day", numbers, Some(3.0)).len(), 2);
        assert_eq!(
            changes("day", Numbers::default(), Some(3.0)),
            [Change::Spent { limit: "day".into(), units: 3.0 }]
        );
    }
}
