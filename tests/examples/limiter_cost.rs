//! What the limiter and the ledger cost their Redis: microseconds of the server, and bytes of its memory.
//!
//! `tests/services run -- cargo run --release -p pixfleet-tests --example limiter_cost [SETTLED JOBS]`
#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures_util::future::try_join_all;
use pixfleet_shared::{
    answers::Kept,
    batch::Tally,
    fleet::redis::{Config, Redis},
    id::Id,
    job::Job,
    ledger::{Answered, End, Known, Mark},
    limiter::{Order, RateLimiter, Unit},
};
use pixfleet_tests::{
    conformance::{
        ledger::{intent, job, settlement},
        limiter::{limit, stack},
    },
    private_redis::PrivateRedis,
};
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, interval, sleep};

const RESERVATIONS: usize = 20_000;
const JOBS: usize = 1_000_000;
const CALLS: usize = 20_000;
const AT_ONCE: usize = 50;
/// As long as names are: the bytes of a key count.
const BATCH: &str = "listings";

#[tokio::main]
async fn main() -> Result<()> {
    let jobs = std::env::args().nth(1).map_or(Ok(JOBS), |jobs| jobs.parse())?;
    let server = PrivateRedis::start(&[]).await;
    let config = Config { url: server.url(), ..Config::default() };
    let engine = Redis::start(&config)?;
    engine.ready(Duration::from_secs(5)).await.map_err(|why| anyhow!(why))?;
    let mut server = Meter { connection: server.connection().await, before: 0 };

    reservations(&engine, &mut server).await?;
    calls(&engine, &mut server, 0).await?;
    for rate in [10, 100, 400] {
        trips(&engine, rate).await?;
    }
    for of_batch in [1_000, 10_000, 100_000, 1_000_000] {
        settled(&engine, &mut server, of_batch.clamp(jobs.min(100_000), jobs), of_batch).await?;
    }
    println!("calls in that last batch:");
    calls(&engine, &mut server, CALLS).await?;
    answers(&engine, &mut server).await
}

async fn reservations(engine: &Redis, server: &mut Meter) -> Result<()> {
    let limits = ["second", "minute", "day"].map(|name| limit(name, 2_000_000, Unit::Call, 1_000_000));
    let stack = stack("cost", limits.to_vec());
    let (limiter, order) = (engine.limiter(), Order::of_models(&[1]));
    server.begin().await?;
    let began = Instant::now();
    for _ in 0..RESERVATIONS / AT_ONCE {
        try_join_all((0..AT_ONCE).map(|_| limiter.reserve(&stack, &order))).await?;
    }
    let rate = RESERVATIONS as f64 / began.elapsed().as_secs_f64();
    server.end(&format!("reserve, 3 limits, 1 call, {AT_ONCE} at once ({rate:.0}/s)"), RESERVATIONS).await
}

/// Calls that depart, are answered, and are settled, a phase at a time: what each takes.
async fn calls(engine: &Redis, server: &mut Meter, from: usize) -> Result<()> {
    let ledger = engine.ledger();
    let jobs: Vec<Job> = (from..from + CALLS).map(numbered).collect();
    server.begin().await?;
    for some in jobs.chunks(AT_ONCE) {
        let known = try_join_all(some.iter().map(|job| async { ledger.depart(&intent(job)).await })).await?;
        anyhow::ensure!(known.iter().all(|known| *known == Known::Clear), "a call was not clear");
    }
    let bytes = serde_json::to_vec(&intent(&jobs[0]))?.len();
    server.end(&format!("a call under way, its intent of {bytes} bytes"), CALLS).await?;
    server.begin().await?;
    for some in jobs.chunks(AT_ONCE) {
        some.iter().for_each(|job| ledger.answered(&intent(job), Answered::Paid(settlement(job))));
        ledger.flush().await;
    }
    let bytes = serde_json::to_vec(&settlement(&jobs[0]))?.len();
    server.end(&format!("an answer in its place, of {bytes} bytes"), CALLS).await?;
    server.begin().await?;
    for some in jobs.chunks(AT_ONCE) {
        some.iter().for_each(|job| ledger.settled(done(job)));
        ledger.flush().await;
    }
    server.end("a settled turn in its place", CALLS).await?;
    Ok(())
}

/// Calls as a worker makes them, so many a second, each of 30 ms: how many round trips they share.
async fn trips(engine: &Redis, rate: u32) -> Result<()> {
    let ledger = engine.ledger();
    let mut ticks = interval(Duration::from_secs(1) / rate);
    let before = engine.ledger_trips();
    let mut calls = Vec::new();
    for n in 0..rate * 5 {
        ticks.tick().await;
        let (ledger, job) = (ledger.clone(), numbered((rate as usize) << 32 | n as usize));
        calls.push(tokio::spawn(async move {
            ledger.depart(&intent(&job)).await?;
            sleep(Duration::from_millis(30)).await;
            ledger.answered(&intent(&job), Answered::Paid(settlement(&job)));
            sleep(Duration::from_millis(5)).await;
            ledger.settled(done(&job));
            Ok::<_, anyhow::Error>(())
        }));
    }
    for call in &mut calls {
        call.await??;
    }
    ledger.flush().await;
    let trips = (engine.ledger_trips() - before) as f64 / calls.len() as f64;
    println!("{rate} calls a second of one process: {trips:.2} round trips of the ledger a call");
    Ok(())
}

async fn settled(engine: &Redis, server: &mut Meter, jobs: usize, of_batch: usize) -> Result<()> {
    let ledger = engine.ledger();
    server.begin().await?;
    for n in 0..jobs {
        let job = Id::of(&[&n.to_be_bytes(), &of_batch.to_be_bytes()]);
        let batch = format!("{BATCH}-{:05}", n / of_batch).parse()?;
        ledger.settled(Mark { job, batch, turn: 0, tally: one(), end: End::Done });
        if n % 10_000 == 0 {
            ledger.flush().await;
        }
    }
    ledger.flush().await;
    server.end(&format!("a settled job, {jobs} in batches of {of_batch}"), jobs).await
}

async fn answers(engine: &Redis, server: &mut Meter) -> Result<()> {
    let (ledger, answers) = (engine.ledger(), engine.answers());
    let result = settlement(&numbered(0)).results.remove(0);
    let answer = result.answer.context("an answer")?;
    let kept = Kept { answer, call: result.id, at: result.completed_at };
    let keys: Vec<Id> = (0..CALLS).map(|n| Id::of(&[b"answer", &n.to_be_bytes()])).collect();
    server.begin().await?;
    for some in keys.chunks(AT_ONCE) {
        answers.recall(some, Duration::from_secs(600)).await?;
        some.iter().for_each(|key| answers.keep(*key, kept.clone(), Duration::from_secs(86_400)));
    }
    ledger.flush().await;
    let bytes = serde_json::to_vec(&kept)?.len();
    server.end(&format!("an answer that is kept, of {bytes} bytes, and its claim"), CALLS).await
}

fn numbered(n: usize) -> Job {
    let id = Id::of(&[b"numbered", &n.to_be_bytes()]);
    Job { id, batch: format!("{BATCH}-00000").parse().expect("a batch name"), ..job(BATCH, 0) }
}

fn one() -> Tally {
    Tally { ok: 1, ..Tally::default() }
}

fn done(job: &Job) -> Mark {
    Mark { job: job.id, batch: job.batch.clone(), turn: job.turn(), tally: one(), end: End::Done }
}

/// What the server says of itself, before and after.
struct Meter {
    connection: MultiplexedConnection,
    before: i64,
}

impl Meter {
    async fn begin(&mut self) -> Result<()> {
        redis::cmd("CONFIG").arg("RESETSTAT").exec_async(&mut self.connection).await?;
        self.before = self.memory().await?;
        Ok(())
    }

    async fn end(&mut self, what: &str, of: usize) -> Result<()> {
        let bytes = (self.memory().await? - self.before) as f64 / of as f64;
        let stats = self.info("commandstats").await?;
        let of_command = |name: &str| {
            let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{name}:")))?;
            let number =
                |field: &str| line.split(',').find_map(|word| word.strip_prefix(field)?.parse::<f64>().ok());
            Some((number("calls=")?, number("usec=")?))
        };
        // What a script does is counted in its call, and once more by the command.
        let (calls, us) =
            of_command("evalsha").or_else(|| of_command("set")).context("no command was counted")?;
        println!(
            "{what}: {bytes:+.0} bytes and {:.1} us of the server each, in {calls:.0} commands",
            us / of as f64
        );
        Ok(())
    }

    async fn memory(&mut self) -> Result<i64> {
        let memory = self.info("memory").await?;
        let used = memory.lines().find_map(|line| line.strip_prefix("used_memory:"));
        Ok(used.context("INFO has no used_memory")?.parse()?)
    }

    async fn info(&mut self, section: &str) -> Result<String> {
        Ok(redis::cmd("INFO").arg(section).query_async(&mut self.connection).await?)
    }
}
