//! The public JSON Schemas of the wire, generated from the Rust types into `docs/schemas/`.

use schemars::{Schema, schema_for};

use crate::{
    batch::BatchEvent,
    job::Job,
    result::{CloudEvent, ImageResult},
};

/// Every public message format: its file name below `docs/schemas/` and its schema.
pub fn all() -> Vec<(&'static str, Schema)> {
    vec![
        ("job.v1.json", schema_for!(Job)),
        ("result.v1.json", schema_for!(CloudEvent<ImageResult>)),
        ("batch.v1.json", schema_for!(CloudEvent<BatchEvent>)),
    ]
}
