//! What a record says of a batch to whoever looks for what is missing. It is read as it is, and left so.

use std::path::Path;

use pixfleet_shared::{batch::BatchName, id::Id};
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::{RecordError, home, trouble::explain};

/// A batch on record.
#[derive(Debug)]
pub struct Confirmed {
    /// The provider that was asked.
    pub provider: String,
    /// What each image was asked.
    pub models: Vec<String>,
    /// The most models of one job.
    pub models_per_call: usize,
    db: Connection,
    /// Whether every id of the file is one of this batch: a state file may hold several batches.
    alone: bool,
}

impl Confirmed {
    /// What the record at `path`, or the state file there, has of the batch; none where it has nothing of it.
    ///
    /// # Errors
    /// See [`RecordError`]: an enqueue that is at work keeps its record to itself.
    pub fn of(path: &Path, batch: &BatchName) -> Result<Option<Self>, RecordError> {
        if !path.exists() {
            return Ok(None);
        }
        let read = || -> rusqlite::Result<Option<Self>> {
            let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            let tables = "SELECT count(*) FROM sqlite_schema WHERE name IN ('meta', 'confirmed', 'tail')";
            if db.query_row(tables, [], |row| row.get::<_, i64>(0))? != 3 {
                return Ok(None);
            }
            let scope = home::scope(batch.as_str());
            let kept = |key: &str| -> rusqlite::Result<Option<String>> {
                // A file of its own has no scope, but says whose it is.
                let own = "SELECT value FROM meta WHERE key = ?1 OR (key = ?2 AND EXISTS
                           (SELECT 1 FROM meta WHERE key = 'batch' AND value = ?3))";
                db.query_row(own, [&format!("{scope}{key}"), key, batch.as_str()], |row| row.get(0))
                    .optional()
            };
            let models_per_call = kept("models a call")?.and_then(|most| most.parse().ok());
            let (Some(provider), Some(models)) = (kept("provider")?, kept("models")?) else {
                return Ok(None);
            };
            let batches = "SELECT count(*) FROM meta WHERE key = 'batch' OR key LIKE '%/batch'";
            let alone = db.query_row(batches, [], |row| row.get::<_, i64>(0))? == 1;
            let models: Vec<String> = models.split(',').map(str::to_owned).collect();
            let models_per_call = models_per_call.unwrap_or(models.len()).max(1);
            Ok(Some(Self { provider, models, models_per_call, db, alone }))
        };
        read().map_err(|error| explain(path, error))
    }

    /// Calls `each` with the id of every job that the queue confirmed; answers whether the record can tell.
    ///
    /// # Errors
    /// What SQLite said.
    pub fn jobs(&self, mut each: impl FnMut(Id)) -> Result<bool, RecordError> {
        if !self.alone {
            return Ok(false);
        }
        let path = self.db.path().unwrap_or_default().to_owned();
        let read = || -> rusqlite::Result<()> {
            let mut query = self.db.prepare("SELECT id FROM confirmed UNION SELECT id FROM tail")?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                each(Id::from_bytes(row.get(0)?));
            }
            Ok(())
        };
        let mut read = read;
        read().map_err(|error| explain(Path::new(&path), error))?;
        Ok(true)
    }
}
