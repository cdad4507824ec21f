//! A cell of the matrix: a judge, so many jobs, so many worker processes, and perhaps a fault in mid-run.

use std::fmt;

use pixfleet_sandbox::Judging;
use pixfleet_shared::{
    limiter::{Stack, Standing},
    result::Outcome,
};

use super::{
    Call, Judge, Setting,
    flask::Flask,
    measure::measure,
    nginx::Nginx,
    report::{Fared, Report},
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
        let forfeited = self.forfeited(&fleet).await;
        let standing = self.standing(&fleet).await;
        let failed = results.values().filter(|result| result.outcome != Outcome::Ok).count();
        let log = before.calls(&fleet).await;
        let measured = measure(&log, &self.judge.setting());
        Report::new(self, measured, Fared { results: results.len(), failed, repeated, forfeited, standing })
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

    async fn forfeited(&self, fleet: &Fleet) -> usize {
        let killed = usize::from(self.fault == Some(Fault::Kill));
        let mut sum = 0;
        for worker in killed..self.workers {
            let page = fleet.page_with(worker, "/metrics", "HTTP/1.1 200").await;
            // A metric that was never counted has no line.
            let lines = page.lines().filter(|line| line.starts_with("pixfleet_slots_forfeited_total{"));
            sum +=
                lines.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum::<usize>();
        }
        sum
    }

    /// What the limiter says at the end: the jitter that was measured, and the one that was allowed for.
    async fn standing(&self, fleet: &Fleet) -> Standing {
        let limits = vec![self.told.unwrap_or_else(|| self.judge.setting()).limit()];
        let stack = Stack { name: "sandbox".into(), limits };
        fleet.limiter().await.standing(&stack).await.unwrap()
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
