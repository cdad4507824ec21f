//! What came of a cell: as a line for people, and as JSON.

use std::fmt;

use pixfleet_shared::limiter::Standing;
use serde_json::{Value, json};

use super::{cell::Cell, measure::Measured};

/// What came of a cell.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// What was run.
    pub cell: Cell,
    /// The share of the quota that was used from the first to the last call.
    pub utilisation: f64,
    /// The best share that the judge and the jitter in use allow.
    pub best: f64,
    /// Calls that the judge saw.
    pub calls: usize,
    /// Calls that it refused.
    pub throttled: usize,
    /// The most calls that it let pass in any window of its limit, or had in flight at once.
    pub busiest: usize,
    /// From the first to the last call that passed.
    pub seconds: f64,
    /// Different results that arrived.
    pub results: usize,
    /// Of them, those without an answer.
    pub failed: usize,
    /// Results that came again.
    pub repeated: usize,
    /// Processes that wanted a processor at the end, in the mean of a minute: what else the machine had to do.
    pub load: f64,
    /// Slots that the workers which live at the end had reached too late: most of what is missing to the best.
    pub forfeited: usize,
    /// The jitter that the workers measured, and the one that the fleet allowed for at the end, in milliseconds, where they
    /// were told.
    pub jitter_ms: (Option<f64>, Option<f64>),
}

/// What the fleet itself says.
pub(super) struct Fared {
    pub(super) results: usize,
    pub(super) failed: usize,
    pub(super) repeated: usize,
    pub(super) forfeited: usize,
    pub(super) standing: Standing,
}

impl Report {
    pub(super) fn new(cell: Cell, measured: Measured, fared: Fared) -> Self {
        let Measured { calls, throttled, busiest, seconds, utilisation } = measured;
        let Fared { results, failed, repeated, forfeited, standing } = fared;
        let best = cell.judge.setting().best(standing.jitter_ms);
        Self {
            cell,
            utilisation,
            best,
            calls,
            throttled,
            busiest,
            seconds,
            results,
            failed,
            repeated,
            forfeited,
            jitter_ms: (standing.measured_jitter_ms, standing.jitter_ms),
            load: load(),
        }
    }

    /// The share of the calls that were refused, 0 to 1.
    pub fn refused(&self) -> f64 {
        self.throttled as f64 / self.calls as f64
    }

    /// Everything that was measured.
    pub fn json(&self) -> Value {
        json!({
            "cell": self.cell.to_string(), "workers": self.cell.workers, "jobs": self.cell.jobs,
            "utilisation": self.utilisation, "best": self.best, "calls": self.calls, "throttled_429": self.throttled,
            "busiest": self.busiest, "seconds": self.seconds, "results": self.results, "failed": self.failed,
            "repeated": self.repeated, "forfeited_slots": self.forfeited,
            "jitter_measured_ms": self.jitter_ms.0, "jitter_allowed_ms": self.jitter_ms.1, "load": self.load,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let setting = self.cell.judge.setting();
        let where_busiest = if setting.is_in_flight() { "in flight" } else { "in the busiest window" };
        write!(
            f,
            "utilisation {:.3} (best {:.3}), {} 429s in {} calls ({:.2} %), {} {where_busiest} of {}, {} results in {:.2} s",
            self.utilisation,
            self.best,
            self.throttled,
            self.calls,
            self.refused() * 100.0,
            self.busiest,
            setting.calls,
            self.results,
            self.seconds
        )?;
        if self.failed > 0 {
            write!(f, ", {} failed", self.failed)?;
        }
        if self.repeated > 0 {
            write!(f, ", {} sent again", self.repeated)?;
        }
        if self.forfeited > 0 {
            write!(f, ", {} slots forfeited", self.forfeited)?;
        }
        if let Some(measured) = self.jitter_ms.0 {
            write!(f, ", J {measured:.1} ms measured")?;
        }
        if let Some(allowed) = self.jitter_ms.1 {
            write!(f, ", {allowed:.1} ms allowed")?;
        }
        write!(f, ", load {:.1}", self.load)
    }
}

fn load() -> f64 {
    let told = std::fs::read_to_string("/proc/loadavg").unwrap();
    told.split(' ').next().unwrap().parse().unwrap()
}
