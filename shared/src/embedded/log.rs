//! Every statement about what is published: the log, in order, and how far its readers are.

use rusqlite::{Connection, OptionalExtension, params};

use super::process::now_us;
use crate::{
    batch::BatchEvent,
    queue::{Filter, From, QueueError},
    result::{Announcement, ImageResult},
    trace::TraceParent,
};

const RESULT: i64 = 0;
const EVENT: i64 = 1;

/// A result or a batch event as it is stored.
#[derive(Debug)]
pub(super) struct Entry {
    batch: String,
    announcement: Announcement,
    body: Vec<u8>,
}

impl Entry {
    /// The entry of an announcement: the JSON of its `data`, made before anybody waits for it.
    pub(super) fn of(announcement: Announcement) -> Result<Self, QueueError> {
        let body = match &announcement {
            Announcement::Result(result, _) => serde_json::to_vec(result),
            Announcement::Batch(event) => serde_json::to_vec(event),
        };
        let body = body.map_err(|error| QueueError::Unsendable(error.to_string()))?;
        let batch = match &announcement {
            Announcement::Result(result, _) => result.batch.to_string(),
            Announcement::Batch(event) => event.batch.to_string(),
        };
        Ok(Self { batch, announcement, body })
    }

    /// The result, if it is one.
    pub(super) fn result(&self) -> Option<&ImageResult> {
        match &self.announcement {
            Announcement::Result(result, _) => Some(result),
            Announcement::Batch(_) => None,
        }
    }

    /// The entries of a job's results.
    pub(super) fn of_results(
        results: Vec<ImageResult>,
        trace: Option<TraceParent>,
    ) -> Result<Vec<Self>, QueueError> {
        let entry = |result| Self::of(Announcement::Result(Box::new(result), trace.map(TraceParent::child)));
        results.into_iter().map(entry).collect()
    }
}

/// Appends entries.
pub(super) fn append(db: &Connection, entries: &[Entry]) -> rusqlite::Result<()> {
    let mut insert =
        db.prepare_cached("INSERT INTO log (at_us, batch, kind, trace, body) VALUES (?1, ?2, ?3, ?4, ?5)")?;
    let at = now_us() as i64;
    for Entry { batch, announcement, body } in entries {
        let (kind, trace) = match announcement {
            Announcement::Result(_, trace) => (RESULT, trace.map(|trace| trace.to_string())),
            Announcement::Batch(_) => (EVENT, None),
        };
        insert.execute(params![at, batch, kind, trace, body])?;
    }
    Ok(())
}

/// What stands in the log after `after`, in order, at most `most`: what `filter` wants of it, and where it ends.
pub(super) fn page(
    db: &Connection,
    after: i64,
    most: usize,
    filter: &Filter,
) -> rusqlite::Result<(Vec<(i64, Announcement)>, i64)> {
    let mut query = db.prepare_cached(
        "SELECT seq, batch, kind, trace, body FROM log WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?;
    let mut rows = query.query(params![after, most as i64])?;
    let (mut found, mut end) = (Vec::new(), after);
    while let Some(row) = rows.next()? {
        end = row.get(0)?;
        let batch = row.get_ref(1)?.as_str()?;
        if filter.batch.as_ref().is_some_and(|wanted| wanted.as_str() != batch) {
            continue;
        }
        let trace = row.get_ref(3)?.as_str_or_null()?.and_then(|trace| trace.parse().ok());
        match announcement(row.get(2)?, trace, row.get_ref(4)?.as_blob()?) {
            Ok(announcement) if filter.wants(&announcement) => found.push((end, announcement)),
            Ok(_) => {}
            Err(error) => tracing::warn!(log.seq = end, %error, "passed over"),
        }
    }
    Ok((found, end))
}

fn announcement(
    kind: i64,
    trace: Option<TraceParent>,
    body: &[u8],
) -> Result<Announcement, serde_json::Error> {
    if kind == EVENT {
        return serde_json::from_slice::<BatchEvent>(body).map(Announcement::Batch);
    }
    Ok(Announcement::Result(serde_json::from_slice(body)?, trace))
}

/// The position from which a reader begins.
pub(super) fn position(db: &Connection, from: From) -> rusqlite::Result<i64> {
    let last = "SELECT coalesce(max(seq), 0) FROM log";
    match from {
        From::Beginning => Ok(0),
        From::Now => db.query_row(last, [], |row| row.get(0)),
        From::Ago(ago) => {
            let since = now_us().saturating_sub(ago.as_micros() as u64);
            first_since(db, since as i64, db.query_row(last, [], |row| row.get(0))?)
        }
    }
}

/// Times grow along the log but for a clock that is set: half the way and half of that finds the place.
fn first_since(db: &Connection, since_us: i64, last: i64) -> rusqlite::Result<i64> {
    let (mut low, mut high) = (0, last);
    let mut at = db.prepare_cached("SELECT at_us FROM log WHERE seq = ?1")?;
    while low < high {
        let middle = low + (high - low) / 2;
        let at_us: i64 = at.query_row([middle + 1], |row| row.get(0)).optional()?.unwrap_or(0);
        if at_us < since_us {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// Where a reader of a name goes on, and its note; it begins at the end where it is new.
pub(super) fn reader(db: &Connection, name: &str) -> rusqlite::Result<i64> {
    let now = position(db, From::Now)?;
    db.execute(
        "INSERT INTO readers (name, position) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        params![name, now],
    )?;
    db.query_row("SELECT position FROM readers WHERE name = ?1", [name], |row| row.get(0))
}

/// A reader has done with everything up to `position`.
pub(super) fn commit(db: &Connection, name: &str, position: i64, note: Option<&str>) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO readers (name, position, note) VALUES (?1, ?2, ?3)
         ON CONFLICT (name) DO UPDATE SET position = excluded.position, note = excluded.note",
    )?
    .execute(params![name, position, note])
    .map(drop)
}

/// A reader that has read nothing is nobody's any more.
pub(super) fn forget(db: &Connection, name: &str) -> rusqlite::Result<()> {
    db.execute("DELETE FROM readers WHERE name = ?1", [name]).map(drop)
}

/// How far a reader is, and its note; none before its first commit.
pub(super) fn committed(db: &Connection, name: &str) -> rusqlite::Result<Option<(i64, Option<String>)>> {
    db.query_row("SELECT position, note FROM readers WHERE name = ?1", [name], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })
    .optional()
}
