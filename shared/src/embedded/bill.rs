//! Every statement about what was answered and what was never: bill lines and unanswered calls, by the day (UTC). Each
//! runs within a transaction of its caller's.

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::json::{json, of_json};
use crate::{
    id::Id,
    ledger::{BillLine, Intent, Lost, Resolution, Unanswered},
};

/// The model of the line that counts calls, whatever their models.
const EVERY_MODEL: &str = "*";

/// The day of a moment, in UTC.
fn day(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::UTC).date()
}

/// Counts a call that was answered, on the day on which it left.
pub(super) fn count(db: &Connection, intent: &Intent, charged: bool) -> rusqlite::Result<()> {
    let mut line = db.prepare_cached(
        "INSERT INTO bill (day, provider, account, model, answered, charged, cost_micros, currency)
         VALUES (?1, ?2, ?3, ?4, 1, ?5, ?6, ?7)
         ON CONFLICT (day, provider, account, model) DO UPDATE SET
           answered = answered + 1, charged = charged + excluded.charged,
           cost_micros = cost_micros + excluded.cost_micros, currency = excluded.currency",
    )?;
    let Intent { provider, account, models, cost_micros, currency, .. } = intent;
    let (day, cost) = (day(intent.leaves_at).to_string(), if charged { *cost_micros } else { 0 });
    let mut add = |model: &str, cost: u64| {
        line.execute(params![day, provider, account, model, charged, cost as i64, currency]).map(drop)
    };
    add(EVERY_MODEL, cost)?;
    let among = models.len().max(1) as u64;
    for (place, model) in models.iter().enumerate() {
        // The models' parts make up the whole, to the millionth.
        add(model, cost / among + u64::from((place as u64) < cost % among))?;
    }
    Ok(())
}

/// Lists a call that was never answered, once.
pub(super) fn note(db: &Connection, intent: &Intent, then: Lost) -> rusqlite::Result<()> {
    let now = Timestamp::now();
    db.prepare_cached(
        "INSERT INTO unanswered (call, day, noted_us, decided, intent) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (call) DO UPDATE SET decided = excluded.decided",
    )?
    .execute(params![
        intent.call.to_bytes(),
        day(now).to_string(),
        now.as_microsecond(),
        word(then),
        json(intent)?
    ])
    .map(drop)
}

fn word(then: Lost) -> &'static str {
    match then {
        Lost::Resent => "resent",
        Lost::Parked => "parked",
    }
}

/// The days of which something is kept, the oldest first.
pub(super) fn days(db: &Connection) -> rusqlite::Result<Vec<Date>> {
    let mut query = db.prepare_cached("SELECT day FROM bill UNION SELECT day FROM unanswered ORDER BY 1")?;
    let mut days = Vec::new();
    for day in query.query_map([], |row| row.get::<_, String>(0))? {
        days.extend(day?.parse::<Date>());
    }
    Ok(days)
}

/// The calls that were noted as never answered on `day`, in that order.
pub(super) fn unanswered(db: &Connection, day: Date) -> rusqlite::Result<Vec<Unanswered>> {
    let mut query = db.prepare_cached(
        "SELECT intent, decided, noted_us, resolution FROM unanswered WHERE day = ?1 ORDER BY noted_us, call",
    )?;
    query.query_map([day.to_string()], listed)?.collect()
}

fn listed(row: &Row<'_>) -> rusqlite::Result<Unanswered> {
    let resolution = row.get_ref(3)?.as_bytes_or_null()?;
    Ok(Unanswered {
        intent: of_json(row.get_ref(0)?.as_bytes()?)?,
        then: if row.get_ref(1)?.as_str()? == word(Lost::Parked) { Lost::Parked } else { Lost::Resent },
        noted_at: Timestamp::from_microsecond(row.get(2)?).unwrap_or_default(),
        resolution: resolution.map(of_json).transpose()?,
    })
}

/// Keeps what somebody found out about such a call; whether it is listed on `day`.
pub(super) fn resolve(
    db: &Connection,
    day: Date,
    call: Id,
    resolution: &Resolution,
) -> rusqlite::Result<bool> {
    let kept = db
        .prepare_cached("UPDATE unanswered SET resolution = ?3 WHERE day = ?1 AND call = ?2 RETURNING 1")?
        .query_row(params![day.to_string(), call.to_bytes(), json(resolution)?], |_| Ok(()))
        .optional()?;
    Ok(kept.is_some())
}

/// What was answered on `day`, by account and model.
pub(super) fn lines(db: &Connection, day: Date) -> rusqlite::Result<Vec<BillLine>> {
    let mut query = db.prepare_cached(
        "SELECT provider, account, model, answered, charged, cost_micros, currency FROM bill
         WHERE day = ?1 ORDER BY provider, account, model",
    )?;
    let lines = query.query_map([day.to_string()], |row| {
        let count = |column| row.get::<_, i64>(column).map(i64::unsigned_abs);
        Ok(BillLine {
            day,
            provider: row.get(0)?,
            account: row.get(1)?,
            model: row.get(2)?,
            answered: count(3)?,
            charged: count(4)?,
            cost_micros: count(5)?,
            currency: row.get(6)?,
        })
    })?;
    lines.collect()
}
