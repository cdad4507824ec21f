//! A result as rows of its three tables.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pixfleet_shared::{
    id::Id,
    result::{Call, ImageResult},
};
use rusqlite::{Connection, Statement, params, types::Value as Stored};
use serde::Serialize;
use serde_json::Value;

const IMAGE: &str = "
    INSERT INTO images (batch, image, source, metadata) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT DO UPDATE SET metadata = excluded.metadata WHERE metadata <> excluded.metadata";

const CALL: &str = "
    INSERT OR REPLACE INTO calls
    (id, batch, provider, sent_at, duration_ms, status, attempt, throttled, cost, limit_per_s, worker)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";

/// A better outcome replaces a worse one, and never the other way round.
const RESULT: &str = "
    INSERT INTO results
    (id, job, batch, image, source, provider, model, outcome, label, confidence, labels, value,
     failure_class, failure_message, call, enqueued_at, completed_at, cached)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)
    ON CONFLICT (id) DO UPDATE SET
        job = excluded.job, outcome = excluded.outcome, label = excluded.label, confidence = excluded.confidence,
        labels = excluded.labels, value = excluded.value, failure_class = excluded.failure_class,
        failure_message = excluded.failure_message, call = excluded.call, enqueued_at = excluded.enqueued_at,
        completed_at = excluded.completed_at, cached = excluded.cached
    WHERE CASE excluded.outcome WHEN 'ok' THEN 0 WHEN 'rejected' THEN 1 ELSE 2 END
       <= CASE outcome WHEN 'ok' THEN 0 WHEN 'rejected' THEN 1 ELSE 2 END";

/// What was written last: the models of one call come together, so their image and their call need be written once.
#[derive(Default)]
pub(super) struct Last {
    image: Option<(Id, BTreeMap<String, String>)>,
    call: Option<Call>,
}

impl Last {
    /// Adds results to the open transaction.
    pub(super) fn add(&mut self, db: &Connection, results: &[ImageResult]) -> rusqlite::Result<()> {
        let mut images = db.prepare_cached(IMAGE)?;
        let mut calls = db.prepare_cached(CALL)?;
        let mut rows = db.prepare_cached(RESULT)?;
        for result in results {
            if self.image.as_ref().is_none_or(|(job, of)| (*job, of) != (result.job, &result.metadata)) {
                image(&mut images, result)?;
                self.image = Some((result.job, result.metadata.clone()));
            }
            if let Some(made) = result.call.as_ref().filter(|made| self.call.as_ref() != Some(made)) {
                call(&mut calls, result, made)?;
                self.call = Some(made.clone());
            }
            row(&mut rows, result)?;
        }
        Ok(())
    }
}

fn image(images: &mut Statement, result: &ImageResult) -> rusqlite::Result<usize> {
    images.execute(params![result.batch.as_str(), result.image, source(result), json(&result.metadata)?])
}

fn call(calls: &mut Statement, result: &ImageResult, call: &Call) -> rusqlite::Result<usize> {
    calls.execute(params![
        call.id.to_string(),
        result.batch.as_str(),
        result.provider,
        moment(call.sent_at),
        call.duration_ms,
        call.status,
        call.attempt,
        call.throttled,
        call.cost,
        call.limit_per_s,
        call.worker,
    ])
}

fn row(rows: &mut Statement, result: &ImageResult) -> rusqlite::Result<usize> {
    let answer = result.answer.as_ref();
    let labels = answer.map_or(&[][..], |answer| &answer.labels);
    let failure = result.failure.as_ref();
    rows.execute(params![
        result.id.to_string(),
        result.job.to_string(),
        result.batch.as_str(),
        result.image,
        source(result),
        result.provider,
        result.model,
        result.outcome.as_str(),
        labels.first().map(|label| &label.label),
        labels.first().and_then(|label| label.confidence),
        json(&labels)?,
        answer.and_then(|answer| answer.value.as_ref()).map(stored),
        failure.map(|failure| &failure.class),
        failure.map(|failure| &failure.message),
        result.call.as_ref().map(|call| call.id.to_string()),
        moment(result.enqueued_at),
        moment(result.completed_at),
        result.cached,
    ])
}

fn source(result: &ImageResult) -> &str {
    result.source.as_deref().unwrap_or_default()
}

/// A value that is not a label, as SQLite stores it best.
fn stored(value: &Value) -> Stored {
    match value {
        Value::String(text) => Stored::Text(text.clone()),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Stored::Integer(integer),
            (None, Some(real)) if !number.is_u64() => Stored::Real(real),
            _ => Stored::Text(number.to_string()),
        },
        other => Stored::Text(other.to_string()),
    }
}

/// Always the same width, so that moments sort as text.
fn moment(at: Timestamp) -> String {
    format!("{at:.6}")
}

fn json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}
