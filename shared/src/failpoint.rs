//! Places at which a test may end the process, as `kill -9` would: without a goodbye, between two steps of a job.
//!
//! Only with the feature `failpoints`; without it nothing is left of them. The variable `FAILPOINTS` says which, and when:
//! `after_answer=return` at once, `after_answer=50*off->return` the 51st time (the grammar of the crate `fail`).

/// The places in the worker, in the order in which a job passes them.
pub const OF_A_JOB: [&str; 11] = [
    "after_receive",
    "after_take_up",
    "after_prepare",
    "after_intent",
    "before_send",
    "after_answer",
    "after_ledger_told",
    "before_confirm",
    "after_publish",
    "after_ack",
    "before_settled_mark",
];

/// The places in the producer, in the order in which a chunk of jobs passes them; `before_confirm` is one of it, too.
pub const OF_AN_ENQUEUE: [&str; 3] = ["before_enqueue", "before_record", "after_record"];

/// The process is at this place.
#[cfg(feature = "failpoints")]
pub fn reached(place: &str) {
    use std::sync::Once;

    static ARMED: Once = Once::new();
    ARMED.call_once(|| {
        for (name, actions) in fail_variable() {
            if let Err(error) = fail::cfg(&*name, &actions) {
                tracing::error!(name, actions, error, "this failpoint can't be set");
            }
        }
    });
    // No unwinding, and nothing that could still be said.
    fail::eval(place, |_| -> () { std::process::abort() });
}

#[cfg(feature = "failpoints")]
fn fail_variable() -> Vec<(String, String)> {
    let variable = std::env::var("FAILPOINTS").unwrap_or_default();
    let pairs = variable.split(';').filter_map(|pair| pair.trim().split_once('='));
    pairs.map(|(name, actions)| (name.to_owned(), actions.to_owned())).collect()
}

/// The process is at this place.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn reached(_place: &str) {}

/// A job of this image is taken up: one of an image `poison...` ends the process at the place `poison`.
pub fn taken_up(image: &str) {
    if cfg!(feature = "failpoints") && image.starts_with("poison") {
        reached("poison");
    }
}
