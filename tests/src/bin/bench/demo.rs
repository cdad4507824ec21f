//! The tutorial's job, on each engine, under each judge.

use std::process::Command;

use pixfleet_tests::{fleet::pixfleet, servers};
use serde_json::Value;

use crate::Figure;

pub(crate) async fn measure() -> Vec<Figure> {
    let judges = ["fixed", "sliding", "bucket"];
    let engines = ["embedded", "rabbitmq"];
    engines.into_iter().flat_map(|engine| judges.map(|judge| run(engine, judge))).collect()
}

fn run(engine: &str, judge: &str) -> Figure {
    let mut command = Command::new(pixfleet());
    command.args(["demo", "--json", "--judge", judge]);
    if engine == "embedded" {
        command.env_remove("PIXFLEET_RABBITMQ_URL").env_remove("PIXFLEET_REDIS_URL");
    } else {
        command
            .args(["--engine", engine])
            .env("PIXFLEET_RABBITMQ_URL", servers::fresh_rabbitmq_url())
            .env("PIXFLEET_REDIS_URL", servers::redis_url());
    }
    let output = command.output().expect("pixfleet can be run");
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
    let what = format!("demo, engine {engine}, judge {judge}");
    Figure::new(what, measured, "utilisation >= 0.99, no 429, none lost, none twice", met, data)
}
