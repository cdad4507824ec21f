//! Opening a state file: whose it is, its version, and how SQLite treats it.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, OpenFlags};

use super::trouble::StoreError;

/// The mark of pixfleet's files in SQLite's header: "pxft".
const APPLICATION_ID: i64 = 0x7078_6674;
/// The format that this build writes and reads.
const FORMAT: i64 = 3;
/// Each format's tables, over those of the one before: a new file goes through all of them.
const FORMATS: [&str; FORMAT as usize] =
    [include_str!("schema.sql"), include_str!("format-2.sql"), include_str!("format-3.sql")];

/// Page caches in KiB. What is written moves along the ends of the tables, so that little of them is needed; only the
/// ledger is looked up at random.
const WRITER_CACHE_KIB: i64 = 8 * 1024;
const READER_CACHE_KIB: i64 = 2 * 1024;
/// How long another process may keep the file busy. It does so for the milliseconds of a group.
const BUSY: Duration = Duration::from_secs(10);
/// The pause of one of two processes that begin a file at once.
const GIVE_WAY: Duration = Duration::from_millis(5);
/// Pages in the write-ahead log at which they are moved to the file, 4 KiB each.
const CHECKPOINT_PAGES: i64 = 4_000;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Write,
    Read,
}

/// Opens the file, and begins it where there is none.
///
/// Of two that begin it at once each would wait for the other: SQLite has one of them fail at once, and that one comes
/// again.
pub(super) fn open(path: &Path, purpose: Use) -> Result<Connection, StoreError> {
    let deadline = Instant::now() + BUSY;
    loop {
        match attempt(path, purpose) {
            Err(StoreError::Busy(_)) if Instant::now() < deadline => thread::sleep(GIVE_WAY),
            opened => return opened,
        }
    }
}

fn attempt(path: &Path, purpose: Use) -> Result<Connection, StoreError> {
    let explain = |error| StoreError::of(path, &error);
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(explain)?;
    db.busy_timeout(BUSY).map_err(explain)?;
    ours(&db, path)?;
    prepare(&db, purpose).map_err(explain)?;
    Ok(db)
}

/// Refuses a file of somebody else's before anything is written to it, and one of a later format.
fn ours(db: &Connection, path: &Path) -> Result<(), StoreError> {
    let (owner, format, holds_something) = head(db).map_err(|error| StoreError::of(path, &error))?;
    let shown = || path.display().to_string();
    match (owner, format) {
        // New, or begun by a process that was killed before its tables were in.
        (0, 0) if !holds_something => Ok(()),
        (APPLICATION_ID, 1..=FORMAT) => Ok(()),
        (APPLICATION_ID, found) => Err(StoreError::Later { path: shown(), found, known: FORMAT }),
        _ => Err(StoreError::Foreign(shown())),
    }
}

/// Whose the file is, its format, and whether there is a table in it: of one moment, because another process may be
/// beginning it.
fn head(db: &Connection) -> rusqlite::Result<(i64, i64, bool)> {
    let moment = db.unchecked_transaction()?;
    let number = |query: &str| moment.query_row(query, [], |row| row.get::<_, i64>(0));
    Ok((
        number("PRAGMA application_id")?,
        number("PRAGMA user_version")?,
        number("SELECT EXISTS (SELECT 1 FROM sqlite_schema)")? != 0,
    ))
}

fn prepare(db: &Connection, purpose: Use) -> rusqlite::Result<()> {
    let cache = if purpose == Use::Write { WRITER_CACHE_KIB } else { READER_CACHE_KIB };
    db.pragma_update(None, "cache_size", -cache)?;
    db.pragma_update(None, "temp_store", "memory")?;
    db.set_prepared_statement_cache_capacity(128);
    if purpose == Use::Read {
        return db.pragma_update(None, "query_only", true);
    }
    // WAL: a commit is one append, and readers wait for nobody. FULL: the append is synced before a commit is
    // answered, so that a power cut takes nothing that was answered.
    db.pragma_update(None, "journal_mode", "wal")?;
    db.pragma_update(None, "synchronous", "full")?;
    db.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    db.pragma_update(None, "journal_size_limit", CHECKPOINT_PAGES * 4_096)?;
    begin(db)
}

/// Writes the tables into a new file, and what they lack into one of an earlier format. Another process may be doing the
/// same: the second finds them there.
fn begin(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch("BEGIN IMMEDIATE")?;
    let format: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let missing = FORMATS.iter().skip(usize::try_from(format).unwrap_or(0));
    if format < FORMAT {
        for tables in missing {
            db.execute_batch(tables)?;
        }
        db.pragma_update(None, "application_id", APPLICATION_ID)?;
        db.pragma_update(None, "user_version", FORMAT)?;
    }
    db.execute_batch("COMMIT")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        batch::Tally,
        embedded::{
            counted, deaths, letters, standing,
            turns::{self, Found},
        },
        job::{Image, Job, Source},
        queue::Reason,
    };

    #[test]
    fn a_file_of_somebody_elses_is_refused_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.sqlite");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
        assert!(matches!(open(&path, Use::Write), Err(StoreError::Foreign(_))));
        let text = folder.path().join("notes.txt");
        std::fs::write(&text, "a shopping list, long enough to be looked at twice\n".repeat(20)).unwrap();
        let before = std::fs::read(&text).unwrap();
        assert!(matches!(open(&text, Use::Write), Err(StoreError::Foreign(_))));
        assert_eq!(std::fs::read(&text).unwrap(), before);
    }

    #[test]
    fn a_file_whose_maker_was_killed_before_its_tables_were_in_is_begun_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let db = Connection::open(&path).unwrap();
        db.pragma_update(None, "journal_mode", "wal").unwrap();
        drop(db);
        assert!(std::fs::metadata(&path).unwrap().len() > 0, "the header is there");
        let db = open(&path, Use::Write).unwrap();
        assert_eq!(db.query_row("SELECT count(*) FROM jobs", [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    }

    #[test]
    fn processes_that_begin_one_file_together_all_have_it() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..50 {
            let path = folder.path().join(round.to_string());
            std::thread::scope(|scope| {
                let opened = [0; 4].map(|_| scope.spawn(|| open(&path, Use::Write).map(drop)));
                for opened in opened {
                    opened.join().unwrap().unwrap();
                }
            });
        }
    }

    #[test]
    fn a_file_of_a_later_format_is_refused_with_both_formats() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        open(&path, Use::Write).unwrap().pragma_update(None, "user_version", 7).unwrap();
        let refused = open(&path, Use::Write).unwrap_err().to_string();
        assert!(refused.contains("format 7") && refused.contains("reads 3"), "{refused}");
    }

    #[test]
    fn a_file_of_the_first_format_is_brought_up_to_date_and_keeps_what_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let db = Connection::open(&path).unwrap();
        db.execute_batch(FORMATS[0]).unwrap();
        db.execute_batch("INSERT INTO limits VALUES ('restb', 3, 1, 2, '{\"rate\": [7, 5]}')").unwrap();
        db.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        db.pragma_update(None, "user_version", 1).unwrap();
        drop(db);
        let db = open(&path, Use::Write).unwrap();
        let row = db.query_row("SELECT pace, terms FROM limits", [], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        });
        assert_eq!(row.unwrap(), ("{\"rate\": [7, 5]}".into(), "{}".into()));
    }

    #[test]
    fn a_file_of_the_second_format_keeps_its_settled_jobs_its_counts_and_its_dead_letters() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let image = |id: &str| Image { id: id.into(), source: Source::Url("http://images.example/".into()) };
        let models = || vec!["m".to_owned(), "n".to_owned()];
        let job = |id| Job::new("b".parse().unwrap(), image(id), "p".into(), models());
        let (done, dead) = (job("done"), Job { attempt: 4, ..job("dead") });
        let db = Connection::open(&path).unwrap();
        db.execute_batch(&FORMATS[..2].concat()).unwrap();
        db.execute("INSERT INTO settled (job, at_us) VALUES (?1, 1)", [done.id.to_bytes()]).unwrap();
        db.execute(
            "INSERT INTO dead (seq, at_us, batch, reason, job) VALUES (7, 5000000, 'b', 'attempts-exhausted', ?1)",
            [dead.to_message().unwrap()],
        )
        .unwrap();
        db.execute_batch(
            "INSERT INTO batches (batch, jobs, results, ended, dead, closed) VALUES ('b', 2, 4, 1, 1, 1);
             INSERT INTO outcomes VALUES ('b', 'ok', '', 2, ''), ('b', 'dead', 'transient (500)', 2, 'no');
             INSERT INTO log (at_us, batch, kind, body) VALUES (3000000, 'b', 1, '{}');
             PRAGMA user_version = 2",
        )
        .unwrap();
        db.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        drop(db);

        let db = open(&path, Use::Write).unwrap();
        let over = |job: &Job| matches!(turns::look(&db, job.id, job.turn(), None).unwrap(), Found::Over);
        assert!(over(&done) && over(&dead) && !over(&job("new")));
        let known = standing::one(&db, "b").unwrap().unwrap();
        let tally = Tally { ok: 2, dead: 2, ..Tally::default() };
        assert_eq!((known.jobs, known.expected, known.tally, known.is_complete()), (2, 4, tally, true));
        assert_eq!(known.opened_at.as_second(), 3);
        let letters = letters::page(&db, 0, letters::last(&db).unwrap(), 10).unwrap();
        let [letter] = &letters[..] else { panic!("one letter: {letters:?}") };
        assert_eq!((letter.seq, letter.death.reason), (7, Reason::AttemptsExhausted));
        assert_eq!(Job::from_message(&letter.message).unwrap(), dead);
        // Sent again, its results count as dead no more, and neither does the job.
        let replayed = Job { replays: 1, attempt: 0, ..dead };
        assert!(deaths::open_again(&db, &replayed).unwrap() && !over(&replayed));
        assert_eq!(standing::one(&db, "b").unwrap().unwrap().tally, Tally { ok: 2, ..Tally::default() });
        let counts = counted::read(&db, Some("b")).unwrap().remove(0);
        assert_eq!((counts.ended, counts.dead_letters, counts.complete()), (1, 0, false));
    }

    #[test]
    fn a_damaged_file_is_said_to_be_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        drop(open(&path, Use::Write).unwrap());
        let mut bytes = std::fs::read(&path).unwrap();
        // The head stays: it says whose the file is.
        bytes[100..].fill(0xa5);
        std::fs::write(&path, bytes).unwrap();
        let db = open(&path, Use::Write).and_then(|db| {
            db.execute("DELETE FROM jobs", []).map(drop).map_err(|error| StoreError::of(&path, &error))
        });
        let refused = db.unwrap_err();
        assert!(matches!(refused, StoreError::Damaged { .. }), "{refused}");
        assert!(refused.to_string().contains("backup"));
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let refused = open(Path::new("/nowhere/at/all/state"), Use::Write).unwrap_err().to_string();
        assert!(refused.contains("/nowhere/at/all/state") && refused.contains("folder"), "{refused}");
    }
}
