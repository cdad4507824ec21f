//! Results for tests.

use jiff::Timestamp;
use pixfleet_shared::{
    id::Id,
    job::{Image, Job, Source},
    result::{Answer, Call, Failure, ImageResult, Label, Outcome},
};
use serde_json::Value;

/// What `model` saw of image `number`, in a call of its own.
pub(crate) fn sample(number: u32, model: &str, outcome: Outcome) -> ImageResult {
    let source = Source::Url(format!("https://example.com/photos/{number}.jpg"));
    let image = Image { id: format!("image-{number}"), source };
    let mut job =
        Job::new("spring".parse().unwrap(), image, "restb".into(), vec!["room".into(), "style".into()]);
    job.metadata.insert("listing".into(), format!("L-{number}"));
    job.enqueued_at = Timestamp::from_microsecond(1_700_000_000_000_000).unwrap();
    let labels = [("kitchen", Some(0.97)), ("dining_room", None)]
        .map(|(label, confidence)| Label { label: label.into(), confidence });
    let ok = outcome == Outcome::Ok;
    ImageResult {
        answer: ok.then(|| Answer { labels: labels.into(), ..Answer::default() }),
        failure: (!ok)
            .then(|| Failure { class: "rejected".into(), message: "no \"picture\",\nsorry".into() }),
        call: Some(Call {
            id: Id::of(&[b"test.call", &number.to_be_bytes()]),
            sent_at: Timestamp::from_microsecond(1_700_000_001_000_000 + i64::from(number)).unwrap(),
            duration_ms: 1163.5,
            status: Some(200),
            attempt: 1,
            throttled: 2,
            cost: 0.01,
            limit_per_s: Some(4.0),
            worker: "worker-1".into(),
        }),
        completed_at: Timestamp::from_microsecond(1_700_000_002_000_000).unwrap(),
        ..ImageResult::of(&job, model, outcome)
    }
}

/// One model's results of images `from` up to `to`; every fifth image is rejected.
pub(crate) fn samples(from: u32, to: u32) -> Vec<ImageResult> {
    let outcome = |number: u32| if number.is_multiple_of(5) { Outcome::Rejected } else { Outcome::Ok };
    (from..to).map(|number| sample(number, "room", outcome(number))).collect()
}

/// A result with this value and no labels.
pub(crate) fn valued(number: u32, value: Value) -> ImageResult {
    let answer = Answer { value: Some(value), ..Answer::default() };
    ImageResult { answer: Some(answer), ..sample(number, "score", Outcome::Ok) }
}
