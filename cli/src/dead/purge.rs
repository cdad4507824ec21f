//! `pixfleet dead purge`.

use std::ops::ControlFlow;

use clap::error::ErrorKind;
use pixfleet_shared::queue::Queue;
use serde::Serialize;

use super::{
    consent::{self, Answer},
    filter::Filter,
    look::{Reasons, each, in_words},
};
use crate::{exit::Exit, output, words::count, worker::on_signal};

/// The one JSON object.
#[derive(Debug, Serialize)]
struct Report {
    reasons: Reasons,
    purged: u64,
}

/// Refuses to throw away everything because a filter was forgotten.
///
/// # Errors
/// Neither a filter nor `--all`, or both.
pub(super) fn check(filter: &Filter, all: bool) -> Result<(), clap::Error> {
    let why = match (filter.is_empty(), all) {
        (true, false) => "say which letters to throw away, for example --batch NAME, or --all\n",
        (false, true) => "--all means every letter: leave it out, or the filters\n",
        _ => return Ok(()),
    };
    Err(clap::Error::raw(ErrorKind::MissingRequiredArgument, why))
}

/// Says how many letters pass `filter`, and throws them away when that is wanted.
///
/// # Errors
/// When the queue is away.
pub(super) async fn purge(queue: &dyn Queue, filter: &Filter, yes: bool, json: bool) -> anyhow::Result<Exit> {
    let mut reasons = Reasons::new();
    let counted = each(queue, filter, async |letter| {
        *reasons.entry(letter.death.reason).or_default() += 1;
        Ok(ControlFlow::Continue(()))
    });
    counted.await?;
    let meant = reasons.values().sum();
    if !json {
        output::line(in_words(&reasons))?;
    }
    if meant > 0 && consent::ask(yes, format!("Throw away {}, for good?", count(meant))).await? == Answer::No
    {
        return Ok(Exit::WorkLeft);
    }
    let stop = on_signal()?;
    let mut purged = 0;
    if meant > 0 {
        // No more than was said: what died since comes last.
        let ended = each(queue, filter, async |letter| {
            if stop.is_cancelled() {
                return Ok(ControlFlow::Break(()));
            }
            letter.purge().await?;
            purged += 1;
            Ok(if purged == meant { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        });
        ended.await?;
    }
    if json {
        output::json(&Report { reasons, purged })?;
    } else if meant > 0 {
        output::line(format!("{} thrown away", count(purged)))?;
    }
    Ok(if stop.is_cancelled() { Exit::WorkLeft } else { Exit::Done })
}
