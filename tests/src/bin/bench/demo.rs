//! The tutorial's job, under each judge.

use pixfleet_tests::{fleet::pixfleet, servers};
use serde_json::Value;

use crate::Figure;

pub(crate) async fn measure() -> Vec<Figure> {
    ["fixed", "sliding", "bucket"].map(run).into()
}

fn run(judge: &str) -> Figure {
    let output = std::process::Command::new(pixfleet())
        .args(["demo", "--json", "--judge", judge])
        .env("PIXFLEET_RABBITMQ_URL", servers::fresh_rabbitmq_url())
        .env("PIXFLEET_REDIS_URL", servers::redis_url())
        .output()
        .expect("pixfleet can be run");
    let data: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("no figures: {}", String::from_utf8_lossy(&output.stderr)));
    let number = |key: &str| data[key].as_f64().unwrap_or(f64::NAN);
    let measured = format!(
        "{} calls in {:.2} s, utilisation {:.3}, {} 429s, {} lost, {} duplicates",
        number("calls"),
        number("seconds"),
        number("utilisation"),
        number("throttled_429"),
        number("lost"),
        number("duplicates"),
    );
    let clean = ["throttled_429", "lost", "duplicates"].iter().all(|key| number(key) == 0.0);
    let met = number("utilisation") >= 0.99 && clean;
    Figure::new(format!("demo, judge {judge}"), measured, "utilisation >= 0.99, no 429, none lost", met, data)
}
