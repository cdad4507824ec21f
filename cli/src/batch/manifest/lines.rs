//! The lines of a batch: the last word on each image and model.
//!
//! A batch may have millions of them, so they are kept on the disk as they come, and in memory no more than the number of the
//! last one of each id. Once everything has come, the last ones are written out, in their order.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use pixfleet_shared::{
    batch::{BatchName, Tally},
    id::Id,
    result::{ImageResult, Outcome},
};
use serde::{Deserialize, Serialize};

use super::beside;

/// One image and model, and how it ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Line {
    pub(super) image: String,
    pub(super) model: String,
    /// `ok`, `cached`, `rejected`, `dead`, `cancelled` or `ambiguous`.
    pub(super) outcome: Word,
    job: Id,
    /// The call that settled it; the models of one call share it, and its cost.
    call: Option<Id>,
    cost: Option<f64>,
    completed_at: Timestamp,
    pub(super) provider: String,
    /// The result's id.
    pub(super) id: Id,
}

/// How a line counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Word {
    Ok,
    Cached,
    Rejected,
    Dead,
    Cancelled,
    Ambiguous,
}

/// A line as it waits on the disk.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) line: Line,
    pub(super) batch: BatchName,
    pub(super) source: Option<String>,
}

/// How the lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Csv,
    Jsonl,
}

/// The lines as they come.
pub(super) struct Lines {
    spool: BufWriter<File>,
    place: Place,
    last: HashMap<[u8; 16], (u64, Word)>,
    jobs: HashSet<[u8; 16]>,
    count: u64,
}

/// The lines, all of them there.
pub(super) struct Written {
    spool: File,
    _place: Place,
    last: HashMap<[u8; 16], (u64, Word)>,
    jobs: HashSet<[u8; 16]>,
}

/// A file that goes with whoever made it.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        // Nobody needs it, and nobody can be told.
        let _ = fs::remove_file(&self.0);
    }
}

impl Format {
    /// What the end of a name says.
    ///
    /// # Errors
    /// The names that there are.
    pub(super) fn of(path: &Path) -> Result<Self, String> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("csv") => Ok(Self::Csv),
            Some("jsonl" | "ndjson") => Ok(Self::Jsonl),
            _ => Err(format!("{} says no format: give a name that ends in .csv or .jsonl", path.display())),
        }
    }
}

/// Refuses a file that is there: a manifest is never overwritten.
///
/// # Errors
/// When it holds something.
pub(super) fn refuse_what_holds_something(out: &Path) -> anyhow::Result<()> {
    if out.metadata().is_ok_and(|file| file.len() > 0) {
        bail!("{} holds something: give --out another name, or remove it", out.display());
    }
    Ok(())
}

impl Word {
    fn of(result: &ImageResult) -> Self {
        match result.outcome {
            Outcome::Ok if result.cached => Self::Cached,
            Outcome::Ok => Self::Ok,
            Outcome::Rejected => Self::Rejected,
            Outcome::Dead => Self::Dead,
            Outcome::Cancelled => Self::Cancelled,
            Outcome::Ambiguous => Self::Ambiguous,
        }
    }

    fn count(self, tally: &mut Tally) -> &mut u64 {
        match self {
            Self::Ok => &mut tally.ok,
            Self::Cached => &mut tally.cached,
            Self::Rejected => &mut tally.rejected,
            Self::Dead => &mut tally.dead,
            Self::Cancelled => &mut tally.cancelled,
            Self::Ambiguous => &mut tally.ambiguous,
        }
    }
}

impl Lines {
    /// No lines yet. They wait beside `out`, where there is room for them.
    ///
    /// # Errors
    /// When nothing can be written there.
    pub(super) fn begin(out: Option<&Path>) -> anyhow::Result<Self> {
        let path = beside(out, ".spool");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.with_context(|| {
            format!("can't write {}: give --out a folder that you may write", path.display())
        })?;
        let spool = BufWriter::with_capacity(256 * 1024, file);
        Ok(Self { spool, place: Place(path), last: HashMap::new(), jobs: HashSet::new(), count: 0 })
    }

    /// Adds a result: the last word on its image and model, whatever was said before.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn add(&mut self, result: &ImageResult) -> anyhow::Result<()> {
        let word = Word::of(result);
        let line = Line {
            image: result.image.clone(),
            model: result.model.clone(),
            outcome: word,
            job: result.job,
            call: result.call.as_ref().map(|call| call.id),
            cost: result.call.as_ref().map(|call| call.cost),
            completed_at: result.completed_at,
            provider: result.provider.clone(),
            id: result.id,
        };
        let kept = Kept { line, batch: result.batch.clone(), source: result.source.clone() };
        serde_json::to_writer(&mut self.spool, &kept)?;
        self.spool.write_all(b"\n").with_context(|| format!("can't write {}", self.place.0.display()))?;
        self.last.insert(result.id.to_bytes(), (self.count, word));
        self.jobs.insert(result.job.to_bytes());
        self.count += 1;
        Ok(())
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.last.is_empty()
    }

    /// Different images and models so far.
    pub(super) fn len(&self) -> u64 {
        self.last.len() as u64
    }

    /// Nothing more comes.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn written(self) -> anyhow::Result<Written> {
        let spool = self.spool.into_inner().context("the lines can't be written to the disk")?;
        Ok(Written { spool, _place: self.place, last: self.last, jobs: self.jobs })
    }
}

impl Written {
    /// Different images and models.
    pub(super) fn len(&self) -> u64 {
        self.last.len() as u64
    }

    /// What they count as.
    pub(super) fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for (_, word) in self.last.values() {
            *word.count(&mut tally) += 1;
        }
        tally
    }

    /// Whether a result of this id is there.
    pub(super) fn has(&self, id: Id) -> bool {
        self.last.contains_key(&id.to_bytes())
    }

    /// Whether a result of this job is there.
    pub(super) fn has_job(&self, id: Id) -> bool {
        self.jobs.contains(&id.to_bytes())
    }

    /// The last word on each image and model, in the order in which they came.
    ///
    /// # Errors
    /// What the disk says, or `each`.
    pub(super) fn each(
        &mut self,
        mut each: impl FnMut(&Self, Kept) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.spool.seek(SeekFrom::Start(0))?;
        let reader = BufReader::with_capacity(256 * 1024, self.spool.try_clone()?);
        for (number, text) in reader.lines().enumerate() {
            let kept: Kept =
                serde_json::from_str(&text?).context("the lines on the disk were changed meanwhile")?;
            let last = self.last.get(&kept.line.id.to_bytes()).map(|(last, _)| *last);
            if last == Some(number as u64) {
                each(self, kept)?;
            }
        }
        Ok(())
    }

    /// Writes the lines to `out`, which gets its name once all of them are there.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn finish(&mut self, out: &Path) -> anyhow::Result<()> {
        let partial = Place(beside(Some(out), ".partial"));
        let can_not = || format!("can't write {}: give --out a folder that you may write", out.display());
        let file = File::create(&partial.0).with_context(can_not)?;
        match Format::of(out) {
            Ok(Format::Csv) => {
                let mut writer = csv::Writer::from_writer(file);
                if self.last.is_empty() {
                    writer.write_record(HEADER)?;
                }
                self.each(|_, kept| Ok(writer.serialize(kept.line)?))?;
                writer.flush().with_context(can_not)?;
                writer.get_ref().sync_all().with_context(can_not)?;
            }
            _ => {
                let mut writer = BufWriter::new(file);
                self.each(|_, kept| {
                    serde_json::to_writer(&mut writer, &kept.line)?;
                    Ok(writer.write_all(b"\n")?)
                })?;
                writer.flush().with_context(can_not)?;
                writer.get_ref().sync_all().with_context(can_not)?;
            }
        }
        fs::rename(&partial.0, out).with_context(can_not)
    }
}

/// The columns of a CSV without lines; with some they come from [`Line`], which a test compares.
const HEADER: [&str; 9] =
    ["image", "model", "outcome", "job", "call", "cost", "completed_at", "provider", "id"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::sample;

    fn lines(results: &[ImageResult]) -> Written {
        let mut lines = Lines::begin(None).unwrap();
        results.iter().for_each(|result| lines.add(result).unwrap());
        lines.written().unwrap()
    }

    #[test]
    fn the_last_word_on_an_image_and_model_counts_whatever_was_said_before() {
        let results = [
            sample("1", "m", Outcome::Dead, 1),
            sample("2", "m", Outcome::Ok, 2),
            sample("1", "m", Outcome::Ok, 3),
            // Replayed, and given up again: what was said last counts, be it worse.
            sample("3", "m", Outcome::Rejected, 4),
            sample("3", "m", Outcome::Dead, 5),
            ImageResult { cached: true, call: None, ..sample("4", "m", Outcome::Ok, 6) },
        ];
        let mut lines = lines(&results);
        assert_eq!(lines.tally(), Tally { ok: 2, cached: 1, dead: 1, ..Tally::default() });
        let folder = tempfile::TempDir::new().unwrap();
        let out = folder.path().join("m.csv");
        lines.finish(&out).unwrap();
        let text = fs::read_to_string(&out).unwrap();
        let ends: Vec<String> =
            text.lines().skip(1).map(|row| row.split(',').take(3).collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(ends, ["2 m ok", "1 m ok", "3 m dead", "4 m cached"]);
        assert_eq!(text.lines().next().unwrap(), HEADER.join(","));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
        refuse_what_holds_something(&out).unwrap_err();
    }

    #[test]
    fn a_batch_without_results_has_a_header_and_no_line() {
        let folder = tempfile::TempDir::new().unwrap();
        let out = folder.path().join("m.csv");
        lines(&[]).finish(&out).unwrap();
        assert_eq!(fs::read_to_string(&out).unwrap(), HEADER.join(",") + "\n");
    }
}
