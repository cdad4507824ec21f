//! Names what is missing of a batch, as far as this machine knows: by the rows of its manifest, by the models of images of
//! which something is there, and by the record of what the queue confirmed.

use std::{collections::HashSet, path::PathBuf};

use anyhow::Context as _;
use pixfleet_producer::{
    manifest::{Fault, Manifest, Reading},
    record::Confirmed,
};
use pixfleet_shared::{
    batch::BatchName,
    id::Id,
    job::{Image, Job, Source},
};
use serde::Serialize;

use super::lines::{Kept, Line, Written};

/// Names that are kept: what is missing beyond them is counted alone.
const MOST: usize = 10_000;

/// Something that is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Missing {
    /// One image and model.
    Pair { image: String, model: String },
    /// A job of which nothing is there; its image is not known without its manifest.
    Job { job: Id },
}

/// What was found, and why not more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) missing: Vec<Missing>,
    /// How to know more.
    pub(super) notes: Vec<String>,
}

/// Where to look.
pub(super) struct Search {
    pub(super) batch: BatchName,
    /// The manifest that was enqueued.
    pub(super) images: Vec<String>,
    /// Where the record of the enqueue may be.
    pub(super) record: Option<PathBuf>,
    /// Whether the batch is in a state file, where files travel by their path.
    pub(super) state: bool,
}

impl Search {
    /// Names what is missing, of which there is `count`.
    ///
    /// # Errors
    /// When the manifest can't be read. A record that can't be read is a note.
    pub(super) fn look(&self, lines: &mut Written, count: u64) -> anyhow::Result<Named> {
        let mut named = Named::default();
        let record = self.record(&mut named);
        let seen = models_seen(lines)?;
        if !self.images.is_empty() {
            let asked = record.map_or(seen, |record| {
                record.models.into_iter().map(|model| (record.provider.clone(), model)).collect()
            });
            self.by_rows(lines, &asked, &mut named)?;
            return Ok(named);
        }
        let told = by_images(lines, record.as_ref(), count, &mut named)?;
        let whole = match &record {
            Some(record) => by_record(lines, record, &told, &mut named)?,
            None => false,
        };
        if !whole || (named.missing.len() as u64) < count {
            let way = format!(
                "--images MANIFEST names all that is missing: `pixfleet batch manifest {} --images images.csv`",
                self.batch
            );
            named.notes.push(way);
        }
        Ok(named)
    }

    fn record(&self, named: &mut Named) -> Option<Confirmed> {
        let path = self.record.as_ref()?;
        match Confirmed::of(path, &self.batch) {
            Ok(Some(record)) => Some(record),
            Ok(None) => {
                named.notes.push("the record of its enqueue is not on this machine".to_owned());
                None
            }
            Err(error) => {
                named.notes.push(format!("the record of its enqueue can't be read: {error}"));
                None
            }
        }
    }

    /// Exactly: every row and model that has no result.
    fn by_rows(&self, lines: &Written, asked: &[(String, String)], named: &mut Named) -> anyhow::Result<()> {
        let reading = Reading { by_path: self.state, ..Reading::default() };
        let rows = Manifest::open(&self.images, reading).context("--images")?;
        let mut told = HashSet::new();
        for row in rows {
            let row = match row {
                Ok(row) => row,
                Err(Fault::Row(_)) => continue,
                Err(Fault::Broken(broken)) => return Err(broken.into()),
            };
            for (provider, model) in asked {
                let id = result_id(&self.batch, &row.image, provider, model);
                if !lines.has(id) && told.insert(id.to_bytes()) && named.missing.len() < MOST {
                    named.missing.push(Missing::Pair { image: row.image.id.clone(), model: model.clone() });
                }
            }
        }
        Ok(())
    }
}

/// The images of which some models are there, and others not. Where nobody says what was asked, the models of the other images
/// stand for it, unless more would be missing than is. Answers the jobs that would have brought them.
fn by_images(
    lines: &mut Written,
    record: Option<&Confirmed>,
    count: u64,
    named: &mut Named,
) -> anyhow::Result<HashSet<Id>> {
    let models: Vec<String> = match record {
        Some(record) => record.models.clone(),
        None => {
            let mut models: Vec<String> = models_seen(lines)?.into_iter().map(|(_, model)| model).collect();
            models.dedup();
            models
        }
    };
    let a_call = record.map_or(1, |record| record.models_per_call);
    let (mut told, mut missing, mut jobs) = (HashSet::new(), Vec::new(), HashSet::new());
    lines.each(|lines, kept| {
        let Some((batch, image)) = image_of(&kept) else {
            return Ok(());
        };
        for asked in models.chunks(a_call) {
            for model in asked {
                let id = result_id(&batch, &image, &kept.line.provider, model);
                if !lines.has(id) && told.insert(id.to_bytes()) && missing.len() < MOST {
                    missing.push(Missing::Pair { image: image.id.clone(), model: model.clone() });
                    let provider = kept.line.provider.clone();
                    jobs.insert(Job::new(batch.clone(), image.clone(), provider, asked.to_vec()).id);
                }
            }
        }
        Ok(())
    })?;
    if record.is_some() || missing.len() as u64 <= count {
        named.missing.extend(missing);
    }
    Ok(jobs)
}

/// The jobs that the queue confirmed, and of which nothing is there or told; answers whether the record could tell.
fn by_record(
    lines: &Written,
    record: &Confirmed,
    told: &HashSet<Id>,
    named: &mut Named,
) -> anyhow::Result<bool> {
    let missing = &mut named.missing;
    Ok(record.jobs(|job| {
        if !lines.has_job(job) && !told.contains(&job) && missing.len() < MOST {
            missing.push(Missing::Job { job });
        }
    })?)
}

/// The providers and models of the lines.
fn models_seen(lines: &mut Written) -> anyhow::Result<Vec<(String, String)>> {
    let mut seen = std::collections::BTreeSet::new();
    lines.each(|_, Kept { line: Line { provider, model, .. }, .. }| {
        if !seen.contains(&(provider.clone(), model.clone())) {
            seen.insert((provider, model));
        }
        Ok(())
    })?;
    Ok(seen.into_iter().collect())
}

/// The image of a line, told by the line's own id; not one whose bytes travelled in the job.
fn image_of(kept: &Kept) -> Option<(BatchName, Image)> {
    let (line, place) = (&kept.line, kept.source.as_ref()?);
    let sources = [Source::Url(place.clone()), Source::Object(place.clone())];
    sources
        .into_iter()
        .map(|source| Image { id: line.image.clone(), source })
        .find(|image| result_id(&kept.batch, image, &line.provider, &line.model) == line.id)
        .map(|image| (kept.batch.clone(), image))
}

fn result_id(batch: &BatchName, image: &Image, provider: &str, model: &str) -> Id {
    Job::new(batch.clone(), image.clone(), provider.to_owned(), Vec::new()).result_id(model)
}
