//! What a record is a record of: a run with another question under the same batch name is refused.

use std::path::Path;

use pixfleet_shared::{batch::BatchName, budget::Budget, job::Priority};
use rusqlite::{Connection, OptionalExtension};

use super::RecordError;
use crate::plan::Plan;

const BUDGET: &str = "budget";
const NO_BUDGET: &str = "none";

/// What a batch was begun with, and keeps to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    batch: String,
    /// What is kept, each with its name for people.
    facts: [(&'static str, String); 6],
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
                (BUDGET, NO_BUDGET.to_owned()),
            ],
        }
    }

    /// The same with what the batch may spend.
    #[must_use]
    pub fn with_budget(mut self, budget: Option<Budget>) -> Self {
        self.facts[5].1 = budget.map_or_else(|| NO_BUDGET.to_owned(), |budget| budget.to_string());
        self
    }

    /// The batch's name.
    pub(super) fn batch(&self) -> &str {
        &self.batch
    }

    /// Compares itself with what an existing record says, and writes itself into a new one; answers what differs.
    ///
    /// As long as the batch is not `begun`, no job can be on the queue: a mistyped model may still be mended.
    pub(super) fn keep_or_compare(
        &self,
        db: &Connection,
        scope: &str,
        begun: bool,
    ) -> rusqlite::Result<Option<Differs>> {
        let batch = ("batch", self.batch.clone());
        for (what, is) in std::iter::once(&batch).chain(&self.facts) {
            let key = format!("{scope}{what}");
            // A record of an earlier build knows no budgets.
            let unsaid = || (begun && *what == BUDGET).then(|| NO_BUDGET.to_owned());
            match kept(db, &key)?.or_else(unsaid) {
                Some(was) if was != *is && begun => {
                    return Ok(Some(Differs { batch: self.batch.clone(), what, was, is: is.clone() }));
                }
                Some(was) if was == *is => {}
                _ => keep(db, &key, is)?,
            }
        }
        Ok(None)
    }
}

/// In what a run differs from what its batch was begun with.
#[derive(Debug)]
pub(super) struct Differs {
    batch: String,
    what: &'static str,
    was: String,
    is: String,
}

impl Differs {
    /// The refusal, by the record at `path`.
    pub(super) fn of(self, path: &Path) -> RecordError {
        RecordError::Another {
            batch: self.batch,
            what: self.what,
            was: format!("`{}`", self.was),
            is: format!("`{}`", self.is),
            path: path.display().to_string(),
        }
    }
}

/// The provider that the record says, if there is one.
pub(super) fn provider(db: &Connection, scope: &str) -> rusqlite::Result<Option<String>> {
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name = 'meta'";
    match db.query_row(tables, [], |row| row.get::<_, i64>(0))? {
        0 => Ok(None),
        _ => kept(db, &format!("{scope}provider")),
    }
}

fn kept(db: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    db.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()
}

fn keep(db: &Connection, key: &str, is: &str) -> rusqlite::Result<()> {
    db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)", [key, is]).map(drop)
}
