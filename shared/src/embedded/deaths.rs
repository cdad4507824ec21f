//! Every statement about what deaths count as: a replay takes it back, once. Each runs within a transaction of its caller's.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::{
    counts::{self, Moved, reason},
    json::{json, of_json},
    log::Entry,
    turns,
};
use crate::{batch::Tally, batches::Progress, id::Id, job::Job, result::Outcome};

/// What a death counts as. Answers are left out: the dead letter asks for them no more.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Death {
    /// Jobs among the dead letters.
    letters: u64,
    tally: Tally,
    /// Outcome, reason, results.
    outcomes: Vec<(String, String, u64)>,
    /// Whether it was taken back: the job is to be sent again.
    #[serde(default)]
    taken_back: bool,
}

/// What a death counts as, to be remembered: results as `tally`, and as `entries`, where they are in the log.
pub(super) fn of(tally: Tally, entries: &[Entry], letter: bool) -> rusqlite::Result<String> {
    let mut outcomes = BTreeMap::new();
    for result in entries.iter().filter_map(Entry::result).filter(|result| result.outcome != Outcome::Ok) {
        *outcomes.entry((result.outcome.as_str().to_owned(), reason(result))).or_default() += 1;
    }
    let outcomes =
        outcomes.into_iter().map(|((outcome, reason), results)| (outcome, reason, results)).collect();
    let tally = Tally { ok: 0, cached: 0, ..tally };
    text(&Death { letters: letter.into(), tally, outcomes, taken_back: false })
}

fn text(death: &Death) -> rusqlite::Result<String> {
    Ok(String::from_utf8_lossy(&json(death)?).into_owned())
}

/// A dead letter is sent again as `job`: its turn is free, and its death counts no more. Whether that is news.
pub(super) fn open_again(db: &Connection, job: &Job) -> rusqlite::Result<bool> {
    let news = turns::reopen(db, job.id, job.turn())?;
    if news && let Some(death) = known(db, job.id, false)? {
        take_back(db, job.batch.as_str(), &death)?;
        turns::remember_death(db, job.id, &text(&Death { taken_back: true, ..death })?)?;
    }
    Ok(news)
}

/// The letter of `job` was thrown away. Where it was to be sent again, and never was, its death counts after all: nobody
/// else settles the job. The batch, where it is complete by that.
pub(super) fn thrown_away(db: &Connection, own: i64, job: &Job) -> rusqlite::Result<Option<Progress>> {
    let Some(death) = known(db, job.id, true)? else {
        return Ok(None);
    };
    for (outcome, reason, results) in &death.outcomes {
        db.prepare_cached(
            "INSERT INTO outcomes (batch, outcome, reason, results, example) VALUES (?1, ?2, ?3, ?4, '')
             ON CONFLICT (batch, outcome, reason) DO UPDATE SET results = results + excluded.results",
        )?
        .execute(params![job.batch.as_str(), outcome, reason, *results as i64])?;
    }
    let moved = Moved { ended: false, dead: death.letters > 0, tally: death.tally };
    turns::remember_death(db, job.id, &text(&Death { taken_back: false, ..death })?)?;
    counts::moved(db, own, job.batch.as_str(), &moved)
}

fn known(db: &Connection, job: Id, taken_back: bool) -> rusqlite::Result<Option<Death>> {
    let death = turns::death(db, job)?.map(|death| of_json::<Death>(death.as_bytes())).transpose()?;
    Ok(death.filter(|death| death.taken_back == taken_back))
}

fn take_back(db: &Connection, batch: &str, death: &Death) -> rusqlite::Result<()> {
    let Death { letters, tally, outcomes, .. } = death;
    db.prepare_cached(
        "UPDATE batches SET
           dead = max(dead - ?2, 0), rejected_results = max(rejected_results - ?3, 0),
           dead_results = max(dead_results - ?4, 0), cancelled_results = max(cancelled_results - ?5, 0),
           ambiguous_results = max(ambiguous_results - ?6, 0), ending = 0
         WHERE batch = ?1",
    )?
    .execute(params![
        batch,
        *letters as i64,
        tally.rejected as i64,
        tally.dead as i64,
        tally.cancelled as i64,
        tally.ambiguous as i64
    ])?;
    for (outcome, reason, results) in outcomes {
        db.prepare_cached(
            "UPDATE outcomes SET results = results - ?4 WHERE batch = ?1 AND outcome = ?2 AND reason = ?3",
        )?
        .execute(params![batch, outcome, reason, *results as i64])?;
    }
    db.prepare_cached("DELETE FROM outcomes WHERE batch = ?1 AND results <= 0")?.execute([batch]).map(drop)
}
