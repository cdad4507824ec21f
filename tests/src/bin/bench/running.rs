//! `pixfleet run` against an API that answers at once: how many jobs a second, and what one costs.

use pixfleet_tests::one_machine::OneMachine;
use serde_json::{Value, json};

use crate::{
    Figure,
    measured::{Api, Taken, measure as measured},
};

const CONCURRENCY: usize = 256;
/// The first is too small for the start of a process not to show, and is no part of the ratio.
const SIZES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
/// The size whose rate and memory are demanded.
const DEMANDED: usize = 100_000;

pub(crate) async fn measure() -> Vec<Figure> {
    let points: Vec<(usize, Taken)> = SIZES.map(|jobs| (jobs, run(jobs))).into();
    let mut figures: Vec<Figure> = points.iter().map(|(jobs, taken)| size(*jobs, taken)).collect();
    figures.push(flatness(&points));
    figures
}

fn run(jobs: usize) -> Taken {
    let api = Api::start();
    let machine = OneMachine::new(jobs, &api.url);
    let taken = measured(machine.run(&["o.jsonl"], CONCURRENCY));
    assert_eq!(taken.report["done"].as_u64(), Some(jobs as u64), "{}", taken.report);
    assert!(machine.judge("o.jsonl").is_clean(), "{:?}", machine.judge("o.jsonl"));
    taken
}

fn size(jobs: usize, taken: &Taken) -> Figure {
    let rate = jobs as f64 / taken.seconds;
    let Taken { peak_mib, seconds, .. } = taken;
    let measured = format!(
        "{rate:.0} jobs/s in {seconds:.1} s, {peak_mib:.0} MiB at most, {:.0} us of CPU a job",
        us(jobs, taken)
    );
    let (demand, met) = match jobs {
        DEMANDED => (">= 5,000 jobs/s, < 60 MiB", rate >= 5_000.0 && *peak_mib < 60.0),
        _ => ("none", true),
    };
    Figure::new(format!("run, {jobs} jobs"), measured, demand, met, point(jobs, taken))
}

/// Dearest over cheapest: a job of a million costs what one of ten thousand does.
fn flatness(points: &[(usize, Taken)]) -> Figure {
    let costs = points.iter().filter(|(jobs, _)| *jobs >= 10_000).map(|(jobs, taken)| us(*jobs, taken));
    let (least, most) = costs.fold((f64::MAX, 0.0_f64), |(least, most), us| (least.min(us), most.max(us)));
    let ratio = most / least;
    let measured = format!("{ratio:.2} ({least:.0} to {most:.0} us)");
    let data = json!({
        "ratio": ratio, "points": points.iter().map(|(jobs, taken)| point(*jobs, taken)).collect::<Vec<_>>(),
    });
    let what = "run, CPU of a job, dearest to cheapest of 10,000 to 1,000,000 jobs";
    Figure::new(what, measured, "<= 1.5", ratio <= 1.5, data)
}

/// CPU time of one job, in microseconds, the process's start included.
fn us(jobs: usize, taken: &Taken) -> f64 {
    taken.cpu_s * 1e6 / jobs as f64
}

fn point(jobs: usize, taken: &Taken) -> Value {
    json!({
        "jobs": jobs, "jobs_per_s": jobs as f64 / taken.seconds, "seconds": taken.seconds,
        "cpu_us_per_job": us(jobs, taken), "peak_mib": taken.peak_mib,
    })
}
