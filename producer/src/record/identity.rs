//! What a record is a record of: a run with another question under the same batch name is refused.

use std::path::Path;

use pixfleet_shared::{batch::BatchName, job::Priority};
use rusqlite::{Connection, OptionalExtension};

use super::{RecordError, explain};
use crate::plan::Plan;

/// What a batch was begun with, and keeps to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    batch: String,
    /// What is kept, each with its name for people.
    facts: [(&'static str, String); 5],
}

impl Identity {
    /// The identity of `batch`, asked as `plan` says, on the queue that `queue` names (a host and virtual host,
    /// without credentials): jobs that one broker confirmed are not on another.
    pub fn new(batch: &BatchName, plan: &Plan, priority: Priority, queue: &str) -> Self {
        Self {
            batch: batch.to_string(),
            facts: [
                ("provider", plan.provider().to_owned()),
                ("models", plan.models().collect::<Vec<_>>().join(",")),
                ("models a call", plan.models_per_call().to_string()),
                ("priority", priority.to_string()),
                ("queue", queue.to_owned()),
            ],
        }
    }

    /// Compares itself with what an existing record says, and writes itself into a new one.
    ///
    /// As long as the batch is not `begun`, no job can be on the queue: a mistyped model may still be mended.
    pub(super) fn keep_or_compare(
        &self,
        db: &Connection,
        path: &Path,
        begun: bool,
    ) -> Result<(), RecordError> {
        let batch = ("batch", self.batch.clone());
        for (what, is) in std::iter::once(&batch).chain(&self.facts) {
            let was = kept(db, what).map_err(|error| explain(path, error))?;
            match was {
                Some(was) if was != *is && begun => return Err(self.another(what, was, is, path)),
                Some(was) if was == *is => {}
                _ => keep(db, what, is).map_err(|error| explain(path, error))?,
            }
        }
        Ok(())
    }

    fn another(&self, what: &'static str, was: String, is: &str, path: &Path) -> RecordError {
        RecordError::Another {
            batch: self.batch.clone(),
            what,
            was: format!("`{was}`"),
            is: format!("`{is}`"),
            path: path.display().to_string(),
        }
    }
}

fn kept(db: &Connection, what: &str) -> rusqlite::Result<Option<String>> {
    db.query_row("SELECT value FROM meta WHERE key = ?1", [what], |row| row.get(0)).optional()
}

fn keep(db: &Connection, what: &str, is: &str) -> rusqlite::Result<()> {
    db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)", [what, is]).map(drop)
}
