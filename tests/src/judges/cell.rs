//! A cell of the matrix: a judge, so many jobs, so many worker processes, and perhaps a fault in mid-run.

use std::fmt;

use pixfleet_sandbox::Judging;
use pixfleet_shared::result::Outcome;
use serde_json::{Value, json};

use super::{
    Call, Judge, Setting,
    flask::Flask,
    measure::{Measured, measure},
    nginx::Nginx,
    sandbox,
};
use crate::{fleet::Fleet, private_redis::PrivateRedis};

const BATCH: &str = "judged";

/// What happens once half of the results are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of one worker.
    Kill,
    /// `FLUSHALL` of the fleet's Redis.
    Flush,
    /// `kill -9` of the fleet's Redis, which has nothing on the disk, and a new start.
    Restart,
}

/// What is to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Who judges.
    pub judge: Judge,
    /// Worker processes.
    pub workers: usize,
    /// Jobs, each one call.
    pub jobs: usize,
    /// How long the API takes to answer.
    pub latency_ms: u32,
    /// The fault, if any.
    pub fault: Option<Fault>,
    /// The limit that pixfleet is told, where it is not the one that suits the judge.
    pub told: Option<Setting>,
}

/// Who stands between the workers and the answer, beside the sandbox that is always there.
enum Before {
    Nothing,
    Nginx(Nginx),
    Flask(Flask),
}

impl Cell {
    /// A cell without a fault, whose API takes 50 ms.
    pub fn new(judge: Judge, workers: usize, jobs: usize) -> Self {
        Self { judge, workers, jobs, latency_ms: 50, fault: None, told: None }
    }

    /// The same with a fault.
    pub fn with(self, fault: Fault) -> Self {
        Self { fault: Some(fault), ..self }
    }

    /// The same with a fleet that is told another limit than its judge's.
    pub fn told(self, setting: Setting) -> Self {
        Self { told: Some(setting), ..self }
    }

    /// The same with an API that takes so long.
    pub fn taking(self, latency_ms: u32) -> Self {
        Self { latency_ms, ..self }
    }

    /// Runs it to the last result.
    ///
    /// # Panics
    /// When the results stop coming before all are there.
    pub async fn run(self) -> Report {
        let mut redis = match self.fault {
            Some(Fault::Flush | Fault::Restart) => Some(PrivateRedis::start(&[]).await),
            Some(Fault::Kill) | None => None,
        };
        let (mut fleet, before) = self.fleet().await;
        if let Some(redis) = &redis {
            fleet.redis_url = redis.url();
        }
        let mut subscriber = fleet.subscribe(BATCH).await;
        for _ in 0..self.workers {
            fleet.start_worker();
        }
        for worker in 0..self.workers {
            fleet.ready(worker).await;
        }
        fleet.enqueue(BATCH, self.jobs).await;
        let (mut results, mut repeated) = fleet.collect(&mut *subscriber, self.jobs / 2).await;
        self.strike(&mut fleet, redis.as_mut()).await;
        // What a killed worker had settled may come again: then there are more to wait for.
        while results.len() < self.jobs {
            let (more, again) = fleet.collect(&mut *subscriber, self.jobs - results.len()).await;
            let known = more.keys().filter(|id| results.contains_key(id)).count();
            repeated += again + known;
            results.extend(more);
        }
        let failed = results.values().filter(|result| result.outcome != Outcome::Ok).count();
        let log = before.calls(&fleet).await;
        let measured = measure(&log, &self.judge.setting());
        Report::new(self, measured, Results { results: results.len(), failed, repeated })
    }

    async fn fleet(&self) -> (Fleet, Before) {
        let judging = match self.judge {
            Judge::Sandbox(judging) => judging,
            Judge::Nginx(_) | Judge::Flask(_) => Judging::default(),
        };
        let api = sandbox::start(judging, self.latency_ms).await;
        let (before, endpoint) = match self.judge {
            Judge::Sandbox(_) => (Before::Nothing, api.url()),
            Judge::Nginx(gate) => {
                let nginx = Nginx::start(gate, &api.url()).await;
                let url = nginx.url();
                (Before::Nginx(nginx), url)
            }
            Judge::Flask(gate) => {
                let flask = Flask::start(gate, self.latency_ms).await;
                let url = flask.url();
                (Before::Flask(flask), url)
            }
        };
        let told = self.told.unwrap_or_else(|| self.judge.setting());
        (Fleet::behind(api, &endpoint, &told.toml(), "").await, before)
    }

    async fn strike(&self, fleet: &mut Fleet, redis: Option<&mut PrivateRedis>) {
        match (self.fault, redis) {
            (Some(Fault::Kill), _) => fleet.kill(0),
            (Some(Fault::Flush), Some(redis)) => {
                let () = redis::cmd("FLUSHALL").query_async(&mut redis.connection().await).await.unwrap();
            }
            (Some(Fault::Restart), Some(redis)) => {
                redis.kill();
                redis.revive().await;
            }
            (_, _) => {}
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workers = if self.workers == 1 { "worker" } else { "workers" };
        write!(f, "{}, {} {workers}", self.judge, self.workers)?;
        match self.fault {
            None => Ok(()),
            Some(Fault::Kill) => write!(f, ", one killed"),
            Some(Fault::Flush) => write!(f, ", Redis flushed"),
            Some(Fault::Restart) => write!(f, ", Redis restarted"),
        }
    }
}

impl Before {
    async fn calls(self, fleet: &Fleet) -> Vec<Call> {
        match self {
            Self::Nothing => sandbox::calls(&fleet.sandbox).await,
            Self::Nginx(nginx) => nginx.calls(),
            Self::Flask(flask) => flask.calls(),
        }
    }
}

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
}

struct Results {
    results: usize,
    failed: usize,
    repeated: usize,
}

impl Report {
    fn new(cell: Cell, measured: Measured, results: Results) -> Self {
        let Measured { calls, throttled, busiest, seconds, utilisation } = measured;
        let Results { results, failed, repeated } = results;
        let best = cell.judge.setting().best();
        Self { cell, utilisation, best, calls, throttled, busiest, seconds, results, failed, repeated }
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
            "repeated": self.repeated,
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
        Ok(())
    }
}
