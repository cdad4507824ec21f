//! One scenario's stage: a fleet of its own under load, what befalls it, and the verdict at the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    mem::discriminant,
    time::Duration,
};

use pixfleet_sandbox::{Judging, Latency, Rule, Sandbox, Settings};
use pixfleet_shared::{
    fleet::redis::{self, Redis},
    id::Id,
    job::{Job, Source},
};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tokio::{
    net::TcpListener,
    process::Command,
    time::{Instant, sleep},
};

use super::{
    checker::{self, Figures, Problem},
    collecting::{self, Collector},
    gather,
    history::{CallSeen, History, Policy, Wanted},
};
use crate::{
    fault_proxy::FaultProxy,
    fleet::{Fleet, KEY, image_url, job},
};

/// The batch of every scenario.
pub const BATCH: &str = "b";
/// A run in which no result came for so long will not end.
const SILENCE: Duration = Duration::from_secs(45);
/// How often something that no event tells of is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What a scenario is played with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Every choice that is left to chance follows from it.
    pub seed: u64,
    /// Jobs.
    pub jobs: usize,
    /// Worker processes.
    pub workers: usize,
}

/// How a scenario's fleet is set up.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The API.
    pub sandbox: Settings,
    /// The provider's policy on unanswered calls.
    pub policy: Policy,
    /// Calls a second that its limit allows.
    pub rate: u32,
    /// The longest time of a call, in milliseconds.
    pub total_ms: u64,
    /// Jobs in hand of each worker.
    pub concurrency: usize,
    /// The heartbeat with the broker, in seconds: a silent end is given up within two.
    pub heartbeat_s: u16,
    /// Whether calls go through a proxy.
    pub proxied: bool,
    /// Further settings of the workers, as TOML.
    pub more: String,
}

impl Setting {
    /// With a limit that lets the plan's jobs last for about so many seconds: the fault is to meet a fleet at work.
    pub fn lasting(plan: Plan, seconds: usize) -> Self {
        Self { rate: u32::try_from((plan.jobs / seconds).max(10)).unwrap_or(u32::MAX), ..Self::default() }
    }
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            sandbox: Settings {
                keys: vec![KEY.into()],
                judging: Judging { rule: Rule::None, ..Judging::default() },
                latency: Latency::Constant { ms: 10 },
                ..Settings::default()
            },
            policy: Policy::Park,
            rate: 5_000,
            total_ms: 5_000,
            concurrency: 32,
            heartbeat_s: 5,
            proxied: false,
            more: String::new(),
        }
    }
}

/// A scenario's name, what it is played with, and what came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// The scenario.
    pub name: &'static str,
    /// What it was played with.
    pub plan: Plan,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
    /// What happened how often.
    pub figures: Figures,
    /// What else was measured.
    pub notes: Vec<String>,
    /// From the first worker's start to the last result, in seconds.
    pub seconds: f64,
    /// The workers' logs.
    pub logs: String,
}

/// A fleet under load.
pub struct Stage {
    /// The fleet.
    pub fleet: Fleet,
    /// The way to the API, where the setting leads through it.
    pub api: FaultProxy,
    /// What the scenario is played with.
    pub plan: Plan,
    /// The choices left to chance.
    pub chance: Xoshiro256PlusPlus,
    /// What a durable subscriber was sent.
    pub collector: Collector,
    /// Problems that the scenario itself has found.
    pub problems: Vec<String>,
    /// What it has measured.
    pub notes: Vec<String>,
    /// Problems that belong to what was done to the servers.
    pub pardoned: Vec<fn(&Problem) -> bool>,
    /// Whether workers may die of a job.
    pub mortal: bool,
    /// The Redis that holds the ledger at the end.
    pub ledger_url: String,
    /// When the fault began, and when it was over, in microseconds since 1970.
    fault_us: Option<(u64, u64)>,
    /// The broker itself, whatever the workers have in between.
    pub broker_url: String,
    name: &'static str,
    wanted: BTreeMap<Id, Wanted>,
    policy: Policy,
    began: Instant,
}

impl Stage {
    /// Sets it up, with no worker and no job yet.
    pub async fn set(name: &'static str, plan: Plan, setting: Setting) -> Self {
        let sandbox = Settings { access_tail: plan.jobs * 8 + 10_000, ..setting.sandbox };
        let provider = format!(
            "ambiguous = \"{}\"\nlimits = [{{ name = \"rate\", calls = {} }}]\n\
             http = {{ connect_ms = 1000, read_ms = {total_ms}, total_ms = {total_ms} }}\n",
            setting.policy.as_str(),
            setting.rate,
            total_ms = setting.total_ms,
        );
        let worker = format!(
            "[log]\nfilter = \"info\"\n[rabbitmq]\nheartbeat_s = {}\nconnect_timeout_ms = 2000\n\
             [worker]\nconcurrency = {}\n[worker.retry]\nbase_ms = 20\n{}",
            setting.heartbeat_s, setting.concurrency, setting.more
        );
        let sandbox = Sandbox::start(TcpListener::bind("127.0.0.1:0").await.unwrap(), sandbox).unwrap();
        let api = FaultProxy::start(sandbox.addr().port()).await;
        let endpoint =
            if setting.proxied { format!("http://127.0.0.1:{}", api.port()) } else { sandbox.url() };
        let fleet = Fleet::behind(sandbox, &endpoint, &provider, &worker).await;
        let collector = Collector::start(&fleet.queue, "checker").await;
        Self {
            ledger_url: fleet.redis_url.clone(),
            fault_us: None,
            broker_url: fleet.rabbitmq_url.clone(),
            fleet,
            api,
            plan,
            chance: Xoshiro256PlusPlus::seed_from_u64(plan.seed),
            collector,
            problems: Vec::new(),
            notes: Vec::new(),
            pardoned: Vec::new(),
            mortal: false,
            name,
            wanted: BTreeMap::new(),
            policy: setting.policy,
            began: Instant::now(),
        }
    }

    /// Starts the plan's workers.
    pub fn start_workers(&mut self) {
        for _ in 0..self.plan.workers {
            self.fleet.start_worker();
        }
    }

    /// Puts the plan's jobs on the queue by `pixfleet enqueue`.
    pub async fn enqueue(&mut self) {
        let mut producer = self.producer(&[]);
        let ended = producer.wait().await.unwrap();
        assert!(ended.success(), "the enqueue ended with {ended}: {}", self.said_by_producer());
    }

    /// Starts a `pixfleet enqueue` of the plan's jobs, with further variables in its environment.
    pub fn producer(&mut self, variables: &[(&str, &str)]) -> tokio::process::Child {
        self.want(0..self.plan.jobs);
        let mut rows = String::from("id,url\n");
        for n in 0..self.plan.jobs {
            let _ = writeln!(rows, "i{n},{}", image_url(n));
        }
        let manifest = self.fleet.file("images.csv", &rows).display().to_string();
        let command = self
            .fleet
            .command(&["enqueue", &manifest, "--batch", BATCH, "--models", "m", "--quiet", "--json"]);
        let said = std::fs::File::create(self.fleet.path("enqueue.log")).unwrap();
        Command::from(command)
            .envs(variables.iter().copied())
            .stdout(std::process::Stdio::null())
            .stderr(said)
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    /// What the last producer said.
    pub fn said_by_producer(&self) -> String {
        std::fs::read_to_string(self.fleet.path("enqueue.log")).unwrap_or_default()
    }

    /// The jobs of these images are expected to be accounted for.
    pub fn want(&mut self, images: std::ops::Range<usize>) {
        for n in images {
            self.want_job(&job(BATCH, n));
        }
    }

    /// This job, too.
    pub fn want_job(&mut self, job: &Job) {
        let Source::Url(url) = &job.image.source else { panic!("a job with a URL") };
        let results = job.models.iter().map(|model| job.result_id(model)).collect();
        self.wanted.insert(job.id, Wanted { url: url.clone(), results });
    }

    /// Jobs came past the producer, or what was counted of them was taken away: the batch's own count is not judged.
    pub fn uncounted(&mut self) {
        self.pardoned.push(|problem| matches!(problem, Problem::Uncounted(_)));
    }

    /// A moment of the run: so many results, drawn between these parts of all jobs.
    pub fn moment(&mut self, parts: std::ops::Range<f64>) -> usize {
        (self.chance.random_range(parts) * self.plan.jobs as f64) as usize
    }

    /// Waits until so many results have come.
    pub async fn results(&mut self, count: usize) {
        while self.collector.count() < count {
            if !self.collector.more(SILENCE).await {
                let came = self.collector.count();
                panic!("{}: silence after {came} results\n{}", self.again(), self.fleet.logs());
            }
        }
    }

    /// Puts jobs on the queue past the producer: of these images, as they are made from its job.
    pub async fn put(&mut self, images: std::ops::Range<usize>, made: impl Fn(Job) -> Job) {
        let jobs: Vec<Job> = images.map(|n| made(job(BATCH, n))).collect();
        jobs.iter().for_each(|job| self.want_job(job));
        self.fleet.queue.enqueue(jobs).await.unwrap();
        self.uncounted();
    }

    /// A proxy that the workers that start from now on reach the broker through.
    pub async fn broker_by_proxy(&mut self) -> FaultProxy {
        let (proxy, url) = proxied(&self.broker_url).await;
        self.fleet.rabbitmq_url = url;
        proxy
    }

    /// A proxy that the workers that start from now on reach Redis through.
    pub async fn redis_by_proxy(&mut self) -> FaultProxy {
        let (proxy, url) = proxied(&self.ledger_url).await;
        self.fleet.redis_url = url;
        proxy
    }

    /// The fault begins.
    pub fn strike(&mut self) {
        if self.collector.count() >= self.plan.jobs {
            self.problems.push("the fault came too late: everything was done".to_owned());
        }
        let now = unix_us();
        self.fault_us = Some((now, now));
    }

    /// The fault is over.
    pub fn relent(&mut self) {
        if let Some((_, end)) = &mut self.fault_us {
            *end = unix_us();
        }
    }

    /// How long after the fault calls came again, and as many as before.
    fn recovery(&self, arrivals: &[u64]) -> Option<String> {
        const SECOND: u64 = 1_000_000;
        let (begin, end) = self.fault_us?;
        let within = |from: u64| arrivals.iter().filter(|at| (from..from + SECOND).contains(*at)).count();
        let before = within(begin - SECOND);
        let mut after: Vec<u64> = arrivals.iter().copied().filter(|at| *at >= end).collect();
        after.sort_unstable();
        let first = after.first()?.saturating_sub(end) as f64 / 1e6;
        let full = after.iter().find(|at| within(**at) * 10 >= before * 8);
        let full = full.map(|at| format!("{:.1} s", (at - end) as f64 / 1e6));
        let full = full.unwrap_or_else(|| "not before the end".to_owned());
        Some(format!("calls again after {first:.1} s, at the full rate of {before}/s after {full}"))
    }

    /// Waits until one of these workers has ended by itself; answers which.
    pub async fn death(&mut self, among: &[usize]) -> usize {
        let deadline = Instant::now() + SILENCE;
        loop {
            if let Some(dead) = among.iter().find(|number| self.fleet.has_died(**number)) {
                return *dead;
            }
            assert!(
                Instant::now() < deadline,
                "{}: none of {among:?} has died\n{}",
                self.again(),
                self.fleet.logs()
            );
            sleep(LOOK).await;
        }
    }

    /// Waits until each of these results has come.
    pub async fn settled(&mut self, results: impl Iterator<Item = Id>) {
        let mut missing: BTreeSet<Id> = results.collect();
        let mut looked_at = 0;
        loop {
            for id in self.collector.ids_after(looked_at) {
                looked_at += 1;
                missing.remove(&id);
            }
            if missing.is_empty() {
                return;
            }
            if !self.collector.more(SILENCE).await {
                self.problems.push(format!("silence: {} results are missing", missing.len()));
                return;
            }
        }
    }

    /// Waits until a worker's log says something; answers whether the worker has ended by then.
    pub async fn said(&mut self, number: usize, text: &str) -> bool {
        let deadline = Instant::now() + SILENCE;
        loop {
            let said = self.fleet.log(number).contains(text);
            let ended = self.fleet.workers().contains(&number) && self.fleet.has_died(number);
            if said || ended || Instant::now() > deadline {
                if !said {
                    self.problems.push(format!("worker {number} never said {text}"));
                }
                return ended;
            }
            sleep(LOOK).await;
        }
    }

    /// Lets the run end, and judges it.
    pub async fn end(mut self) -> Report {
        let wanted: Vec<Id> = self.wanted.values().flat_map(|job| job.results.iter().copied()).collect();
        self.settled(wanted.into_iter()).await;
        let seconds = self.began.elapsed().as_secs_f64();
        let vhost = gather::vhost(&self.broker_url).to_owned();
        let left = gather::drained(&vhost).await;
        for number in self.fleet.workers() {
            if self.fleet.has_died(number) {
                if !self.mortal {
                    self.problems.push(format!("worker {number} has died"));
                }
                continue;
            }
            let (code, report) = self.fleet.terminate(number);
            if code != 0 {
                self.problems.push(format!("worker {number} ended with {code}: {report}"));
            }
        }
        let history = self.history(left).await;
        let logs = self.fleet.logs();
        let mut found = checker::check(&history);
        found.retain(|problem| !self.pardoned.iter().any(|pardons| pardons(problem)));
        let mut problems = summed_up(&found);
        problems.splice(0..0, self.problems);
        Report {
            name: self.name,
            plan: self.plan,
            figures: checker::figures(&history),
            logs,
            problems,
            notes: self.notes,
            seconds,
        }
    }

    /// Everything that is left of the run.
    async fn history(&mut self, left: Vec<(String, u64, u64)>) -> History {
        let mut history = History {
            wanted: std::mem::take(&mut self.wanted),
            left,
            policy: self.policy,
            ..History::default()
        };
        let queue = self.fleet.queue.clone();
        if let Err(error) = collecting::mark(&queue).await {
            self.problems.push(format!("the end can't be marked: {error}"));
            return history;
        }
        let received = self.collector.end().await.map(|all| all.into_iter().map(|one| one.seen).collect());
        history.received = self.or_problem(received);
        history.replayed = self.or_problem(collecting::replay(&queue).await);
        history.letters = self.or_problem(gather::letters(&self.broker_url).await);
        let lines = self.fleet.sandbox.access().await;
        let arrivals: Vec<u64> = lines.iter().map(|line| line.at_us).collect();
        self.notes.extend(self.recovery(&arrivals));
        history.calls = lines.into_iter().filter_map(CallSeen::of).collect();
        history.filed = self.or_problem(gather::filed(&self.fleet).await);
        let redis = self.redis().await;
        history.listed = self.or_problem(gather::listed(&*redis.ledger()).await);
        let progress = redis.batches().progress(&BATCH.parse().unwrap()).await;
        history.progress = self.or_problem(progress.map_err(|error| error.to_string()));
        history
    }

    fn or_problem<T: Default>(&mut self, found: Result<T, String>) -> T {
        found.unwrap_or_else(|why| {
            self.problems.push(why);
            T::default()
        })
    }

    /// A client of the ledger at the end, as an operator has one.
    async fn redis(&self) -> Redis {
        let (url, namespace) = (self.ledger_url.clone(), self.fleet.namespace().to_owned());
        let engine = Redis::start(&redis::Config { url, namespace, ..redis::Config::default() }).unwrap();
        engine.ready(SILENCE).await.unwrap();
        engine
    }

    /// The command that plays the same again.
    pub fn again(&self) -> String {
        again(self.name, self.plan)
    }
}

/// Every kind of problem, with a few examples.
fn summed_up(found: &[Problem]) -> Vec<String> {
    const EXAMPLES: usize = 3;
    let alike = |a: &Problem, b: &Problem| discriminant(a) == discriminant(b);
    let mut sentences = Vec::new();
    for kind in found.chunk_by(alike) {
        sentences.extend(kind.iter().take(EXAMPLES).map(ToString::to_string));
        if kind.len() > EXAMPLES {
            sentences.push(format!("and {} more like this", kind.len() - EXAMPLES));
        }
    }
    sentences
}

/// A proxy to the server of `url`, and the URL that leads through it.
async fn proxied(url: &str) -> (FaultProxy, String) {
    let (before, rest) = url.rsplit_once(':').unwrap();
    let (port, path) = rest.split_once('/').unwrap();
    let proxy = FaultProxy::start(port.parse().unwrap()).await;
    let url = format!("{before}:{}/{path}", proxy.port());
    (proxy, url)
}

fn unix_us() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or_default()
}

/// The command that plays a scenario again.
pub fn again(name: &str, plan: Plan) -> String {
    let Plan { seed, jobs, workers } = plan;
    format!("tests/faults --seed {seed} --jobs {jobs} --workers {workers} {name}")
}
