//! What the limiter costs its Redis, and how fast a hold-off is known: microseconds of the server a booking under three
//! limits, round trips a call, and the time until another process has heard.

use std::time::Duration;

use pixfleet_sandbox::{Latency, Settings};
use pixfleet_shared::{
    fleet::redis::{Config, Redis},
    limiter::{HoldOff, Limit, Order, Quota, RateLimiter, Reservation, Stack},
};
use pixfleet_tests::{
    fleet::{Fleet, KEY},
    private_redis::PrivateRedis,
};
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use crate::Figure;

const BOOKINGS: usize = 20_000;
const WORKERS: usize = 4;
const HOLD_OFFS: usize = 100;

pub(crate) async fn measure() -> Vec<Figure> {
    vec![
        script().await,
        round_trips(200, 1_000, "<= 1", 1.0).await,
        round_trips(1_000, 6_000, "<= 0.25", 0.25).await,
        hold_off().await,
    ]
}

/// The server's own count of what the scripts took.
async fn evalsha(server: &PrivateRedis) -> (u64, f64) {
    let info: String =
        redis::cmd("INFO").arg("commandstats").query_async(&mut server.connection().await).await.unwrap();
    let line = info.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default();
    let field = |name: &str| line.split([':', ',']).find_map(|part| part.strip_prefix(name)).unwrap_or("0");
    (field("calls=").parse().unwrap(), field("usec=").parse().unwrap())
}

async fn script() -> Figure {
    let server = PrivateRedis::start(&[]).await;
    let engine = Redis::start(&Config { url: server.url(), ..Config::default() }).unwrap();
    engine.ready(Duration::from_secs(5)).await.unwrap();
    let quota = |name: &str, quota| Limit { quota: Some(quota), ..Limit::per_second(name, 4_000_000) };
    let rate = Limit { burst: 1_000_000, ..Limit::per_second("rate", 2_000_000) };
    let limits = vec![rate, quota("day", Quota::Day), quota("month", Quota::Month)];
    let stack = Stack { name: "cost".into(), limits };
    let order = Order::of_models(&[1]);
    let mut booked = 0;
    let before = evalsha(&server).await;
    while booked < BOOKINGS {
        match engine.limiter().reserve(&stack, &order).await.unwrap() {
            Reservation::Slots(slots) => booked += slots.len(),
            Reservation::ComeBack(wait) => sleep_until(wait.ask_at).await,
        }
    }
    let after = evalsha(&server).await;
    let us = (after.1 - before.1) / (after.0 - before.0) as f64;
    let measured = format!("{us:.1} us of Redis a booking, {booked} of one call each");
    Figure::new("limiter, a rate and two quotas", measured, "< 50 us", us < 50.0, json!({"us": us}))
}

async fn round_trips(rate: u32, jobs: usize, demand: &'static str, most: f64) -> Figure {
    let server = PrivateRedis::start(&[]).await;
    let settings =
        Settings { keys: vec![KEY.into()], latency: Latency::Constant { ms: 20 }, ..Settings::default() };
    let provider =
        format!("limits = [{{ name = \"rate\", calls = {rate}, judge = \"bucket\", burst = 20 }}]");
    let mut fleet = Fleet::start(settings, &provider, "").await;
    fleet.redis_url = server.url();
    let mut subscriber = fleet.subscribe("bench").await;
    for _ in 0..WORKERS {
        let worker = fleet.start_worker();
        fleet.ready(worker).await;
    }
    let before = evalsha(&server).await.0;
    fleet.enqueue("bench", jobs).await;
    fleet.collect(&mut *subscriber, jobs).await;
    let trips = (evalsha(&server).await.0 - before) as f64 / fleet.sandbox.bill().total.calls as f64;
    let mut arrivals: Vec<u64> = fleet.sandbox.access().await.iter().map(|line| line.at_us).collect();
    arrivals.sort_unstable();
    let seconds = (arrivals[arrivals.len() - 1] - arrivals[0]) as f64 / 1e6;
    let reached = (arrivals.len() - 1) as f64 / seconds;
    let measured = format!("{trips:.3} of the limiter's round trips a call, {reached:.0} calls/s");
    let what = format!("limiter, {WORKERS} workers at {rate}/s");
    Figure::new(what, measured, demand, trips <= most, json!({"round_trips": trips, "calls_per_s": reached}))
}

async fn hold_off() -> Figure {
    let server = PrivateRedis::start(&[]).await;
    let config = Config { url: server.url(), ..Config::default() };
    let engines: Vec<Redis> = (0..WORKERS).map(|_| Redis::start(&config).unwrap()).collect();
    for engine in &engines {
        engine.ready(Duration::from_secs(5)).await.unwrap();
    }
    let stack =
        |round: usize| Stack { name: format!("held-{round}"), limits: vec![Limit::per_second("rate", 50)] };
    // Everybody has asked once, so everybody has a clock.
    for engine in &engines {
        engine.limiter().reserve(&stack(0), &Order::of_models(&[1])).await.unwrap();
    }
    let mut took = Vec::new();
    for round in 1..=HOLD_OFFS {
        let stack = stack(round);
        let begun = Instant::now();
        engines[0].limiter().hold_off(&stack, HoldOff::of(Duration::from_secs(60))).await.unwrap();
        while engines.iter().any(|engine| engine.limiter().held_until(&stack).is_none()) {
            sleep(Duration::from_micros(200)).await;
        }
        took.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    took.sort_by(f64::total_cmp);
    let (median, most) = (took[took.len() / 2], took[took.len() - 1]);
    let measured = format!(
        "known to {WORKERS} processes' limiters after {median:.1} ms, at most {most:.1} ms, of {HOLD_OFFS}"
    );
    let data = json!({"median_ms": median, "most_ms": most});
    Figure::new("limiter, a hold-off", measured, "< 100 ms", most < 100.0, data)
}
