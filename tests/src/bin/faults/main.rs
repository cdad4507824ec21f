//! The scenarios of [`pixfleet_tests::faults`] at length: `tests/faults` builds the release with failpoints and runs this on
//! private servers.

#![allow(clippy::print_stdout, reason = "the figures are this program's data")]
#![allow(clippy::unwrap_used, reason = "a scenario that cannot be played fails the run")]

use std::{panic::AssertUnwindSafe, process::ExitCode, time::Instant};

use futures_util::FutureExt;
use pixfleet_tests::faults::{Plan, SCENARIOS, Scenario, again};

const USAGE: &str =
    "usage: tests/faults [--jobs N] [--seeds N | --seed N] [--workers N] [--list] [SCENARIO ...]";

/// What to play.
struct Order {
    jobs: usize,
    seeds: std::ops::RangeInclusive<u64>,
    workers: usize,
    scenarios: Vec<&'static Scenario>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let order = match order(std::env::args().skip(1)) {
        Ok(Some(order)) => order,
        Ok(None) => return ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let since = Instant::now();
    let (mut played, mut failed) = (0, Vec::new());
    let mut total = Total::default();
    for seed in order.seeds.clone() {
        for scenario in &order.scenarios {
            let plan = Plan { seed, jobs: order.jobs, workers: order.workers };
            played += 1;
            // One that fails in the middle is one line, too, and the others are still played.
            match AssertUnwindSafe(scenario.play(plan)).catch_unwind().await {
                Ok(report) => {
                    println!("{}", report.line());
                    total.add(&report.figures);
                    if let Err(why) = report.verdict() {
                        let log = std::env::temp_dir().join(format!("faults-{}-{seed}.log", scenario.name));
                        std::fs::write(&log, &report.logs).unwrap();
                        eprintln!("{why}\nthe workers' logs: {}", log.display());
                        failed.push(again(scenario.name, plan));
                    }
                }
                Err(_) => {
                    println!("FAILED {}: it could not be played to its end", scenario.name);
                    failed.push(again(scenario.name, plan));
                }
            }
        }
    }
    let seconds = since.elapsed().as_secs_f64();
    println!("{}", total.line(played, seconds));
    for command in &failed {
        println!("again: {command}");
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// All scenarios together.
#[derive(Default)]
struct Total(pixfleet_tests::faults::checker::Figures);

impl Total {
    fn add(&mut self, more: &pixfleet_tests::faults::checker::Figures) {
        let total = &mut self.0;
        total.jobs += more.jobs;
        total.calls += more.calls;
        total.charged += more.charged;
        total.results += more.results;
        total.repetitions += more.repetitions;
        total.after_the_sink += more.after_the_sink;
        total.ambiguous += more.ambiguous;
        total.listed += more.listed;
        total.dead += more.dead;
        total.parked += more.parked;
        total.resent += more.resent;
        total.paid_twice += more.paid_twice;
        total.lost += more.lost;
    }

    fn line(&self, played: usize, seconds: f64) -> String {
        let total = &self.0;
        format!(
            "total: {played} scenarios, {} jobs, {} calls, {} results, {} again, {} after the sink, {} ambiguous, {} listed, \
             {} dead, {} parked, {} resent, {} paid twice, {} lost, {seconds:.0} s, {:.0} jobs/s",
            total.jobs,
            total.calls,
            total.results,
            total.repetitions,
            total.after_the_sink,
            total.ambiguous,
            total.listed,
            total.dead,
            total.parked,
            total.resent,
            total.paid_twice,
            total.lost,
            total.jobs as f64 / seconds
        )
    }
}

fn order(arguments: impl Iterator<Item = String>) -> Result<Option<Order>, String> {
    let mut order = Order { jobs: 5_000, seeds: 1..=5, workers: 4, scenarios: Vec::new() };
    let mut arguments = arguments;
    while let Some(word) = arguments.next() {
        let mut number = || {
            let value = arguments.next().ok_or_else(|| format!("{word} needs a number"))?;
            value.parse::<u64>().map_err(|_| format!("{word} needs a number, not `{value}`"))
        };
        match word.as_str() {
            "--jobs" => order.jobs = number()? as usize,
            "--seeds" => order.seeds = 1..=number()?,
            "--seed" => order.seeds = number().map(|seed| seed..=seed)?,
            "--workers" => order.workers = number()? as usize,
            "--list" => {
                SCENARIOS.iter().for_each(|scenario| println!("{}", scenario.name));
                return Ok(None);
            }
            name => {
                let named = Scenario::named(name)
                    .ok_or_else(|| format!("there is no scenario `{name}`: see --list"))?;
                order.scenarios.push(named);
            }
        }
    }
    if order.scenarios.is_empty() {
        order.scenarios = SCENARIOS.iter().collect();
    }
    Ok(Some(order))
}
