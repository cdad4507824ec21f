//! `pixfleet ledger resolve`: keeps what somebody found out about calls that were never answered.

use jiff::Timestamp;
use pixfleet_shared::ledger::{Ledger, Resolution};
use serde::Serialize;

use super::{
    list::resolved,
    money::Sums,
    select::{Filters, Found, everything},
};
use crate::output;

/// What was resolved.
#[derive(Debug, Serialize)]
struct Done {
    resolved: u64,
    charged: bool,
    by: String,
    /// What the calls cost by the settings, in words.
    cost: String,
}

/// Which calls are meant: those that are named, or those that the filters let through.
///
/// # Errors
/// When one of them is not listed, or two are by the same beginning of an id; when the ledger is away.
pub(super) async fn meant(
    ledger: &dyn Ledger,
    named: &[String],
    filters: &Filters,
) -> anyhow::Result<Vec<Found>> {
    let now = Timestamp::now();
    if named.is_empty() {
        return Ok(filters.find(ledger, now).await?);
    }
    let listed = everything().find(ledger, now).await?;
    Ok(pick(&listed, named)?)
}

/// The calls of these names, or of names that begin so.
fn pick(listed: &[Found], named: &[String]) -> Result<Vec<Found>, clap::Error> {
    let one = |name: &String| {
        let begins = |found: &&Found| found.call.intent.call.to_string().starts_with(name.as_str());
        let mut matching = listed.iter().filter(begins);
        match (matching.next(), matching.next()) {
            (Some(found), None) => Ok(found.clone()),
            (None, _) => Err(misused(format!(
                "no call without an answer `{name}` is listed: `pixfleet ledger list --all` shows those that are; nothing \
                 was resolved"
            ))),
            (Some(one), Some(other)) => Err(misused(format!(
                "`{name}` begins several calls, {} and {} among them: give more of it; nothing was resolved",
                one.call.intent.call, other.call.intent.call
            ))),
        }
    };
    named.iter().map(one).collect()
}

/// Resolves these calls, and says so.
///
/// # Errors
/// When the ledger is away: what was resolved by then is kept, and the same command resolves the rest.
pub(super) async fn resolve(
    ledger: &dyn Ledger,
    calls: &[Found],
    charged: bool,
    by: String,
    json: bool,
) -> anyhow::Result<()> {
    let resolution = Resolution { charged, by, at: Timestamp::now() };
    let (mut count, mut cost) = (0, Sums::default());
    for Found { day, call } in calls {
        let intent = &call.intent;
        if !ledger.resolve(*day, intent.call, &resolution).await? {
            anyhow::bail!(
                "call `{}` is not listed on {day} any more: {count} calls were resolved; `pixfleet ledger list --all` \
                 shows what is left",
                intent.call
            );
        }
        count += 1;
        cost.add(intent.cost_micros, &intent.currency);
        if let Some(before) = call.resolution.as_ref().filter(|_| !json) {
            output::line(format!("{}: it was {} before", intent.call, resolved(before)))?;
        }
    }
    let done = Done { resolved: count, charged, by: resolution.by.clone(), cost: cost.to_string() };
    if json {
        return Ok(output::json(&done)?);
    }
    let noun = if count == 1 { "call is" } else { "calls are" };
    Ok(output::line(format!("{count} {noun} {}: {cost}", resolved(&resolution)))?)
}

/// What would be resolved, for whoever has not said --yes.
pub(super) fn unsure(calls: &[Found], charged: bool) -> clap::Error {
    let mut cost = Sums::default();
    calls.iter().for_each(|found| cost.add(found.call.intent.cost_micros, &found.call.intent.currency));
    let noun = if calls.len() == 1 { "call" } else { "calls" };
    let word = if charged { "charged" } else { "not charged" };
    misused(format!(
        "{} {noun}, which may have cost {cost}, would be resolved as {word}: say --yes. `pixfleet ledger list` with the \
         same filters shows them",
        calls.len()
    ))
}

fn misused(why: String) -> clap::Error {
    clap::Error::raw(clap::error::ErrorKind::ValueValidation, why + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::sample::found;

    #[test]
    fn a_call_is_named_by_the_beginning_of_its_id_and_one_that_is_not_listed_is_refused_by_name() {
        let listed = [found(1), found(2)];
        let id = |number: usize| listed[number].call.intent.call.to_string();
        let picked = pick(&listed, &[id(1)[..8].to_owned(), id(0)]).unwrap();
        let picked: Vec<String> = picked.iter().map(|found| found.call.intent.call.to_string()).collect();
        assert_eq!(picked, [id(1), id(0)]);
        let said = pick(&listed, &[id(0), "ffff".into()]).unwrap_err().to_string();
        assert!(said.contains("`ffff`") && said.contains("ledger list --all"), "{said}");
        let said = pick(&listed, &[String::new()]).unwrap_err().to_string();
        assert!(said.contains("several calls"), "{said}");
    }
}
