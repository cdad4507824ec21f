//! What the limiter and the ledger cost their Redis: microseconds of the server a reservation, bytes a settled job.
//!
//! `tests/services run -- cargo run --release -p pixfleet-tests --example limiter_cost`
#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures_util::future::try_join_all;
use pixfleet_shared::{
    batch::Tally,
    fleet::redis::{Config, Redis},
    id::Id,
    ledger::{End, Mark},
    limiter::{Order, RateLimiter, Unit},
};
use pixfleet_tests::{
    conformance::limiter::{limit, stack},
    private_redis::PrivateRedis,
};
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

const RESERVATIONS: usize = 20_000;
const JOBS: usize = 200_000;
const AT_ONCE: usize = 50;

#[tokio::main]
async fn main() -> Result<()> {
    let server = PrivateRedis::start(&[]).await;
    let config = Config { url: server.url(), ..Config::default() };
    let engine = Redis::start(&config)?;
    engine.ready(Duration::from_secs(5)).await.map_err(|why| anyhow!(why))?;
    let mut connection = server.connection().await;

    let limits = ["second", "minute", "day"].map(|name| limit(name, 2_000_000, Unit::Call, 1_000_000));
    let stack = stack("cost", limits.to_vec());
    let limiter = engine.limiter();
    let began = Instant::now();
    let order = Order::of_models(&[1]);
    for _ in 0..RESERVATIONS / AT_ONCE {
        try_join_all((0..AT_ONCE).map(|_| limiter.reserve(&stack, &order))).await?;
    }
    let rate = RESERVATIONS as f64 / began.elapsed().as_secs_f64();
    let stats = info(&mut connection, "commandstats").await?;
    println!(
        "reserve, 3 limits, 1 call: {rate:.0}/s with {AT_ONCE} at once; cmdstat_evalsha:{}",
        field(&stats, "cmdstat_evalsha:")?
    );

    let before: u64 = field(&info(&mut connection, "memory").await?, "used_memory:")?.parse()?;
    let ledger = engine.ledger();
    for n in 0..JOBS {
        ledger.settled(settled(n));
        if n % AT_ONCE == 0 {
            ledger.flush().await;
        }
    }
    ledger.flush().await;
    let after: u64 = field(&info(&mut connection, "memory").await?, "used_memory:")?.parse()?;
    println!("ledger: {} bytes a settled job", (after - before) / JOBS as u64);
    Ok(())
}

async fn info(connection: &mut MultiplexedConnection, section: &str) -> Result<String> {
    Ok(redis::cmd("INFO").arg(section).query_async(connection).await?)
}

fn field<'a>(info: &'a str, name: &str) -> Result<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("INFO has no {name}"))
}

fn settled(n: usize) -> Mark {
    let job = Id::of(&[&n.to_be_bytes()]);
    let batch = "memory".parse().expect("a batch name");
    Mark { job, batch, turn: 0, tally: Tally { ok: 1, ..Tally::default() }, end: End::Done }
}
