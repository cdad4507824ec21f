//! `pixfleet run` under test: a folder with a manifest and settings, and the results that its outputs have to hold.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::RowAccessor,
};
use pixfleet_shared::{id::Id, result::ImageResult};
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

use crate::fleet::{KEY, image_url, job, pixfleet};

/// The batch of the manifest.
pub const BATCH: &str = "m";

/// A folder for one run and those that go on with it.
pub struct OneMachine {
    folder: TempDir,
    jobs: usize,
}

impl OneMachine {
    /// Writes a manifest of `jobs` URLs, and settings for the API at `endpoint`.
    pub fn new(jobs: usize, endpoint: &str) -> Self {
        let folder = TempDir::new().unwrap();
        // Whoever kills a run again and again wants every answer all the same: by default, a call that was in flight at two
        // kills is not sent a third time.
        let toml = format!(
            "[worker.retry]\nattempts = 50\n[providers.sandbox]\npreset = \"generic\"\nendpoint = \"{endpoint}\"\n\
             ambiguous = \"resend\"\n"
        );
        std::fs::write(folder.path().join("pixfleet.toml"), toml).unwrap();
        let mut manifest = BufWriter::new(File::create(folder.path().join("m.csv")).unwrap());
        writeln!(manifest, "id,url").unwrap();
        for n in 0..jobs {
            writeln!(manifest, "i{n},{}", image_url(n)).unwrap();
        }
        manifest.flush().unwrap();
        Self { folder, jobs }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The file that keeps the state of its runs.
    pub fn state(&self) -> PathBuf {
        self.path().join(format!("{BATCH}.pixfleet"))
    }

    /// `pixfleet run` of the manifest into `outputs`, at most `concurrency` calls at once.
    pub fn run(&self, outputs: &[&str], concurrency: usize) -> Command {
        let mut command =
            self.command(&["run", "m.csv", "--provider", "sandbox", "--models", "m", "--quiet", "--json"]);
        command
            .args(outputs.iter().flat_map(|output| ["--out", output]))
            .arg("--set")
            .arg(format!("worker.concurrency={concurrency}"));
        command
    }

    /// `pixfleet ARGUMENTS` in the folder, with nothing of this machine's settings.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(pixfleet());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PIXFLEET_")) {
            command.env_remove(name);
        }
        command
            .args(arguments)
            .current_dir(self.path())
            .env("GENERIC_API_KEY", KEY)
            .env("XDG_STATE_HOME", self.path())
            .stdin(Stdio::null());
        command
    }

    /// Compares an output with what it has to hold: each job's result, once.
    pub fn judge(&self, output: &str) -> Judged {
        let mut seen: BTreeMap<Id, usize> = BTreeMap::new();
        for id in ids(&self.path().join(output)) {
            *seen.entry(id).or_default() += 1;
        }
        let (mut lost, mut duplicates) = (0, 0);
        for n in 0..self.jobs {
            match seen.remove(&job(BATCH, n).result_id("m")) {
                Some(times) => duplicates += times - 1,
                None => lost += 1,
            }
        }
        Judged { output: output.to_owned(), lost, duplicates, strangers: seen.len() }
    }
}

/// What is wrong with an output: nothing where all of it is 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The file.
    pub output: String,
    /// Jobs without a result.
    pub lost: usize,
    /// Results beyond a job's first.
    pub duplicates: usize,
    /// Results that no job asked for.
    pub strangers: usize,
}

impl Judged {
    /// Whether each job's result is there once, and nothing else.
    pub fn is_clean(&self) -> bool {
        (self.lost, self.duplicates, self.strangers) == (0, 0, 0)
    }
}

/// The results' ids in an output, as often as they are there. A file that is torn or damaged fails.
fn ids(path: &Path) -> Vec<Id> {
    let shown = path.display();
    match path.extension().and_then(|end| end.to_str()) {
        Some("jsonl") => jsonl(path),
        Some("csv") => csv(path),
        Some("parquet") => parquet(path),
        Some("sqlite") => sqlite(path),
        end => panic!("{shown}: there is no reader for {end:?}"),
    }
}

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

fn jsonl(path: &Path) -> Vec<Id> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{}: the last line is torn", path.display());
    let read = |line: &str| {
        let result: Result<ImageResult, _> = serde_json::from_str(line);
        result.unwrap_or_else(|error| panic!("{}: no result ({error}): {line}", path.display())).id
    };
    text.lines().map(read).collect()
}

/// Rows of one length: a reader that is not flexible refuses a torn one.
fn csv(path: &Path) -> Vec<Id> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    assert_eq!(reader.headers().unwrap().get(0), Some("id"), "{}", path.display());
    let row = |row: csv::Result<csv::StringRecord>| {
        id(row.unwrap_or_else(|error| panic!("{}: {error}", path.display())).get(0).unwrap())
    };
    reader.records().map(row).collect()
}

fn parquet(path: &Path) -> Vec<Id> {
    let reader = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
    let names = reader.metadata().file_metadata().schema().get_fields().iter().map(|field| field.name());
    let place = names.collect::<Vec<_>>().iter().position(|name| *name == "id").expect("a column `id`");
    reader.get_row_iter(None).unwrap().map(|row| id(row.unwrap().get_string(place).unwrap())).collect()
}

fn sqlite(path: &Path) -> Vec<Id> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok", "{}", path.display());
    let mut query = db.prepare("SELECT id FROM results").unwrap();
    let rows = query.query_map([], |row| row.get::<_, String>(0)).unwrap();
    rows.map(|text| id(&text.unwrap())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: usize) -> String {
        format!("{},x", job(BATCH, n).result_id("m"))
    }

    #[test]
    fn what_is_lost_twice_there_or_nobodys_is_counted() {
        let machine = OneMachine::new(3, "http://127.0.0.1:1");
        let rows = ["id,batch".to_owned(), row(0), row(1), row(1), row(1), row(7)];
        std::fs::write(machine.path().join("o.csv"), rows.join("\n")).unwrap();
        let judged = machine.judge("o.csv");
        assert_eq!((judged.lost, judged.duplicates, judged.strangers), (1, 2, 1));
        assert!(!judged.is_clean());
        let rows = ["id,batch".to_owned(), row(2), row(1), row(0)];
        std::fs::write(machine.path().join("o.csv"), rows.join("\n")).unwrap();
        assert!(machine.judge("o.csv").is_clean());
    }

    #[test]
    #[should_panic(expected = "torn")]
    fn a_torn_line_fails() {
        let machine = OneMachine::new(1, "http://127.0.0.1:1");
        std::fs::write(machine.path().join("o.jsonl"), "{\"id\":").unwrap();
        machine.judge("o.jsonl");
    }
}
