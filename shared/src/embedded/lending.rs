//! Every statement about which jobs are lent next, and to whom. Each runs within a transaction of its caller's.

use rusqlite::{Connection, params};

use super::{jobs::rank, process::now_us};
use crate::{
    job::Priority,
    lanes::{Turns, weight_of},
};

/// A batch keeps to one of these queues of its priority.
pub(super) const LANES: u8 = 16;
/// A lane with more jobs than this is full, and no lane is fuller.
const COUNTED: i64 = 100_000;

/// A job that is lent.
#[derive(Debug)]
pub(super) struct Lent {
    pub(super) seq: i64,
    /// Whether it was lent before, and not settled.
    pub(super) again: bool,
    pub(super) message: Vec<u8>,
}

/// What a lending found.
#[derive(Debug, Default)]
pub(super) struct Lending {
    pub(super) lent: Vec<Lent>,
    /// When the next waiting job is ready, if one waits.
    pub(super) next_due_us: Option<u64>,
}

/// Whose jobs are lent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// Everybody's.
    All,
    /// Those of these providers: others' are left to whoever knows them.
    Of(Vec<String>),
}

impl Served {
    /// The providers whose jobs are looked at.
    fn providers(&self, db: &Connection) -> rusqlite::Result<Vec<String>> {
        match self {
            Self::Of(providers) => Ok(providers.clone()),
            Self::All => waiting_providers(db),
        }
    }
}

/// Every provider of which a job is ready: one step in the index each.
fn waiting_providers(db: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut next = db.prepare_cached("SELECT min(provider) FROM jobs WHERE state = 0 AND provider > ?1")?;
    let mut providers: Vec<String> = Vec::new();
    loop {
        let last = providers.last().map_or("", String::as_str);
        match next.query_row([last], |row| row.get(0))? {
            Some(provider) => providers.push(provider),
            None => return Ok(providers),
        }
    }
}

/// The lane of this priority with the fewest ready jobs. `chance` decides between equals.
pub(super) fn emptiest(db: &Connection, priority: Priority, chance: &[u32]) -> rusqlite::Result<u8> {
    let mut query = db.prepare_cached(
        "SELECT count(*) FROM (SELECT 1 FROM jobs
         WHERE state = 0 AND provider = ?1 AND priority = ?2 AND lane = ?3 LIMIT ?4)",
    )?;
    let providers = waiting_providers(db)?;
    let mut depths = Vec::with_capacity(LANES.into());
    for (lane, chance) in (0..LANES).zip(chance) {
        let mut depth = 0;
        for provider in &providers {
            depth += query
                .query_row(params![provider, rank(priority), lane, COUNTED], |row| row.get::<_, i64>(0))?;
        }
        depths.push((depth, *chance, lane));
    }
    Ok(depths.into_iter().min().map_or(0, |(_, _, lane)| lane))
}

/// What there is to lend.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outlook {
    /// A job of these providers is ready, or any has waited for long enough.
    Ready,
    /// Nothing is; the next waiting job is ready at this moment, if one waits.
    NothingBefore(Option<u64>),
}

/// Looks whether there is something to lend.
pub(super) fn outlook(db: &Connection, served: &Served) -> rusqlite::Result<Outlook> {
    let next_due_us = next_due_us(db)?;
    if next_due_us.is_some_and(|due_us| due_us <= now_us()) {
        return Ok(Outlook::Ready);
    }
    let mut ready =
        db.prepare_cached("SELECT EXISTS (SELECT 1 FROM jobs WHERE state = 0 AND provider = ?1)")?;
    for provider in served.providers(db)? {
        if ready.query_row([provider], |row| row.get(0))? {
            return Ok(Outlook::Ready);
        }
    }
    Ok(Outlook::NothingBefore(next_due_us))
}

fn next_due_us(db: &Connection) -> rusqlite::Result<Option<u64>> {
    let due: Option<i64> =
        db.prepare_cached("SELECT min(due_us) FROM jobs WHERE state = 2")?.query_row([], |row| row.get(0))?;
    Ok(due.map(i64::unsigned_abs))
}

fn every_lane() -> impl Iterator<Item = (Priority, u8)> {
    Priority::ALL.into_iter().flat_map(|priority| (0..LANES).map(move |lane| (priority, lane)))
}

/// Lends up to `most` jobs to the process `holder`, the lanes by weight, each in its order.
pub(super) fn lend(
    db: &Connection,
    holder: i64,
    served: &Served,
    turns: &mut Turns<usize>,
    most: usize,
) -> rusqlite::Result<Lending> {
    db.prepare_cached("UPDATE jobs SET state = 0 WHERE state = 2 AND due_us <= ?1")?
        .execute([now_us() as i64])?;
    let mut lanes = heads(db, &served.providers(db)?, most)?;
    let mut take =
        db.prepare_cached("UPDATE jobs SET state = 1, holder = ?2 WHERE seq = ?1 RETURNING job, again")?;
    let mut lending = Lending::default();
    while lending.lent.len() < most {
        let ready = lanes.iter().enumerate().filter_map(|(lane, heads)| Some((lane, heads.last()?.weight)));
        let Some(Head { seq, .. }) = turns.take(ready).and_then(|lane| lanes[lane].pop()) else { break };
        let lent = take.query_row(params![seq, holder], |row| {
            Ok(Lent { seq, message: row.get(0)?, again: row.get(1)? })
        })?;
        lending.lent.push(lent);
    }
    if lending.lent.len() < most {
        lending.next_due_us = next_due_us(db)?;
    }
    Ok(lending)
}

/// A job that may be lent.
struct Head {
    seq: i64,
    /// Among all lanes.
    weight: u64,
}

/// The first ready jobs of each lane, the very first last.
fn heads(db: &Connection, providers: &[String], most: usize) -> rusqlite::Result<Vec<Vec<Head>>> {
    let mut query = db.prepare_cached(
        "SELECT seq, weight FROM jobs WHERE state = 0 AND provider = ?1 AND priority = ?2 AND lane = ?3
         ORDER BY seq LIMIT ?4",
    )?;
    let mut lanes = Vec::new();
    for (priority, lane) in every_lane() {
        let mut heads: Vec<Head> = Vec::new();
        for provider in providers {
            let mut rows = query.query(params![provider, rank(priority), lane, most as i64])?;
            while let Some(row) = rows.next()? {
                heads.push(Head { seq: row.get(0)?, weight: weight_of(priority, row.get(1)?) });
            }
        }
        heads.sort_unstable_by_key(|head| std::cmp::Reverse(head.seq));
        lanes.push(heads);
    }
    Ok(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        batch::Tally,
        embedded::{
            file::{self, Use},
            jobs::{self, After, Row, Settling},
        },
        job::{Image, Job, Source},
    };

    #[test]
    fn where_nothing_is_ready_the_next_waiting_jobs_moment_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let db = file::open(&folder.path().join("state"), Use::Write).unwrap();
        let image = Image { id: "i".into(), source: Source::Url("https://example.com/".into()) };
        let job = Job::new("b".parse().unwrap(), image, "p".into(), vec!["m".into()]);
        assert_eq!(outlook(&db, &Served::All).unwrap(), Outlook::NothingBefore(None));
        jobs::put(&db, &[Row::of(&job).unwrap()]).unwrap();
        assert_eq!(outlook(&db, &Served::All).unwrap(), Outlook::Ready);
        assert_eq!(outlook(&db, &Served::Of(vec!["q".into()])).unwrap(), Outlook::NothingBefore(None));
        let lent = lend(&db, 1, &Served::All, &mut Turns::default(), 1).unwrap().lent;
        let hour = 3_600_000_000;
        let settling = Settling {
            seq: lent[0].seq,
            job: job.id,
            turn: job.turn(),
            batch: job.batch.to_string(),
            entries: Vec::new(),
            after: After::Again(Row::of(&job).unwrap(), hour),
            end: None,
            tally: Tally::default(),
        };
        jobs::settle(&db, 1, &settling, None).unwrap();
        let Outlook::NothingBefore(Some(due_us)) = outlook(&db, &Served::All).unwrap() else {
            panic!("it waits")
        };
        assert!(due_us <= now_us() + hour && due_us > now_us() + hour / 2);
    }
}
