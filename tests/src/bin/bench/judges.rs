//! The judge matrix: who judges, how fast, how many workers, and what goes wrong in mid-run.
//!
//! `PIXFLEET_BENCH_CELLS=nginx` runs the cells whose name holds that text; several texts are parted by `|`.

use pixfleet_sandbox::{Judging, Rule};
use pixfleet_tests::judges::{Cell, Fault, Judge, Report, flask, in_flight, nginx, sandbox::judging};

use crate::Figure;

/// Calls a second at the sandbox.
const LIMIT: u32 = 200;
const FAULTS: [Fault; 3] = [Fault::Kill, Fault::Flush, Fault::Restart];

pub(crate) async fn measure() -> Vec<Figure> {
    let wanted = std::env::var("PIXFLEET_BENCH_CELLS").unwrap_or_default();
    let cells: Vec<Cell> =
        matrix().into_iter().filter(|cell| is_wanted(&cell.to_string(), &wanted)).collect();
    let mut figures = Vec::new();
    for (n, cell) in cells.iter().enumerate() {
        let report = cell.run().await;
        // The whole takes minutes: whoever waits sees it grow.
        eprintln!("{} of {}: {cell}: {report}", n + 1, cells.len());
        figures.push(figure(&report));
    }
    figures
}

fn is_wanted(name: &str, wanted: &str) -> bool {
    wanted.split('|').any(|text| name.contains(text.trim()))
}

fn matrix() -> Vec<Cell> {
    let mut cells = sandbox();
    if in_flight::BUILT {
        cells.extend(in_flight::cells());
    }
    cells.extend(nginx_cells());
    cells.extend(flask_cells());
    cells
}

fn sandbox() -> Vec<Cell> {
    let rules = [
        Rule::Bucket { burst: 20 },
        Rule::Fixed,
        Rule::Leaky { burst: 1 },
        Rule::Leaky { burst: 10 },
        Rule::Sliding,
    ];
    let cell = |rule, workers, jobs| Cell::new(Judge::Sandbox(judging(rule, LIMIT)), workers, jobs);
    let mut cells: Vec<Cell> = rules.into_iter().map(|rule| cell(rule, 4, 2_000)).collect();
    for workers in [1, 2, 8] {
        cells.extend(rules.into_iter().map(|rule| cell(rule, workers, 1_000)));
    }
    cells.extend([1, 2, 4, 8].into_iter().map(|workers| cell(Rule::Leaky { burst: 0 }, workers, 600)));
    for fault in FAULTS {
        cells.extend(rules.into_iter().map(|rule| cell(rule, 4, 1_000).with(fault)));
    }
    cells
}

fn nginx_cells() -> Vec<Cell> {
    let cell = |rate, burst, workers| {
        let gate = nginx::Gate::Requests { rate, burst };
        // Ten seconds and more of each rate, and a burst of ten within it.
        Cell::new(Judge::Nginx(gate), workers, rate as usize * 10)
    };
    let mut cells = Vec::new();
    for rate in [4, 30, 100, 300] {
        cells.extend([0, 1, 10].into_iter().map(|burst| cell(rate, burst, 4)));
    }
    for workers in [1, 2, 8] {
        cells.extend([0, 1, 10].into_iter().map(|burst| cell(100, burst, workers)));
    }
    cells.extend(FAULTS.into_iter().map(|fault| cell(100, 10, 4).with(fault)));
    cells
}

fn flask_cells() -> Vec<Cell> {
    let cell = |strategy, calls, seconds, workers| {
        let jobs = calls as usize * 10 / seconds as usize;
        Cell::new(Judge::Flask(flask::Gate { strategy, calls, seconds }), workers, jobs)
    };
    let mut cells = Vec::new();
    for strategy in [flask::Strategy::FixedWindow, flask::Strategy::MovingWindow] {
        cells.push(cell(strategy, 10, 2, 4));
        cells.extend([1, 2, 4, 8].into_iter().map(|workers| cell(strategy, 20, 1, workers)));
        cells.extend(
            [Fault::Kill, Fault::Flush].into_iter().map(|fault| cell(strategy, 20, 1, 4).with(fault)),
        );
    }
    cells
}

fn figure(report: &Report) -> Figure {
    let (demand, met) = demand(report);
    Figure::new(report.cell.to_string(), report.to_string(), demand, met, report.json())
}

/// What is promised of a cell, and whether it was kept.
fn demand(report: &Report) -> (&'static str, bool) {
    let Cell { judge, workers, fault, .. } = report.cell;
    let setting = judge.setting();
    let none_refused = report.throttled == 0;
    let full = workers == 4 && fault.is_none();
    let used = |least: f64| report.utilisation >= least;
    let bounded = report.busiest <= setting.calls as usize;
    match (judge, setting.judge) {
        (Judge::Nginx(nginx::Gate::Requests { burst: 0, .. }), _) => (
            "utilisation within 0.03 of the best, 429s < 0.5 %",
            used(report.best - 0.03) && report.refused() < 0.005,
        ),
        (_, "leaky") if setting.burst == Some(0) => ("none", true),
        (Judge::Sandbox(Judging { limit: LIMIT, .. }), "sliding") if full => (
            "utilisation >= 0.985, no 429, never above 200 in any second",
            used(0.985) && none_refused && bounded,
        ),
        (Judge::Sandbox(Judging { limit: LIMIT, .. }), _) if full => {
            ("utilisation >= 0.99, no 429", used(0.99) && none_refused)
        }
        (_, "concurrent") if full => ("utilisation >= 0.99, no 429", used(0.99) && none_refused),
        (Judge::Sandbox(_), "sliding") => {
            ("no 429, never above the limit in any window", none_refused && bounded)
        }
        (_, _) => ("no 429", none_refused),
    }
}
