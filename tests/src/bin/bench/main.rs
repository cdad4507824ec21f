//! The figures of the README, measured anew: `tests/bench` builds the release and runs this, on private servers where a
//! part needs them.
//!
//! Machines differ and are shared: where it can be, a figure is a ratio of two things measured in one run.

#![allow(clippy::print_stdout, reason = "the figures are this program's data")]
#![allow(clippy::unwrap_used, reason = "a figure that cannot be measured fails the run")]

mod arrivals;
mod crash;
mod demo;
mod enqueueing;
mod failover;
mod fairness;
mod first_call;
mod judges;
mod kills;
mod ledger;
mod limited;
mod limiter;
mod measured;
mod memory;
mod running;
mod waiting;

use serde_json::{Value, json};

/// One measured line: what, the figure in words, the demand, and whether it is met.
pub(crate) struct Figure {
    what: String,
    measured: String,
    demand: &'static str,
    met: bool,
    data: Value,
}

impl Figure {
    pub(crate) fn new(
        what: impl Into<String>,
        measured: String,
        demand: &'static str,
        met: bool,
        data: Value,
    ) -> Self {
        Self { what: what.into(), measured, demand, met, data }
    }
}

const PARTS: [&str; 16] = [
    "run", "start", "resume", "crash", "wait", "arrive", "demo", "limit", "limiter", "failover", "fairness",
    "enqueue", "memory", "kill", "ledger", "judges",
];

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let as_json = arguments.iter().any(|argument| argument == "--json");
    let named: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|word| !word.starts_with("--")).collect();
    if let Some(unknown) = named.iter().find(|part| !PARTS.contains(part)) {
        eprintln!("there is no part `{unknown}`: give some of {}, or none for all", PARTS.join(", "));
        std::process::exit(2);
    }
    let mut met = true;
    for part in PARTS.iter().filter(|part| named.is_empty() || named.contains(part)) {
        let figures = match *part {
            "run" => running::measure().await,
            "start" => first_call::start().await,
            "resume" => first_call::resume().await,
            "crash" => crash::measure().await,
            "wait" => waiting::measure().await,
            "arrive" => arrivals::measure().await,
            "demo" => demo::measure().await,
            "limit" => limited::measure().await,
            "limiter" => limiter::measure().await,
            "failover" => failover::measure().await,
            "fairness" => fairness::measure().await,
            "enqueue" => enqueueing::measure().await,
            "memory" => memory::measure().await,
            "ledger" => ledger::measure().await,
            "judges" => judges::measure().await,
            _ => kills::measure().await,
        };
        for figure in figures {
            met &= figure.met;
            print(&figure, as_json);
        }
    }
    std::process::exit(i32::from(!met));
}

fn print(figure: &Figure, as_json: bool) {
    let Figure { what, measured, demand, met, data } = figure;
    if as_json {
        println!("{}", json!({"what": what, "measured": data, "demand": demand, "met": met}));
    } else {
        println!("{} {what}: {measured}  (demand: {demand})", if *met { "ok  " } else { "MISS" });
    }
}
