//! `pixfleet ledger list`: calls that were never answered, each on its line, and what they may have cost.

use jiff::Timestamp;
use pixfleet_shared::{
    batch::BatchName,
    id::Id,
    ledger::{Lost, Resolution, Unanswered},
};
use serde::Serialize;

use super::{
    money::{self, Sums},
    select::Found,
};
use crate::{
    enqueue::view::say,
    output,
    results::{grid::Grid, terminal::stdout_width},
    words::moment,
};

/// Characters of an id in a table: enough to tell calls apart, and to name one by.
pub(super) const SHORT: usize = 12;

/// One JSON line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    call: Id,
    /// When it left, about.
    at: Timestamp,
    /// When it was noted as never answered.
    noted_at: Timestamp,
    batch: &'a BatchName,
    job: Id,
    image: &'a str,
    provider: &'a str,
    account: &'a str,
    models: &'a [String],
    /// What it may have cost.
    cost: f64,
    currency: &'a str,
    worker: &'a str,
    /// What was decided: `resent` or `parked`.
    then: Lost,
    /// What somebody found out; null until then.
    resolution: &'a Option<Resolution>,
}

/// Prints what was found.
///
/// # Errors
/// Of stdout.
pub(super) fn print(found: &[Found], json: bool) -> anyhow::Result<()> {
    if json {
        for Found { call, .. } in found {
            output::json(&line(call))?;
        }
        // Lines are for programs, which count themselves.
        say(&sum(found));
        return Ok(());
    }
    if !found.is_empty() {
        output::text(grid(found).fitted(stdout_width()))?;
    }
    Ok(output::line(sum(found))?)
}

fn line(call: &Unanswered) -> Line<'_> {
    let Unanswered { intent, then, noted_at, resolution } = call;
    Line {
        call: intent.call,
        at: intent.leaves_at,
        noted_at: *noted_at,
        batch: &intent.batch,
        job: intent.job,
        image: &intent.image,
        provider: &intent.provider,
        account: &intent.account,
        models: &intent.models,
        cost: money::number(intent.cost_micros),
        currency: &intent.currency,
        worker: &intent.worker,
        then: *then,
        resolution,
    }
}

fn grid(found: &[Found]) -> Grid {
    let header =
        ["call", "when", "batch", "image", "account", "models", "cost", "worker", "then", "resolved"];
    let mut grid = Grid::under(header.map(str::to_owned).to_vec());
    for Found { call, .. } in found {
        let intent = &call.intent;
        // The account's name begins with the provider's, or is another one that several providers share.
        let account = match intent.account.starts_with(&intent.provider) {
            true => intent.account.clone(),
            false => format!("{} by {}", intent.provider, intent.account),
        };
        grid.rows.push(vec![
            intent.call.to_string().chars().take(SHORT).collect(),
            moment(intent.leaves_at),
            intent.batch.to_string(),
            intent.image.clone(),
            account,
            intent.models.join(", "),
            format!("{} {}", money::text(intent.cost_micros), intent.currency),
            intent.worker.clone(),
            decided(call.then).to_owned(),
            call.resolution.as_ref().map(resolved).unwrap_or_default(),
        ]);
    }
    grid
}

fn decided(then: Lost) -> &'static str {
    match then {
        Lost::Resent => "resent",
        Lost::Parked => "parked",
    }
}

/// What somebody found out, in words.
pub(super) fn resolved(resolution: &Resolution) -> String {
    let charged = if resolution.charged { "charged" } else { "not charged" };
    format!("{charged}, says {}", resolution.by)
}

/// How many, and what they may have cost.
fn sum(found: &[Found]) -> String {
    let (mut open, mut charged) = (Sums::default(), Sums::default());
    let (mut unresolved, mut paid, mut unpaid) = (0u64, 0u64, 0u64);
    for Found { call, .. } in found {
        let (cost, currency) = (call.intent.cost_micros, call.intent.currency.as_str());
        match call.resolution.as_ref().map(|resolution| resolution.charged) {
            None => {
                unresolved += 1;
                open.add(cost, currency);
            }
            Some(true) => {
                paid += 1;
                charged.add(cost, currency);
            }
            Some(false) => unpaid += 1,
        }
    }
    let noun = if unresolved == 1 { "call" } else { "calls" };
    let mut text = match unresolved {
        0 => "no call without an answer that nobody resolved".to_owned(),
        _ => format!("{unresolved} {noun} without an answer, which may have cost {open}"),
    };
    if paid > 0 {
        text += &format!("; {paid} resolved as charged: {charged}");
    }
    if unpaid > 0 {
        text += &format!("; {unpaid} resolved as not charged");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::sample::found;

    #[test]
    fn the_sum_keeps_what_is_open_apart_from_what_is_known() {
        let mut calls = vec![found(1), found(2), found(3)];
        assert_eq!(sum(&calls), "3 calls without an answer, which may have cost 0.03 USD");
        let resolution = |charged| Some(Resolution { charged, by: "ann".into(), at: Timestamp::UNIX_EPOCH });
        calls[0].call.resolution = resolution(true);
        calls[1].call.resolution = resolution(false);
        assert_eq!(
            sum(&calls),
            "1 call without an answer, which may have cost 0.01 USD; 1 resolved as charged: 0.01 USD; 1 resolved as not \
             charged"
        );
        assert!(sum(&[]).starts_with("no call without an answer"));
    }

    #[test]
    fn a_row_says_what_left_when_by_whom_and_what_was_decided() {
        let text = grid(&[found(1)]).fitted(None);
        for part in ["2026-11-26", "spring", "image-1", "restb", "re_logo", "0.01 USD", "worker-1", "parked"]
        {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
