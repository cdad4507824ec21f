//! The cells of judges that bound the calls in flight.

use pixfleet_sandbox::Rule;

use super::{Cell, Fault, Judge, nginx, sandbox};

/// Whether pixfleet has in-flight limits: the one line that brings these cells into the test and the benchmark.
pub const BUILT: bool = true;

/// 80 in flight at 400 ms each are 200 a second.
const IN_FLIGHT: u32 = 80;
const LATENCY_MS: u32 = 400;

/// The sandbox's judge, with `workers` processes.
pub fn concurrent(workers: usize, jobs: usize) -> Cell {
    let judge = Judge::Sandbox(sandbox::judging(Rule::Concurrent, IN_FLIGHT));
    Cell::new(judge, workers, jobs).taking(LATENCY_MS)
}

/// nginx's `limit_conn`, with `workers` processes.
pub fn limit_conn(workers: usize, jobs: usize) -> Cell {
    let judge = Judge::Nginx(nginx::Gate::Connections { calls: IN_FLIGHT });
    Cell::new(judge, workers, jobs).taking(LATENCY_MS)
}

/// All of them.
pub fn cells() -> Vec<Cell> {
    let both = |workers, jobs| [concurrent(workers, jobs), limit_conn(workers, jobs)];
    let mut cells: Vec<Cell> = both(4, 2_000).into();
    cells.extend([1, 2, 8].into_iter().flat_map(|workers| both(workers, 1_000)));
    let faults = [Fault::Kill, Fault::Flush, Fault::Restart];
    cells.extend(faults.into_iter().map(|fault| concurrent(4, 1_000).with(fault)));
    cells
}
