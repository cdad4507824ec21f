//! `kill -9` of `pixfleet run`, fifty times a run, at moments drawn by time; several seeds.

use pixfleet_tests::crash_loop::{Plan, crash_loop};
use serde_json::json;

use crate::Figure;

const SEEDS: [u64; 3] = [1, 2, 3];
const KILLS: usize = 50;
/// So many that a quick machine, too, is at work at the last kill.
const JOBS: usize = 40_000;

pub(crate) async fn measure() -> Vec<Figure> {
    let mut figures = Vec::new();
    for seed in SEEDS {
        figures.push(run(seed).await);
    }
    figures
}

async fn run(seed: u64) -> Figure {
    let outputs = vec!["o.jsonl", "o.csv", "o.parquet", "o.sqlite"];
    let report = crash_loop(Plan { seed, kills: KILLS, jobs: JOBS, concurrency: 64, outputs }).await;
    let problems = report.problems();
    let (lost, duplicates) = (report.lost(), report.duplicates());
    let again = report.charged.saturating_sub(JOBS as u64);
    let measured = format!(
        "{} kills, {lost} lost and {duplicates} duplicates in {} outputs, {again} calls made again ({} in flight at the \
         kills as the API saw it, at most {}){}",
        report.kills,
        report.outputs.len(),
        report.in_flight,
        report.bound,
        problems.iter().map(|problem| format!("; {problem}")).collect::<String>(),
    );
    let data = json!({
        "seed": seed, "kills": report.kills, "jobs": JOBS, "lost": lost, "duplicates": duplicates,
        "charged": report.charged, "in_flight": report.in_flight, "bound": report.bound, "problems": problems,
    });
    Figure::new(
        format!("run, 40,000 jobs, kill -9 fifty times, seed {seed}"),
        measured,
        "none lost, none twice, again <= in flight",
        problems.is_empty(),
        data,
    )
}
