//! The promises of a rate limiter. `fleet` is two or more clients of one limiter, as processes of one fleet are.
//!
//! Every function uses stacks whose names begin with `test`, so that suites can share a server.

use std::time::Duration;

use futures_util::future::join_all;
use pixfleet_shared::{
    judge,
    limiter::{
        Amendment, Change, HoldOff, Judge, Limit, LimiterError, Numbers, Order, Quota, RateLimiter,
        Reservation, Slot, Stack, Unit, Weight, Why,
    },
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// No step of the suite may take longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A limit of `calls` a second under the sliding judge.
pub fn limit(name: &str, calls: u32, unit: Unit, burst: u32) -> Limit {
    Limit { unit, burst, jitter_ms: Some(8.0), ..Limit::per_second(name, calls) }
}

/// A stack of one limit of `calls` a second.
pub fn per_second(name: &str, calls: u32) -> Stack {
    stack(name, vec![limit("rate", calls, Unit::Call, 1)])
}

/// A stack of these limits.
pub fn stack(name: &str, limits: Vec<Limit>) -> Stack {
    Stack { name: name.to_owned(), limits }
}

/// Slots for the first of `calls`, waiting for the limiter as a worker does, through whatever befalls its server.
pub async fn slots(client: &dyn RateLimiter, stack: &Stack, calls: &[u32]) -> Vec<Slot> {
    let ask = async {
        loop {
            match client.reserve(stack, &Order::of_models(calls)).await {
                Ok(Reservation::Slots(slots)) => return slots,
                Ok(Reservation::ComeBack(wait)) => sleep_until(wait.ask_at).await,
                Err(LimiterError::Away(_)) => sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    timeout(PATIENCE, ask).await.expect("a slot within 20 s")
}

/// Each client books one call of `models` models after the other, until the fleet has so many of them: as
/// greedily as it may. Every slot, in order.
pub async fn greedy(fleet: &[&dyn RateLimiter], stack: &Stack, models: u32, calls: usize) -> Vec<Instant> {
    let share = calls.div_ceil(fleet.len());
    let clients = fleet.iter().map(|client| async move {
        let mut booked = Vec::new();
        while booked.len() < share {
            let more = slots(*client, stack, &[models; 3]).await;
            booked.extend(more.into_iter().map(|slot| slot.at));
        }
        booked
    });
    let mut all = join_all(clients).await.concat();
    all.sort_unstable();
    all
}

/// Fails when more than `n` of `moments` (in order) are in any one second.
pub fn assert_never_above(n: usize, moments: &[Instant]) {
    assert!(moments.len() > n, "{} moments can't break a limit of {n}", moments.len());
    for window in moments.windows(n + 1) {
        let span = window[n] - window[0];
        assert!(span >= Duration::from_secs(1), "{} calls within {span:?}", n + 1);
    }
}

/// However many clients ask at once, no second ever holds more than its calls, and none is given away.
pub async fn no_window_holds_more_than_its_calls(test: &str, fleet: &[&dyn RateLimiter]) {
    let stack = per_second(&format!("{test}.rate"), 20);
    let moments = greedy(fleet, &stack, 1, 60).await;
    assert_never_above(20, &moments);
    let span = moments[moments.len() - 1] - moments[0];
    let used = (moments.len() - 1) as f64 / span.as_secs_f64() / 20.0;
    assert!(used > 0.9, "only {used:.3} of the limit was booked");
}

/// A call takes from a limit on models what it has of them, and from one on calls one.
pub async fn a_call_takes_its_models_from_a_limit_on_models(test: &str, fleet: &[&dyn RateLimiter]) {
    let limits = vec![limit("models", 24, Unit::Model, 6), limit("calls", 10, Unit::Call, 1)];
    let stack = stack(&format!("{test}.models"), limits);
    let moments = greedy(fleet, &stack, 6, 12).await;
    assert_never_above(4, &moments);
    let light = greedy(fleet, &stack, 1, 30).await;
    assert_never_above(10, &light);
}

/// Slots come in the order of the calls, none in the past, and none further than the horizon of a second.
pub async fn slots_come_in_order_and_soon(test: &str, client: &dyn RateLimiter) {
    let stack = per_second(&format!("{test}.order"), 50);
    let before = Instant::now();
    let booked = slots(client, &stack, &[1, 1, 1]).await;
    let after = Instant::now();
    assert!((1..=3).contains(&booked.len()));
    assert!(booked.is_sorted_by(|one, next| one.at < next.at), "{booked:?}");
    assert!(booked.iter().all(|slot| slot.at > before));
    assert!(booked.iter().all(|slot| slot.at <= after + Duration::from_millis(1_100)));
}

/// A call that says that it leaves late moves what is booked after it, on every client.
pub async fn what_is_booked_after_a_late_call_makes_room(test: &str, fleet: &[&dyn RateLimiter]) {
    let stack = per_second(&format!("{test}-late"), 10);
    let spacing = Duration::from_micros(judge::spacing(&stack.limits[0]).interval_us);
    let by = Duration::from_millis(40);
    let before = slots(fleet[0], &stack, &[1]).await[0].at;
    fleet[0].late(&stack, by).await.unwrap();
    let after = slots(fleet[1], &stack, &[1]).await[0].at;
    // Two clients know the server's clock to within half a round trip each.
    let blur = Duration::from_millis(5);
    assert!(after + blur >= before + spacing + by, "{:?} after the late call's slot", after - before);
}

/// A stack without limits lets every call go.
pub async fn a_stack_without_limits_lets_every_call_go(test: &str, client: &dyn RateLimiter) {
    let free = stack(&format!("{test}.free"), Vec::new());
    let booked = client.reserve(&free, &Order::of_models(&[1, 1, 1])).await;
    assert!(matches!(&booked, Ok(Reservation::Slots(slots)) if slots.len() == 3), "{booked:?}");
}

/// A hold-off that one client calls for is known to every other without its asking, and nobody books before its end.
pub async fn a_hold_off_reaches_every_client(test: &str, fleet: &[&dyn RateLimiter]) {
    let stack = per_second(&format!("{test}.held"), 50);
    for client in fleet {
        slots(*client, &stack, &[1]).await;
        assert_eq!(client.held_until(&stack), None);
    }
    fleet[0].hold_off(&stack, HoldOff::of(Duration::from_secs(60))).await.expect("a hold-off");
    for client in fleet {
        assert!(left(held(*client, &stack).await) > 30);
        let answer = client.reserve(&stack, &Order::of_models(&[1])).await;
        assert!(matches!(&answer, Ok(Reservation::ComeBack(wait)) if left(wait.free_at) > 30), "{answer:?}");
    }
}

/// A shorter hold-off, from whichever client, never ends a longer one.
pub async fn a_shorter_hold_off_never_ends_a_longer_one(test: &str, fleet: &[&dyn RateLimiter]) {
    let stack = per_second(&format!("{test}.longer"), 50);
    fleet[0].hold_off(&stack, HoldOff::of(Duration::from_secs(60))).await.expect("a hold-off");
    for client in fleet {
        client.hold_off(&stack, HoldOff::of(Duration::from_millis(1))).await.expect("a hold-off");
    }
    for client in fleet {
        let answer = client.reserve(&stack, &Order::of_models(&[1])).await;
        assert!(matches!(&answer, Ok(Reservation::ComeBack(wait)) if left(wait.free_at) > 30), "{answer:?}");
        assert!(left(held(*client, &stack).await) > 30);
    }
}

/// Work goes on when a hold-off is over, and not before.
pub async fn work_goes_on_when_a_hold_off_is_over(test: &str, client: &dyn RateLimiter) {
    let stack = per_second(&format!("{test}.over"), 50);
    let called = Instant::now();
    client.hold_off(&stack, HoldOff::of(Duration::from_millis(300))).await.expect("a hold-off");
    let booked = slots(client, &stack, &[1]).await;
    // The clocks' mapping is good to half a round trip.
    assert!(booked[0].at >= called + Duration::from_millis(290));
}

/// What is booked or held on one stack takes nothing from another.
pub async fn stacks_are_independent(test: &str, client: &dyn RateLimiter) {
    let held = per_second(&format!("{test}.one"), 1);
    let other = per_second(&format!("{test}.other"), 50);
    slots(client, &held, &[1]).await;
    client.hold_off(&held, HoldOff::of(Duration::from_secs(60))).await.expect("a hold-off");
    let booked = slots(client, &other, &[1]).await;
    assert!(left(booked[0].at) < 5);
    assert_eq!(client.held_until(&other), None);
}

/// What can never be granted is refused at once, in words for whoever wrote the settings.
pub async fn what_can_never_be_granted_is_refused(test: &str, client: &dyn RateLimiter) {
    let name = format!("{test}.impossible");
    let none = per_second(&name, 0);
    let twice = stack(&name, vec![limit("rate", 1, Unit::Call, 1), limit("rate", 2, Unit::Call, 1)]);
    let heavy = stack(&name, vec![limit("models", 10, Unit::Model, 5)]);
    for (stack, models, word) in [(none, 1, "0 calls"), (twice, 1, "two limits"), (heavy, 6, "6 models")] {
        match client.reserve(&stack, &Order::of_models(&[models])).await {
            Err(error @ LimiterError::Impossible { .. }) => {
                let text = error.to_string();
                assert!(text.contains(word) && text.contains(&name), "{text}");
            }
            other => panic!("{word}: {other:?}"),
        }
    }
}

/// A quota is spent at once, by whoever asks, and no further; what a call did not use is given back.
pub async fn a_quota_is_spent_by_all_together_and_no_further(test: &str, fleet: &[&dyn RateLimiter]) {
    let credits = Limit { quota: Some(Quota::Total), ..Limit::per_second("credits", 7) };
    let stack = stack(&format!("{test}.quota"), vec![limit("rate", 1_000, Unit::Call, 1), credits]);
    let mut granted = 0;
    for client in fleet.iter().cycle().take(3 * fleet.len()) {
        match client.reserve(&stack, &Order::of_models(&[1])).await.expect("an answer") {
            Reservation::Slots(slots) => granted += slots.len(),
            Reservation::ComeBack(wait) if wait.why == Why::Limit("credits".into()) => {}
            Reservation::ComeBack(wait) => sleep_until(wait.free_at).await,
        }
    }
    while granted < 7 {
        granted += slots(fleet[0], &stack, &[1]).await.len();
    }
    for client in fleet {
        let answer = client.reserve(&stack, &Order::of_models(&[1])).await;
        assert!(
            matches!(&answer, Ok(Reservation::ComeBack(wait)) if wait.why == Why::Limit("credits".into()))
        );
    }
    fleet[1].refund(&stack, Weight::of_models(1)).await.expect("a refund");
    assert_eq!(slots(fleet[0], &stack, &[1, 1]).await.len(), 1, "one was given back");
    let standing = fleet[0].standing(&stack).await.expect("a standing");
    let used = standing.used.iter().find(|used| used.limit == "credits").and_then(|used| used.units);
    assert_eq!(used, Some(7.0));
}

/// Megabytes and money are counted as what a call weighs of them.
pub async fn a_call_takes_the_money_and_the_megabytes_that_it_weighs(test: &str, client: &dyn RateLimiter) {
    let money = Limit { unit: Unit::Money, quota: Some(Quota::Total), ..Limit::per_second("money", 1) };
    let traffic =
        Limit { unit: Unit::Megabyte, quota: Some(Quota::Total), ..Limit::per_second("traffic", 2) };
    let stack = stack(&format!("{test}.weights"), vec![money, traffic]);
    // Three tenths of the money, half a megabyte: the money is gone first.
    let call = Weight { models: 1, bytes: 500_000, price_micros: 300_000 };
    let order = Order { calls: vec![call; 5], ..Order::default() };
    let answer = client.reserve(&stack, &order).await;
    assert!(matches!(&answer, Ok(Reservation::Slots(slots)) if slots.len() == 3), "{answer:?}");
    let light = Order { calls: vec![Weight { price_micros: 0, ..call }; 3], ..Order::default() };
    let answer = client.reserve(&stack, &light).await;
    assert!(matches!(&answer, Ok(Reservation::Slots(slots)) if slots.len() == 1), "{answer:?}");
}

fn amendment(change: Change) -> Amendment {
    Amendment { at: jiff::Timestamp::now(), by: "ada@desk".to_owned(), change }
}

/// Somebody pauses the stack: nobody books, everybody knows; and it goes on as soon as it is resumed.
pub async fn a_pause_holds_for_everybody_until_it_is_resumed(test: &str, fleet: &[&dyn RateLimiter]) {
    let stack = per_second(&format!("{test}.paused"), 50);
    for client in fleet {
        slots(*client, &stack, &[1]).await;
    }
    fleet[0].amend(&stack, &amendment(Change::Pause)).await.expect("a pause");
    for client in fleet {
        held(*client, &stack).await;
        let answer = client.reserve(&stack, &Order::of_models(&[1])).await;
        let paused = Why::Paused("ada@desk".into());
        assert!(matches!(&answer, Ok(Reservation::ComeBack(wait)) if wait.why == paused), "{answer:?}");
    }
    fleet[1].amend(&stack, &amendment(Change::Resume)).await.expect("a resume");
    for client in fleet {
        let known = async {
            let mut changes = client.changes();
            while client.held_until(&stack).is_some() {
                changes.changed().await.expect("changes");
            }
        };
        timeout(PATIENCE, known).await.expect("the resume within 20 s");
        slots(*client, &stack, &[1]).await;
    }
    let history = fleet[2 % fleet.len()].history(&stack.name).await.expect("a history");
    let kept: Vec<(&str, &Change)> = history.iter().map(|entry| (entry.by.as_str(), &entry.change)).collect();
    assert_eq!(kept, [("ada@desk", &Change::Resume), ("ada@desk", &Change::Pause)]);
}

/// Other numbers for a limit bind everybody from the next booking on, whoever has heard of them or not.
pub async fn changed_numbers_bind_everybody_at_once(test: &str, fleet: &[&dyn RateLimiter]) {
    let stack = per_second(&format!("{test}.changed"), 200);
    for client in fleet {
        slots(*client, &stack, &[1]).await;
    }
    let numbers = Numbers { calls: Some(20), ..Numbers::default() };
    let change = Change::Set { limit: "rate".into(), numbers };
    let terms = fleet[0].amend(&stack, &amendment(change)).await.expect("a change");
    assert_eq!(terms.limits["rate"].calls, Some(20));
    let moments = greedy(fleet, &stack, 1, 45).await;
    // What was booked at the old pace is still on its way.
    assert_never_above(20, &moments[moments.len() - 30..]);
    for client in fleet {
        assert_eq!(client.in_force(&stack).limits[0].calls, 20);
    }
    let unknown = Change::Set { limit: "rat".into(), numbers };
    let refused = fleet[0].amend(&stack, &amendment(unknown)).await.expect_err("no such limit").to_string();
    assert!(refused.contains("`rat`") && refused.contains("rate"), "{refused}");
    fleet[1].amend(&stack, &amendment(Change::Reset { limit: "rate".into() })).await.expect("a reset");
    slots(fleet[0], &stack, &[1]).await;
    assert_eq!(fleet[0].in_force(&stack).limits[0].calls, 200);
}

/// After a hold-off that wants it, one call goes ahead, and the others when it was answered.
pub async fn after_a_hold_off_one_call_goes_ahead(test: &str, fleet: &[&dyn RateLimiter]) {
    let stack = per_second(&format!("{test}.probe"), 50);
    for client in fleet {
        slots(*client, &stack, &[1]).await;
    }
    let pause = Duration::from_millis(100);
    fleet[0].hold_off(&stack, HoldOff { pause, probe: true, crowded: false }).await.expect("a hold-off");
    let first = slots(fleet[1], &stack, &[1, 1, 1]).await;
    assert!(matches!(first[..], [Slot { probe: true, .. }]), "{first:?}");
    for client in fleet {
        let answer = client.reserve(&stack, &Order::of_models(&[1])).await;
        assert!(matches!(&answer, Ok(Reservation::ComeBack(wait)) if wait.why == Why::Probe), "{answer:?}");
    }
    fleet[1].answered(&stack).await.expect("an answer");
    for client in fleet {
        assert!(slots(*client, &stack, &[1]).await.iter().all(|slot| !slot.probe));
    }
}

/// Calls in flight are shared: never more than the limit in sum, and all of them where somebody wants them.
pub async fn calls_in_flight_are_shared_and_never_too_many(test: &str, fleet: &[&dyn RateLimiter]) {
    let flight = Limit { judge: Judge::Concurrent, ..Limit::per_second("in-flight", 10) };
    let stack = stack(&format!("{test}.flight"), vec![flight.clone()]);
    let share = async |client: usize, held: u32, wanted: u32, had: u32| {
        fleet[client].share(&stack, &flight, held, wanted, had).await.expect("a share").calls
    };
    // A server that knows nothing of the limit may have forgotten somebody's share: that is waited for.
    let all = async {
        loop {
            match share(0, 0, 10, 0).await {
                10 => return,
                _ => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    timeout(PATIENCE, all).await.expect("all of the calls within 20 s");
    assert_eq!(share(1, 0, 10, 0).await, 0, "the other one has them");
    assert_eq!(share(0, 8, 10, 10).await, 8, "who has more than its part gives up what is not in use");
    assert_eq!(share(1, 0, 10, 0).await, 2);
    assert_eq!(share(0, 3, 10, 8).await, 5);
    assert_eq!(share(1, 2, 10, 2).await, 5);
    assert_eq!(share(0, 0, 0, 5).await, 0);
    assert_eq!(share(1, 5, 10, 5).await, 10, "who leaves, leaves its part to the others");
}

/// Waits until `client` knows of a hold-off.
pub async fn held(client: &dyn RateLimiter, stack: &Stack) -> Instant {
    let wait = async {
        loop {
            match client.held_until(stack) {
                Some(until) => return until,
                None => sleep(Duration::from_millis(1)).await,
            }
        }
    };
    timeout(PATIENCE, wait).await.expect("the hold-off within 20 s")
}

/// Whole seconds from now.
fn left(moment: Instant) -> u64 {
    moment.saturating_duration_since(Instant::now()).as_secs()
}
