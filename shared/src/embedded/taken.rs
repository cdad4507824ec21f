//! Every statement about who has a job in hand that was lent before. Each runs within a transaction of its caller's.

use rusqlite::{Connection, params};

use super::process::is_member;
use crate::id::Id;

/// The process `own` has the job in hand; answers how many others had, and died, and how many still may have.
pub(super) fn take_up(db: &Connection, own: i64, job: Id) -> rusqlite::Result<(u32, u32)> {
    let mut query = db.prepare_cached("SELECT holder FROM taken WHERE job = ?1 AND holder <> ?2")?;
    let others = query.query_map(params![job.to_bytes(), own], |row| row.get(0))?;
    let (mut crashed, mut unsure) = (0, 0);
    for other in others {
        let count = if is_member(db, other?)? { &mut unsure } else { &mut crashed };
        *count += 1;
    }
    db.prepare_cached("INSERT OR IGNORE INTO taken (job, holder) VALUES (?1, ?2)")?
        .execute(params![job.to_bytes(), own])?;
    Ok((crashed, unsure))
}

/// The process `own` has done with the job for now.
pub(super) fn let_go(db: &Connection, own: i64, job: Id) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM taken WHERE job = ?1 AND holder = ?2")?
        .execute(params![job.to_bytes(), own])
        .map(drop)
}

/// Who died of a job says nothing any more once it is done, given up, or sent again.
pub(super) fn forget(db: &Connection, job: Id) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM taken WHERE job = ?1")?.execute([job.to_bytes()]).map(drop)
}
