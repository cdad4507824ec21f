//! A run that is killed again and again, at moments that nobody chose, and then judged by what it left.
//!
//! The moments are drawn by time, so a loop hits what no test of a single state would think of: a manifest half read,
//! a commit half written, an output between its rows and its mark. Half of them count from the start of the process
//! and half from its first call, so that on a slow machine, too, calls are in flight at some and the run gets on.

use std::{
    fs::File,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use pixfleet_sandbox::{Latency, Running, Sandbox, Settings};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use serde_json::Value;
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{
    fleet::KEY,
    one_machine::{Judged, OneMachine},
};

/// How long a call takes: long enough for some to be in flight at any moment.
const LATENCY_MS: u64 = 20;
/// When a process is killed, in milliseconds after its start or its first call.
const MOMENTS_MS: std::ops::Range<u64> = 10..250;
/// The longest that anything else may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a loop does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The moments of the kills follow from it.
    pub seed: u64,
    /// Kills before the run may end.
    pub kills: usize,
    /// Jobs: so many that the run lasts through all the kills.
    pub jobs: usize,
    /// Calls at once.
    pub concurrency: usize,
    /// The outputs, by name.
    pub outputs: Vec<&'static str>,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// What was done.
    pub plan: Plan,
    /// Kills that met a process at work.
    pub kills: usize,
    /// Calls that were in flight at the kills, as the API saw them just before.
    pub in_flight: u64,
    /// The most calls that can have been in flight at the kills: at each those of that start, and no more than were
    /// allowed at once.
    pub bound: u64,
    /// Calls that were charged.
    pub charged: u64,
    /// Each output, judged.
    pub outputs: Vec<Judged>,
    /// How the last run ended, and its report.
    pub end: End,
}

/// How a run ended by itself.
#[derive(Debug)]
pub struct End {
    /// Its exit code; none for a signal.
    pub code: Option<i32>,
    /// The JSON line that it printed; null without one.
    pub report: Value,
    /// What it said on stderr.
    pub said: String,
}

/// Kills a run as planned, lets a last one end, and judges.
pub async fn crash_loop(plan: Plan) -> Report {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let latency = Latency::Constant { ms: LATENCY_MS };
    let settings = Settings { keys: vec![KEY.into()], latency, access_tail: 0, ..Settings::default() };
    let sandbox = Sandbox::start(listener, settings).unwrap();
    let machine = OneMachine::new(plan.jobs, &sandbox.url());
    let mut moments = Xoshiro256PlusPlus::seed_from_u64(plan.seed);
    let mut attack = Attack { sandbox, machine, plan, kills: 0, in_flight: 0, bound: 0 };
    let mut end = None;
    while end.is_none() && attack.kills < attack.plan.kills {
        let moment = Duration::from_millis(moments.random_range(MOMENTS_MS));
        end = attack.strike(moment).await;
    }
    let end = match end {
        Some(end) => end,
        None => attack.last().await,
    };
    attack.judge(end)
}

struct Attack {
    sandbox: Running,
    machine: OneMachine,
    plan: Plan,
    kills: usize,
    in_flight: u64,
    bound: u64,
}

impl Attack {
    /// Starts the run and kills it; answers how it ended where it was faster.
    async fn strike(&mut self, moment: Duration) -> Option<End> {
        let before = self.arrived();
        let mut process = self.start();
        let from_the_first_call = self.kills % 2 == 1;
        let due = async {
            while from_the_first_call && self.arrived() == before {
                sleep(Duration::from_millis(1)).await;
            }
            sleep(moment).await;
        };
        tokio::select! {
            () = due => {}
            ended = process.wait() => return Some(self.end_of(process, ended.unwrap()).await),
            () = sleep(PATIENCE) => panic!("no call within {PATIENCE:?}, {}:\n{}", self.plan.named(), self.said()),
        }
        let seen = self.sandbox.bill().in_flight;
        process.start_kill().unwrap();
        let ended = process.wait().await.unwrap();
        if ended.code().is_some() {
            return Some(self.end_of(process, ended).await);
        }
        self.quiet().await;
        self.kills += 1;
        self.in_flight += seen;
        self.bound += (self.arrived() - before).min(self.plan.concurrency as u64);
        None
    }

    async fn last(&self) -> End {
        let mut process = self.start();
        let ended = timeout(PATIENCE, process.wait()).await;
        let ended = ended.unwrap_or_else(|_| panic!("no end, {}:\n{}", self.plan.named(), self.said()));
        self.end_of(process, ended.unwrap()).await
    }

    fn start(&self) -> Child {
        let mut command = Command::from(self.machine.run(&self.plan.outputs, self.plan.concurrency));
        command
            .stdout(Stdio::piped())
            .stderr(File::create(self.machine.path().join("run.log")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    async fn end_of(&self, process: Child, ended: ExitStatus) -> End {
        // One line at most: the pipe held it while the process ended.
        let told = process.wait_with_output().await.unwrap().stdout;
        let report = serde_json::from_slice(&told).unwrap_or(Value::Null);
        End { code: ended.code(), report, said: self.said() }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.machine.path().join("run.log")).unwrap_or_default()
    }

    /// Calls that reached the API, ended or not.
    fn arrived(&self) -> u64 {
        let bill = self.sandbox.bill();
        bill.total.calls + bill.in_flight
    }

    /// Waits until the API has seen the end of a dead process's calls.
    async fn quiet(&self) {
        let quiet = async {
            while self.sandbox.bill().in_flight > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, quiet).await.unwrap_or_else(|_| panic!("calls never end, {}", self.plan.named()));
    }

    fn judge(self, end: End) -> Report {
        let judged = |output: &&str| self.machine.judge(output);
        Report {
            // A run that never ended well has outputs that may not be there.
            outputs: if end.code == Some(0) {
                self.plan.outputs.iter().map(judged).collect()
            } else {
                vec![]
            },
            charged: self.sandbox.bill().total.charged,
            plan: self.plan,
            kills: self.kills,
            in_flight: self.in_flight,
            bound: self.bound,
            end,
        }
    }
}

impl Plan {
    fn named(&self) -> String {
        format!("seed {}", self.seed)
    }
}

impl Report {
    /// Jobs without a result, in all outputs.
    pub fn lost(&self) -> usize {
        self.outputs.iter().map(|judged| judged.lost).sum()
    }

    /// Results beyond a job's first, in all outputs.
    pub fn duplicates(&self) -> usize {
        self.outputs.iter().map(|judged| judged.duplicates).sum()
    }

    /// What does not hold; nothing for a run that lost and repeated nothing.
    pub fn problems(&self) -> Vec<String> {
        let Self { plan, kills, charged, bound, outputs, end, .. } = self;
        let mut problems = Vec::new();
        let mut hold = |holds: bool, otherwise: String| {
            if !holds {
                problems.push(format!("{}: {otherwise}", plan.named()));
            }
        };
        let jobs = plan.jobs as u64;
        hold(end.code == Some(0), format!("the run ended with {:?}: {}", end.code, end.said));
        hold(*kills == plan.kills, format!("it ended before kill {} of {}", kills + 1, plan.kills));
        hold(end.report["complete"] == true, format!("it is not complete: {}", end.report));
        hold(end.report["jobs"] == jobs && end.report["done"] == jobs, format!("not {jobs}: {}", end.report));
        hold(outputs.iter().all(Judged::is_clean), format!("{outputs:?}"));
        hold(outputs.len() == plan.outputs.len(), format!("{} outputs judged", outputs.len()));
        hold(
            *charged >= jobs,
            format!("{charged} calls charged for {jobs} jobs: where are the answers from?"),
        );
        hold(
            *charged <= jobs + bound,
            format!("{charged} calls charged for {jobs} jobs and at most {bound} in flight at the kills"),
        );
        problems
    }
}
