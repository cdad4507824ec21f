//! Every statement about the way from `tail` to `confirmed`: read, moved in steps, cleared.

use pixfleet_shared::id::Id;
use rusqlite::{Connection, Row, params};

/// Ids that are moved in one transaction. In a large table each is on a page of its own, and of the pages that a task
/// changes a state file keeps copies in memory, so that it can be undone; and whoever else writes to the file waits
/// for no more than a step.
pub(super) const STEP: usize = 2 * 1024;

/// A row of `tail`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail {
    pub(super) rowid: i64,
    pub(super) id: Id,
    pub(super) run: i64,
}

pub(super) fn read(db: &Connection) -> rusqlite::Result<Vec<Tail>> {
    let row =
        |row: &Row<'_>| Ok(Tail { rowid: row.get(0)?, id: Id::from_bytes(row.get(1)?), run: row.get(2)? });
    db.prepare_cached("SELECT rowid, id, run FROM tail")?.query_map([], row)?.collect()
}

/// Whatever the tail of an earlier run holds keeps that run.
pub(super) fn move_in(db: &Connection, step: &[Tail]) -> rusqlite::Result<()> {
    let mut insert = db.prepare_cached(
        "INSERT INTO confirmed (id, run) VALUES (?1, ?2)
         ON CONFLICT (id) DO UPDATE SET run = max(run, excluded.run)",
    )?;
    step.iter().try_for_each(|row| insert.execute(params![row.id.to_bytes(), row.run]).map(drop))
}

/// Row by row: the batch of another process may have added its own meanwhile, in the place of rows that are gone.
pub(super) fn clear(db: &Connection, moved: &[Tail]) -> rusqlite::Result<()> {
    let mut delete = db.prepare_cached("DELETE FROM tail WHERE rowid = ?1 AND id = ?2")?;
    moved.iter().try_for_each(|row| delete.execute(params![row.rowid, row.id.to_bytes()]).map(drop))
}
