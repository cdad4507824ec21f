//! `pixfleet status`: where the batches of a state file stand, and when they will be done; of a fleet, what waits in its lanes.

mod ending;
mod fleet;

use std::process::ExitCode;

use anyhow::bail;
use jiff::Timestamp;
use pixfleet_shared::{
    batch::BatchName,
    batches::{Held, Hold},
    embedded::{BatchCounts, Embedded, Status},
    result::Outcome,
};
use pixfleet_worker::provider::Catalog;
use serde::Serialize;

use crate::{
    config::Config,
    engine::{Begin, Choice, Engine, Place},
    exit::Exit,
    output,
    results::terminal::{folded, stdout_width},
};

/// Show where the batches of a state file stand, or what waits in the lanes of a fleet
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  pixfleet status --state spring.pixfleet
  pixfleet status --state spring.pixfleet --json | jq '.batches[] | {batch, ended, jobs}'
  pixfleet status --state spring.pixfleet --json | jq '.endings[] | {batch, done_at}'

  pixfleet status                                  of a fleet: jobs in the lanes, batches under way, the limits

When a batch will be done follows from the provider's limits in the settings, and what is used of them.
`pixfleet batch` has more of each batch, and pauses and cancels them.")]
pub(crate) struct Args {
    #[command(flatten)]
    engine: Choice,
    /// Only this batch
    #[arg(long, value_name = "NAME")]
    batch: Option<BatchName>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The one JSON object.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    status: Status,
    /// When the batches that are under way will be done at best.
    endings: Vec<ending::Ending>,
}

/// Looks once. Of a provider that `catalog` does not know, nothing is foreseen.
///
/// # Errors
/// When there is no state file, or it does not know the batch.
pub(crate) async fn run(args: Args, config: Config, catalog: Catalog) -> anyhow::Result<ExitCode> {
    let place = args.engine.place(&config.engine, args.batch.as_ref())?;
    if place == Place::Servers {
        if let Some(batch) = &args.batch {
            bail!("the status of a fleet is that of all of it: `pixfleet batch show {batch}` shows this one");
        }
        fleet::show(&config, &catalog, args.json).await?;
        return Ok(Exit::Done.into());
    }
    let Engine::State(embedded) = Engine::open(&place, &config, Begin::Refused).await? else {
        bail!("status looks at a state file: give --state FILE");
    };
    let path = embedded.store().path().display().to_string();
    let shown = look(&embedded, &catalog).await;
    embedded.close().await;
    let mut shown = shown?;
    if let Some(batch) = &args.batch {
        shown.status.batches.retain(|counts| counts.batch == batch.as_str());
        shown.endings.retain(|ending| ending.batch == batch.as_str());
        if shown.status.batches.is_empty() {
            bail!("{path} does not know a batch `{batch}`");
        }
    }
    if args.json {
        output::json(&shown)?;
    } else {
        let width = stdout_width();
        for line in lines(&shown, Timestamp::now()) {
            output::line(folded(&line, width))?;
        }
    }
    Ok(Exit::Done.into())
}

async fn look(embedded: &Embedded, catalog: &Catalog) -> anyhow::Result<Shown> {
    let status = embedded.store().status().await?;
    let endings = ending::foreseen(embedded, &status.batches, catalog).await?;
    Ok(Shown { status, endings })
}

fn lines(shown: &Shown, now: Timestamp) -> Vec<String> {
    let Shown { status, endings } = shown;
    let mut lines = Vec::new();
    for counts in &status.batches {
        lines.push(batch_line(counts));
        let ending = endings.iter().find(|ending| ending.batch == counts.batch);
        lines.extend(ending.map(|ending| ending.line(now)));
    }
    let Status { lent, waiting, parked, processes, .. } = status;
    let noun = if *processes == 1 { "process" } else { "processes" };
    let aside = if *parked > 0 { format!(", {parked} set aside") } else { String::new() };
    lines.push(format!(
        "{lent} jobs in hand by {processes} {noun}, {waiting} waiting for their next attempt{aside}"
    ));
    for limit in &status.limits {
        if let Some(by) = &limit.paused {
            lines.push(format!("`{}` is paused by {by}", limit.stack));
        }
        if let Some(until) = held_until(limit.held_until_us, now) {
            lines.push(format!("`{}` is held off until {until}", limit.stack));
        }
    }
    lines
}

fn batch_line(counts: &BatchCounts) -> String {
    let BatchCounts { batch, jobs, expected, closed, .. } = counts;
    let done = counts.ended + counts.dead_letters;
    let state = match (counts.complete(), &counts.held, closed) {
        (true, ..) => "complete".to_owned(),
        (false, Some(Held { hold: Hold::Paused, by, .. }), _) => format!("paused by {by}"),
        (false, Some(Held { hold: Hold::Cancelled, by, .. }), _) => format!("cancelled by {by}"),
        (false, None, true) => "under way".to_owned(),
        (false, None, false) => "not all put in".to_owned(),
    };
    format!(
        "batch {batch} ({state}): {done} of {jobs} jobs, {} of {expected} results: {}",
        counts.seen(),
        outcomes(counts)
    )
}

/// The results of a batch by their ends; what is rare is said where there is some.
pub(crate) fn outcomes(counts: &BatchCounts) -> String {
    let words = [
        (Outcome::Ok, "done"),
        (Outcome::Rejected, "failed"),
        (Outcome::Dead, "dead"),
        (Outcome::Cancelled, "cancelled"),
        (Outcome::Ambiguous, "ambiguous"),
    ];
    let always = 3;
    let shown =
        words.into_iter().enumerate().map(|(at, (outcome, word))| (at, counts.of(outcome), outcome, word));
    let shown = shown.filter(|(at, count, ..)| *at < always || *count > 0);
    let before = match counts.cached {
        0 => String::new(),
        cached => format!(" ({cached} of them answered before)"),
    };
    let of = |outcome| if outcome == Outcome::Ok { before.as_str() } else { "" };
    let shown = shown.map(|(_, count, outcome, word)| format!("{count} {word}{}", of(outcome)));
    shown.collect::<Vec<_>>().join(", ")
}

fn held_until(until_us: u64, now: Timestamp) -> Option<Timestamp> {
    let until = Timestamp::from_microsecond(i64::try_from(until_us).ok()?).ok()?;
    (until > now).then_some(until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_says_how_far_it_is_and_whether_more_is_to_come() {
        let mut counts = BatchCounts {
            batch: "spring".into(),
            jobs: 3,
            expected: 6,
            ended: 2,
            results: [("ok", 4)].into(),
            ..BatchCounts::default()
        };
        assert_eq!(
            batch_line(&counts),
            "batch spring (not all put in): 2 of 3 jobs, 4 of 6 results: 4 done, 0 failed, 0 dead"
        );
        counts.held = Some(Held { hold: Hold::Paused, by: "ana".into(), at: Timestamp::UNIX_EPOCH });
        assert!(batch_line(&counts).starts_with("batch spring (paused by ana): 2 of 3 jobs"));
        counts.cached = 3;
        assert!(batch_line(&counts).contains("4 done (3 of them answered before), 0 failed"));
        (counts.closed, counts.dead_letters) = (true, 1);
        assert!(batch_line(&counts).contains("(complete): 3 of 3 jobs"));
    }

    #[test]
    fn a_pause_that_is_over_is_not_shown() {
        let now = Timestamp::from_second(100).unwrap();
        assert_eq!(held_until(99_000_000, now), None);
        assert_eq!(held_until(101_000_000, now), Timestamp::from_second(101).ok());
    }
}
