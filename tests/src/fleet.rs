//! A fleet under test: a sandbox that judges, real worker processes, and a subscriber that counts. On servers, or on one
//! state file.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use pixfleet_sandbox::{Running, Sandbox};
use pixfleet_shared::{
    embedded::Embedded,
    fleet::{
        rabbit::{Config, RabbitQueue},
        redis::{self, Redis},
    },
    id::Id,
    job::{Image, Job, Source},
    limiter::RateLimiter,
    queue::{Filter, From, Queue, Subscriber, Subscription},
    result::{Announcement, ImageResult},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{net::TcpListener, time::timeout};

use crate::servers;

/// The sandbox's key; no log, result or report may hold it.
pub const KEY: &str = "hush-hush-3141";

/// The longest silence of a results subscriber that still counts as going on.
const PATIENCE: Duration = Duration::from_secs(20);

/// One sandbox, one virtual host, one namespace in Redis, and any number of worker processes.
pub struct Fleet {
    /// The API.
    pub sandbox: Running,
    /// The engine, for the test's own side.
    pub queue: Arc<dyn Queue>,
    /// The broker's URL; none on a state file.
    pub rabbitmq_url: String,
    /// The Redis of the workers that start from now on: the private one of all tests, unless a test brings its own.
    pub redis_url: String,
    /// Whether the workers' Redis is the one of their settings file instead.
    pub without_redis: bool,
    workers: Vec<Option<Worker>>,
    /// The state file, and its engine, where there are no servers.
    state: Option<(PathBuf, Embedded)>,
    namespace: String,
    folder: TempDir,
}

struct Worker {
    process: Child,
    admin: String,
}

impl Fleet {
    /// Starts a sandbox and writes the workers' settings: `provider` is TOML below `[providers.sandbox]`, beside
    /// `preset = "generic"` and the endpoint; `worker` is TOML of further sections. `${sandbox}` stands for the sandbox's URL.
    pub async fn start(settings: pixfleet_sandbox::Settings, provider: &str, worker: &str) -> Self {
        let sandbox = sandbox(settings).await;
        let endpoint = sandbox.url();
        Self::behind(sandbox, &endpoint, provider, worker).await
    }

    /// The same with a sandbox that runs already, and workers that call `endpoint`: a gateway before it, say.
    pub async fn behind(sandbox: Running, endpoint: &str, provider: &str, worker: &str) -> Self {
        let rabbitmq_url = servers::fresh_rabbitmq_url();
        let config = Config { url: rabbitmq_url.clone(), ..Config::default() };
        let queue = RabbitQueue::connect(config).await.unwrap();
        let folder = TempDir::new().unwrap();
        settle(&folder, &sandbox, endpoint, provider, worker);
        Self {
            sandbox,
            queue,
            rabbitmq_url,
            redis_url: servers::redis_url(),
            without_redis: false,
            workers: Vec::new(),
            state: None,
            namespace: servers::fresh_name("fleet"),
            folder,
        }
    }

    /// The same on one state file, with no server.
    pub async fn on_one_machine(settings: pixfleet_sandbox::Settings, provider: &str, worker: &str) -> Self {
        let (sandbox, folder) = (sandbox(settings).await, TempDir::new().unwrap());
        let path = folder.path().join("fleet.pixfleet");
        let embedded = Embedded::open(&path).await.unwrap();
        settle(&folder, &sandbox, &sandbox.url(), provider, worker);
        Self {
            sandbox,
            queue: embedded.queue(),
            rabbitmq_url: String::new(),
            redis_url: String::new(),
            without_redis: true,
            workers: Vec::new(),
            state: Some((path, embedded)),
            namespace: servers::fresh_name("fleet"),
            folder,
        }
    }

    /// Writes other settings, with another endpoint, for the workers that start from now on.
    pub fn settle(&self, endpoint: &str, provider: &str, worker: &str) {
        settle(&self.folder, &self.sandbox, endpoint, provider, worker);
    }

    /// A `pixfleet` command with this fleet's settings and servers.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(pixfleet());
        // What tests/services and the benchmark read from there is none of pixfleet's settings.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PIXFLEET_")) {
            command.env_remove(name);
        }
        command
            .args(arguments)
            .arg("--config")
            .arg(self.folder.path().join("pixfleet.toml"))
            .env("PIXFLEET_RABBITMQ_URL", &self.rabbitmq_url)
            .env("PIXFLEET_REDIS_NAMESPACE", &self.namespace)
            .env("GENERIC_API_KEY", KEY)
            .env("XDG_STATE_HOME", self.folder.path());
        match &self.state {
            Some((state, _)) => command.arg("--state").arg(state),
            None if self.without_redis => command.env_remove("PIXFLEET_REDIS_URL"),
            None => command.env("PIXFLEET_REDIS_URL", &self.redis_url),
        };
        command
    }

    /// A client of the fleet's limiter, as an operator has one.
    pub async fn limiter(&self) -> Arc<dyn RateLimiter> {
        let namespace = self.namespace.clone();
        let config = redis::Config { url: self.redis_url.clone(), namespace, ..redis::Config::default() };
        let engine = Redis::start(&config).unwrap();
        engine.ready(PATIENCE).await.unwrap();
        engine.limiter()
    }

    /// Starts a worker process and returns its number. It works as soon as its servers answer.
    pub fn start_worker(&mut self) -> usize {
        let number = self.workers.len();
        let admin = free_address();
        let process = self
            .command(&["worker", "--json"])
            .env("PIXFLEET_ADMIN_LISTEN", &admin)
            .env("PIXFLEET_WORKER_NAME", format!("w{number}"))
            .stdout(Stdio::piped())
            .stderr(File::create(self.log_path(number)).unwrap())
            .spawn()
            .unwrap();
        self.workers.push(Some(Worker { process, admin }));
        number
    }

    /// Waits until the worker says that it is ready.
    pub async fn ready(&self, number: usize) {
        self.page_with(number, "/readyz", "HTTP/1.1 200").await;
    }

    /// A page of the worker's admin address, once it holds `text`.
    pub async fn page_with(&self, number: usize, path: &str, text: &str) -> String {
        let page = async {
            loop {
                match self.page(number, path).await {
                    Some(page) if page.contains(text) => return page,
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let page = timeout(PATIENCE, page).await;
        page.unwrap_or_else(|_| {
            panic!("worker {number} never answered {path} with {text}:\n{}", self.log(number))
        })
    }

    /// A page of the worker's admin address.
    pub async fn page(&self, number: usize, path: &str) -> Option<String> {
        get(&self.worker(number).admin.clone(), path).await
    }

    /// Ends a worker without a warning.
    pub fn kill(&mut self, number: usize) {
        let mut worker = self.workers[number].take().expect("a running worker");
        worker.process.kill().unwrap();
        worker.process.wait().unwrap();
    }

    /// Asks a worker to drain, and returns its exit code and report.
    pub fn terminate(&mut self, number: usize) -> (i32, Value) {
        let mut worker = self.workers[number].take().expect("a running worker");
        let told = Command::new("kill").args(["-TERM", &worker.process.id().to_string()]).status().unwrap();
        assert!(told.success());
        let code = worker.process.wait().unwrap().code().unwrap_or(-1);
        let mut report = String::new();
        worker.process.stdout.take().unwrap().read_to_string(&mut report).unwrap();
        let report = serde_json::from_str(&report)
            .unwrap_or_else(|error| panic!("no report ({error}): {report}\n{}", self.log(number)));
        (code, report)
    }

    /// The most memory that a worker had resident, in bytes.
    pub fn peak_memory(&self, number: usize) -> u64 {
        peak_memory(self.worker(number).process.id())
    }

    /// A worker's process.
    pub fn process(&self, number: usize) -> u32 {
        self.worker(number).process.id()
    }

    /// Where a worker's admin pages are.
    pub fn admin(&self, number: usize) -> &str {
        &self.worker(number).admin
    }

    /// A worker's log.
    pub fn log(&self, number: usize) -> String {
        std::fs::read_to_string(self.log_path(number)).unwrap_or_default()
    }

    /// A file in this fleet's own folder.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        File::create(&path).unwrap().write_all(content.as_bytes()).unwrap();
        path
    }

    /// Puts `n` jobs of one model on the queue.
    pub async fn enqueue(&self, batch: &str, n: usize) -> Vec<Job> {
        let jobs: Vec<Job> = (0..n).map(|n| job(batch, n)).collect();
        for chunk in jobs.chunks(500) {
            self.queue.enqueue(chunk.to_vec()).await.unwrap();
        }
        jobs
    }

    /// Puts jobs of one model on the queue, in the lane that the queue gives to a new batch of the class of `like`, with
    /// its weight and budget. Their images are numbered from `first` on.
    pub async fn enqueue_like(&self, like: &Job, first: usize, n: usize) -> Vec<Job> {
        let lane = self.queue.open_lane(like.priority).await.unwrap();
        let (priority, weight, budget) = (like.priority, like.weight, like.budget);
        let one = |n| Job { priority, lane, weight, budget, ..job(like.batch.as_str(), n) };
        let jobs: Vec<Job> = (first..first + n).map(one).collect();
        for chunk in jobs.chunks(500) {
            self.queue.enqueue(chunk.to_vec()).await.unwrap();
        }
        jobs
    }

    /// Subscribes before anything happens.
    pub async fn subscribe(&self, batch: &str) -> Box<dyn Subscriber> {
        let filter = Filter { batch: Some(batch.parse().unwrap()), ..Filter::default() };
        let subscription = Subscription { name: Some(servers::fresh_name("sub")), from: From::Now, filter };
        self.queue.subscribe(subscription).await.unwrap()
    }

    /// Subscribes to every batch.
    pub async fn subscribe_to_all(&self) -> Box<dyn Subscriber> {
        let subscription = Subscription {
            name: Some(servers::fresh_name("sub")),
            from: From::Now,
            filter: Filter::default(),
        };
        self.queue.subscribe(subscription).await.unwrap()
    }

    /// Receives until every expected result was seen; returns them by id, and how many repetitions came.
    pub async fn collect(
        &self,
        subscriber: &mut dyn Subscriber,
        expected: usize,
    ) -> (BTreeMap<Id, ImageResult>, usize) {
        let (mut seen, mut repetitions) = (BTreeMap::new(), 0);
        while seen.len() < expected {
            let next = timeout(PATIENCE, subscriber.next()).await;
            let Ok(announcement) = next else {
                panic!("silence after {} of {expected} results\n{}", seen.len(), self.logs())
            };
            if let Announcement::Result(result, _) = announcement.unwrap()
                && seen.insert(result.id, *result).is_some()
            {
                repetitions += 1;
            }
            // A durable subscriber is sent only so much ahead of its commits.
            if seen.len() % 100 == 0 {
                subscriber.commit().await.unwrap();
            }
        }
        subscriber.commit().await.unwrap();
        (seen, repetitions)
    }

    /// Every worker's log.
    pub fn logs(&self) -> String {
        (0..self.workers.len()).map(|number| format!("--- worker {number}\n{}", self.log(number))).collect()
    }

    fn worker(&self, number: usize) -> &Worker {
        self.workers[number].as_ref().expect("a running worker")
    }

    fn log_path(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("worker-{number}.log"))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for worker in self.workers.iter_mut().flatten() {
            let _ = worker.process.kill();
            let _ = worker.process.wait();
        }
    }
}

async fn sandbox(settings: pixfleet_sandbox::Settings) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Sandbox::start(listener, settings).unwrap()
}

/// Writes the workers' settings into `folder`.
fn settle(folder: &TempDir, sandbox: &Running, endpoint: &str, provider: &str, worker: &str) {
    // A further provider's endpoint is not known to whoever writes its table.
    let provider = provider.replace("${sandbox}", &sandbox.url());
    let toml = format!(
        "{worker}\n[providers.sandbox]\npreset = \"generic\"\nendpoint = \"{endpoint}\"\n{provider}\n"
    );
    std::fs::write(folder.path().join("pixfleet.toml"), toml).unwrap();
}

/// The job of image number `n`, one model.
pub fn job(batch: &str, n: usize) -> Job {
    let image = Image { id: format!("i{n}"), source: Source::Url(image_url(n)) };
    Job::new(batch.parse().unwrap(), image, "sandbox".into(), vec!["m".into()])
}

/// The URL of image number `n`.
pub fn image_url(n: usize) -> String {
    format!("http://images.example/{n}.jpg")
}

/// The binary under test, built beside this test.
pub fn pixfleet() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().find(|folder| folder.join("pixfleet").is_file());
    let missing =
        "no `pixfleet` beside the tests: build it first, as tests/run does (`cargo build -p pixfleet-cli`)";
    profile.expect(missing).join("pixfleet")
}

/// The most memory that a process had resident, in bytes.
pub fn peak_memory(process: u32) -> u64 {
    let status =
        std::fs::read_to_string(Path::new("/proc").join(process.to_string()).join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// The most moments (in microseconds) that lie within any one window. An access log has them in the order of the answers.
pub fn busiest(moments: &[u64], window_us: u64) -> usize {
    let mut moments = moments.to_vec();
    moments.sort_unstable();
    let mut first = 0;
    let mut most = 0;
    for (last, moment) in moments.iter().enumerate() {
        while moment - moments[first] >= window_us {
            first += 1;
        }
        most = most.max(last - first + 1);
    }
    most
}

fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

async fn get(address: &str, path: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let asked = async {
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    };
    timeout(Duration::from_secs(5), asked).await.ok().flatten()
}
