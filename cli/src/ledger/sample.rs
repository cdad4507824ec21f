//! Calls for tests.

use jiff::Timestamp;
use pixfleet_shared::{
    id::Id,
    ledger::{Intent, Lost, Unanswered},
};

use super::{moment::day_of, select::Found};

/// Call number `number`, which left so many seconds after midnight of 26 November, and was noted at once.
pub(super) fn found(number: u32) -> Found {
    let at = "2026-11-26T00:00:00Z".parse::<Timestamp>().unwrap();
    let at = at + jiff::SignedDuration::from_secs(number.into());
    let intent = Intent {
        call: Id::of(&[b"call", &number.to_be_bytes()]),
        job: Id::of(&[b"job", &number.to_be_bytes()]),
        batch: "spring".parse().unwrap(),
        image: format!("image-{number}"),
        provider: "restb".into(),
        account: "restb".into(),
        models: vec!["re_logo".into(), "re_roomtype_global_v2".into()],
        turn: 0,
        ambiguous: 0,
        cost_micros: 10_000,
        currency: "USD".into(),
        worker: "worker-1".into(),
        leaves_at: at,
        lasts_ms: 30_000,
    };
    let call = Unanswered { intent, then: Lost::Parked, noted_at: at, resolution: None };
    Found { day: day_of(at), call }
}
