//! The Lua script and the pure decision agree: on random stacks, requests and states, whole, lost, changed,
//! or left behind by a clock that was set back.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test, and says where")]

use std::collections::BTreeMap;

use pixfleet_shared::{
    fleet::redis::{Config, Redis},
    gcra::{Known, Moment, Pace, Probe, State, decide_at},
    judge,
    limiter::{Judge, Limit, Order, Quota, Stack, Unit, Weight},
    quota::{Count, Windows, zone},
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
            let calls = calls(&mut random, &stack);
            let costs: Vec<Vec<u64>> = calls.iter().map(|call| judge::costs(&stack, *call)).collect();
            let remembered = engine.limiter().remembered(&name);
            let (known, mut state) = read(&mut server, &key).await;
            let lost = known.as_deref() != Some(rid.as_str());

            let order = Order { calls: calls.clone(), ..Order::default() };
            let booking = engine.limiter().book(&stack, &order).await.unwrap();

            let moment = Moment { now_us: booking.now_us, lead_us: booking.lead_us, lost };
            let rules = judge::rules(&stack, booking.now_us, &remembered).unwrap();
            let expected = decide_at(moment, &mut state, &rules, &costs);
            let context = format!("seed {seed}, step {step}: {stack:?} {calls:?}");
            assert_eq!(booking.decision, expected, "{context}");
            assert_eq!((booking.lost, booking.held_until_us), (lost, state.held_until_us), "{context}");
            let (known, stored) = read(&mut server, &key).await;
            assert_eq!((known.as_deref(), stored), (Some(rid.as_str()), state), "{context}");
            *seen.entry(if lost { "lost" } else { "whole" }).or_default() += 1;
            let kind = format!("{expected:?}");
            *seen.entry(if kind.starts_with("Slots") { "slots" } else { "come back" }).or_default() += 1;
            for word in ["probe: true", "why: Probe", "why: HoldOff", "why: Rule"] {
                *seen.entry(word).or_default() += u32::from(kind.contains(word));
            }
            *seen.entry("quota").or_default() +=
                u32::from(stack.limits.iter().any(|limit| limit.quota.is_some()));
        }
    }
    // Each kind of decision was compared, and not only the easy ones.
    for kind in ["lost", "whole", "slots", "come back", "quota", "why: Rule"] {
        assert!(seen.get(kind).is_some_and(|count| *count > 50), "{kind}: {seen:?}");
    }
    for kind in ["probe: true", "why: Probe", "why: HoldOff"] {
        assert!(seen.get(kind).is_some_and(|count| *count > 5), "{kind}: {seen:?}");
    }
}

async fn replid(server: &mut MultiplexedConnection) -> String {
    let info: String = redis::cmd("INFO").arg("replication").query_async(server).await.unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("master_replid:"));
    line.unwrap().to_owned()
}

const QUOTAS: [(&str, Quota); 3] =
    [("hourly", Quota::Hour), ("monthly", Quota::Month), ("credits", Quota::Total)];

fn limits(random: &mut StdRng) -> Vec<Limit> {
    let mut limits = Vec::new();
    for (name, per_ms) in [("rate", 1_000), ("minute", 60_000), ("week", 604_800_000)] {
        if random.random_bool(0.5) {
            let calls = random.random_range(1..2_000);
            limits.push(Limit {
                per_ms,
                judge: [Judge::Sliding, Judge::Fixed, Judge::Bucket, Judge::Leaky][random.random_range(0..4)],
                unit: [Unit::Call, Unit::Model, Unit::Megabyte, Unit::Money][random.random_range(0..4)],
                burst: random.random_range(1..=calls.min(50)),
                jitter_ms: Some(random.random_range(0.0..20.0)),
                ..Limit::per_second(name, calls)
            });
        }
    }
    for (name, quota) in QUOTAS {
        if random.random_bool(0.3) {
            limits.push(Limit {
                quota: Some(quota),
                zone: Some("Asia/Kathmandu".to_owned()),
                unit: [Unit::Call, Unit::Model, Unit::Megabyte][random.random_range(0..3)],
                ..Limit::per_second(name, random.random_range(12..60))
            });
        }
    }
    limits
}

fn calls(random: &mut StdRng, stack: &Stack) -> Vec<Weight> {
    let heavy = |models| Weight {
        models,
        bytes: u64::from(models) * 250_000,
        price_micros: u64::from(models) * 1_500,
    };
    let most = (1..=12).rev().find(|models| judge::fits(stack, heavy(*models)).is_ok()).unwrap();
    (0..random.random_range(1..6)).map(|_| heavy(random.random_range(1..=most))).collect()
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
    if random.random_bool(0.15) {
        let until =
            if random.random_bool(0.5) { 1 } else { at - 2_000_000 + random.random_range(0..4_000_000) };
        fields.push(("pb".to_owned(), until.to_string()));
    }
    for (name, quota) in QUOTAS {
        if random.random_bool(0.8) {
            // Of this window, of the one before, or of other windows altogether.
            let back = if random.random_bool(0.3) { 3_600_000_000 } else { 0 };
            let zone = zone(Some("Asia/Kathmandu")).unwrap();
            let Windows { start_us, mut end_us, .. } = Windows::around(quota, &zone, now - back);
            if random.random_bool(0.1) {
                end_us += 1;
            }
            let used = random.random_range(0..60_000_000);
            let next = if random.random_bool(0.3) { random.random_range(0..9_000_000) } else { 0 };
            fields.push((format!("l:{name}"), format!("{start_us} {end_us} {used} {next}")));
        }
    }
    for name in ["rate", "minute", "week", "gone"] {
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
    let known = |text: &str| {
        let numbers: Vec<u64> = text.split(' ').map(|number| number.parse().unwrap()).collect();
        match numbers[..] {
            [tat_us, interval_us] => Known::Pace(Pace { tat_us, interval_us }),
            [start_us, end_us, used, next] => Known::Count(Count { start_us, end_us, used, next }),
            _ => panic!("{text}"),
        }
    };
    let state = State {
        at_us: number("at"),
        held_until_us: number("nb"),
        probe: match number("pb") {
            0 => Probe::None,
            1 => Probe::Due,
            until => Probe::Out(until),
        },
        known: fields
            .iter()
            .filter_map(|(name, text)| Some((name.strip_prefix("l:")?.to_owned(), known(text))))
            .collect(),
    };
    (fields.get("rid").cloned(), state)
}
