//! A result for tests.

use pixfleet_shared::{
    id::Id,
    job::{Image, Job, Source},
    result::{Answer, Call, Failure, ImageResult, Label, Outcome},
};

/// What `model` saw of `image`, in the call of that number, which left in that second.
pub(crate) fn sample(image: &str, model: &str, outcome: Outcome, call: u32) -> ImageResult {
    let source = Source::Url(format!("https://example.com/{image}.jpg"));
    let job = Job::new(
        "b".parse().unwrap(),
        Image { id: image.to_owned(), source },
        "restb".into(),
        vec!["a".into(), "b".into()],
    );
    let answer = Answer {
        labels: vec![Label { label: "kitchen".into(), confidence: Some(0.97) }],
        ..Answer::default()
    };
    let failure = Failure { class: "transient".into(), message: "500 from the provider".into() };
    ImageResult {
        answer: (outcome == Outcome::Ok).then_some(answer),
        failure: (outcome != Outcome::Ok).then_some(failure),
        call: Some(Call {
            id: Id::of(&[b"test.call", &call.to_be_bytes()]),
            sent_at: jiff::Timestamp::from_second(i64::from(call)).unwrap(),
            duration_ms: 100.0,
            status: Some(200),
            attempt: 1,
            throttled: 0,
            cost: 0.1,
            limit_per_s: Some(4.0),
            worker: "w".into(),
        }),
        ..ImageResult::of(&job, model, outcome)
    }
}
