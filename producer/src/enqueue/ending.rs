//! Why an enqueue ended early, and how to go on.

use std::io;

use pixfleet_shared::{batch::BatchName, queue::QueueError};

use super::Summary;
use crate::{
    manifest::{BadRow, Broken},
    record::RecordError,
};

/// An enqueue that ended before its manifest did. What was confirmed is on record.
#[derive(Debug, thiserror::Error)]
#[error("{why}\n{}", self.way_on())]
pub struct Stopped {
    /// Why.
    #[source]
    pub why: Why,
    /// What was done until then.
    pub summary: Summary,
}

/// Why an enqueue ended early; the variants are the caller's next moves.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// Mend the row, or leave it out.
    #[error(
        "{0}\nstopped at this row: mend it and run the same command again, or leave bad rows out with --bad-rows skip or \
         --bad-rows FILE"
    )]
    BadRow(BadRow),
    /// Give another batch, or the manifest that it was begun with.
    #[error(
        "the manifest is not the one that batch `{batch}` was begun with: none of its first {looked_at} jobs is \
         known there. Give another --batch (or --state) for a new run; `pixfleet enqueue` adds images to a batch"
    )]
    AnotherManifest {
        /// The batch.
        batch: BatchName,
        /// Jobs that were compared.
        looked_at: usize,
    },
    /// Mend the input.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// Nothing: it was asked to stop.
    #[error("stopped on request")]
    Interrupted,
    /// Mend the broker, or wait for it.
    #[error("the queue was away for {seconds} s: {cause}")]
    Away {
        /// How long it was waited for.
        seconds: u64,
        /// What it said last.
        cause: String,
    },
    /// Mend the topology or the message.
    #[error(transparent)]
    Refused(QueueError),
    /// Mend the record's file or its disk.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Choose another file for bad rows, or make room.
    #[error("bad rows can't be written to {file}: {cause}: name a file in a folder that you may write")]
    BadRowsFile {
        /// The file.
        file: String,
        /// What the disk said.
        cause: io::Error,
    },
    /// Report it: the reader panicked, which the log shows.
    #[error("the reader of the manifest ended in the middle; see the log above")]
    NoReader,
}

impl Stopped {
    /// What is done, and how to do the rest.
    fn way_on(&self) -> String {
        let done = self.summary.tally.enqueued + self.summary.tally.already;
        let (jobs, are) = if done == 1 { ("job", "is") } else { ("jobs", "are") };
        format!(
            "{done} {jobs} of batch `{}` {are} confirmed and on record; run the same command again to enqueue the rest",
            self.summary.batch
        )
    }
}
