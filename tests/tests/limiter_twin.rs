//! The Lua script and the pure decision agree: on random stacks, requests and states, whole, lost, changed,
//! or left behind by a clock that was set back.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test, and says where")]

use std::collections::BTreeMap;

use pixfleet_shared::{
    fleet::redis::{Config, Redis},
    gcra::{Moment, Pace, State, decide_at},
    judge,
    limiter::{Judge, Limit, Stack, Unit},
};
use pixfleet_tests::{
    private_redis::connection,
    servers::{fresh_name, redis_url},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use redis::{AsyncCommands, aio::MultiplexedConnection};

const TRACES: u64 = 150;
const STEPS: usize = 6;

#[tokio::test]
async fn the_script_decides_as_the_pure_function_does() {
    let url = redis_url();
    let config = Config { url: url.clone(), namespace: fresh_name("twin"), ..Config::default() };
    let engine = Redis::start(&config).unwrap();
    engine.ready(std::time::Duration::from_secs(20)).await.unwrap();
    let mut server = connection(&url).await;
    let rid = replid(&mut server).await;
    let mut seen = BTreeMap::<&str, u32>::new();
    for seed in 0..TRACES {
        let mut random = StdRng::seed_from_u64(seed);
        let (mut name, mut key) = (String::new(), String::new());
        for step in 0..STEPS {
            if step == 0 || random.random_bool(0.2) {
                // Of a stack that it knows the engine would remember the hold-off.
                name = format!("stack-{seed}-{step}");
                key = engine.limiter().key(&name);
                plant(&mut random, &mut server, &key, &rid).await;
            }
            let stack = Stack { name: name.clone(), limits: limits(&mut random) };
            let spacings = judge::spacings(&stack).unwrap();
            let calls = calls(&mut random, &stack);
            let (known, mut state) = read(&mut server, &key).await;
            let lost = known.as_deref() != Some(rid.as_str());

            let booking = engine.limiter().book(&stack, &calls).await.unwrap();

            let moment = Moment { now_us: booking.now_us, lead_us: booking.lead_us, lost };
            let expected = decide_at(moment, &mut state, &spacings, &calls);
            let context = format!("seed {seed}, step {step}: {stack:?} {calls:?}");
            assert_eq!(booking.decision, expected, "{context}");
            assert_eq!((booking.lost, booking.held_until_us), (lost, state.held_until_us), "{context}");
            let (known, stored) = read(&mut server, &key).await;
            assert_eq!((known.as_deref(), stored), (Some(rid.as_str()), state), "{context}");
            *seen.entry(if lost { "lost" } else { "whole" }).or_default() += 1;
            let kind = format!("{expected:?}");
            *seen.entry(if kind.starts_with("Slots") { "slots" } else { "come back" }).or_default() += 1;
        }
    }
    // Each kind of decision was compared, and not only the easy ones.
    for kind in ["lost", "whole", "slots", "come back"] {
        assert!(seen.get(kind).is_some_and(|count| *count > 50), "{seen:?}");
    }
}

async fn replid(server: &mut MultiplexedConnection) -> String {
    let info: String = redis::cmd("INFO").arg("replication").query_async(server).await.unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("master_replid:"));
    line.unwrap().to_owned()
}

fn limits(random: &mut StdRng) -> Vec<Limit> {
    let mut limits = Vec::new();
    for (name, per_ms) in [("rate", 1_000), ("minute", 60_000), ("day", 86_400_000)] {
        if random.random_bool(0.6) {
            let calls = random.random_range(1..2_000);
            limits.push(Limit {
                name: name.to_owned(),
                calls,
                per_ms,
                judge: [Judge::Sliding, Judge::Fixed, Judge::Bucket, Judge::Leaky][random.random_range(0..4)],
                unit: if random.random_bool(0.5) { Unit::Model } else { Unit::Call },
                burst: random.random_range(1..=calls.min(50)),
                jitter_ms: random.random_range(0.0..20.0),
            });
        }
    }
    limits
}

fn calls(random: &mut StdRng, stack: &Stack) -> Vec<u32> {
    let most = (1..=12).rev().find(|models| judge::fits(stack, *models).is_ok()).unwrap();
    (0..random.random_range(1..6)).map(|_| random.random_range(1..=most)).collect()
}

/// Writes a state as some history may have left it, or none.
async fn plant(random: &mut StdRng, server: &mut MultiplexedConnection, key: &str, rid: &str) {
    if random.random_bool(0.15) {
        return;
    }
    let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(server).await.unwrap();
    let now = seconds * 1_000_000 + micros;
    let at = if random.random_bool(0.15) { now + random.random_range(0..3_600_000_000) } else { now - 1 };
    let mut fields = vec![("at".to_owned(), at.to_string())];
    fields.push(("rid".to_owned(), if random.random_bool(0.1) { "0".repeat(40) } else { rid.to_owned() }));
    if random.random_bool(0.3) {
        fields.push(("nb".to_owned(), (at - 500_000 + random.random_range(0..2_000_000)).to_string()));
    }
    for name in ["rate", "minute", "day", "gone"] {
        if random.random_bool(0.8) {
            let tat = at - 2_000_000 + random.random_range(0..3_500_000);
            fields.push((format!("l:{name}"), format!("{tat} {}", random.random_range(500..90_000_000))));
        }
    }
    let _: () = server.hset_multiple(key, &fields).await.unwrap();
}

/// The replid and the state that the key holds.
async fn read(server: &mut MultiplexedConnection, key: &str) -> (Option<String>, State) {
    let fields: BTreeMap<String, String> = server.hgetall(key).await.unwrap();
    let number = |name: &str| fields.get(name).map_or(0, |text| text.parse().unwrap());
    let pace = |text: &str| {
        let (tat, interval) = text.split_once(' ').unwrap();
        Pace { tat_us: tat.parse().unwrap(), interval_us: interval.parse().unwrap() }
    };
    let state = State {
        at_us: number("at"),
        held_until_us: number("nb"),
        pace: fields
            .iter()
            .filter_map(|(name, text)| Some((name.strip_prefix("l:")?.to_owned(), pace(text))))
            .collect(),
    };
    (fields.get("rid").cloned(), state)
}
