//! The settings of an enqueue: the section `[enqueue]`.

use std::{num::NonZeroU32, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How manifests are enqueued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Jobs handed to the queue at once, and recorded together when it confirms them. Default: 256.
    pub chunk_jobs: NonZeroU32,
    /// Such chunks on their way at once; more fill a longer way to the broker. Default: 8.
    pub chunks_in_flight: NonZeroU32,
    /// Seconds for which a chunk is tried again while the broker is away, before the enqueue gives up (and can be
    /// run again). Default: 300.
    pub patience_s: u32,
    /// The most models of one call, where that is fewer than the provider allows. Default: not set.
    pub models_per_call: Option<NonZeroU32>,
    /// The folder of the records of what was confirmed. Default: not set, which is
    /// `$XDG_STATE_HOME/pixfleet/enqueue`, or `~/.local/state/pixfleet/enqueue`.
    pub record_folder: Option<PathBuf>,
}

const fn at_least_one(number: u32) -> NonZeroU32 {
    match NonZeroU32::new(number) {
        Some(number) => number,
        None => NonZeroU32::MIN,
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            chunk_jobs: at_least_one(256),
            chunks_in_flight: at_least_one(8),
            patience_s: 300,
            models_per_call: None,
            record_folder: None,
        }
    }
}
