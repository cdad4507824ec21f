//! The promises of a rate limiter. `fleet` is two or more clients of one limiter, as processes of one fleet are.
//!
//! Every function uses stacks whose names begin with `test`, so that suites can share a server.

use std::time::Duration;

use futures_util::future::join_all;
use pixfleet_shared::{
    judge,
    limiter::{Judge, Limit, LimiterError, RateLimiter, Reservation, Slot, Stack, Unit},
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// No step of the suite may take longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A limit of `calls` a second under the sliding judge.
pub fn limit(name: &str, calls: u32, unit: Unit, burst: u32) -> Limit {
    Limit { name: name.to_owned(), calls, per_ms: 1000, judge: Judge::Sliding, unit, burst, jitter_ms: 8.0 }
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
            match client.reserve(stack, calls).await {
                Ok(Reservation::Slots(slots)) => return slots,
                Ok(Reservation::ComeBack(at)) => sleep_until(at).await,
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
    let booked = client.reserve(&free, &[1, 1, 1]).await;
    assert!(matches!(&booked, Ok(Reservation::Slots(slots)) if slots.len() == 3), "{booked:?}");
}

/// A hold-off that one client calls for is known to every other without its asking, and nobody books before its end.
pub async fn a_hold_off_reaches_every_client(test: &str, fleet: &[&dyn RateLimiter]) {
    let stack = per_second(&format!("{test}.held"), 50);
    for client in fleet {
        slots(*client, &stack, &[1]).await;
        assert_eq!(client.held_until(&stack), None);
    }
    fleet[0].hold_off(&stack, Duration::from_secs(60)).await.expect("a hold-off");
    for client in fleet {
        assert!(left(held(*client, &stack).await) > 30);
        let answer = client.reserve(&stack, &[1]).await;
        assert!(matches!(&answer, Ok(Reservation::ComeBack(at)) if left(*at) > 30), "{answer:?}");
    }
}

/// A shorter hold-off, from whichever client, never ends a longer one.
pub async fn a_shorter_hold_off_never_ends_a_longer_one(test: &str, fleet: &[&dyn RateLimiter]) {
    let stack = per_second(&format!("{test}.longer"), 50);
    fleet[0].hold_off(&stack, Duration::from_secs(60)).await.expect("a hold-off");
    for client in fleet {
        client.hold_off(&stack, Duration::from_millis(1)).await.expect("a hold-off");
    }
    for client in fleet {
        let answer = client.reserve(&stack, &[1]).await;
        assert!(matches!(&answer, Ok(Reservation::ComeBack(at)) if left(*at) > 30), "{answer:?}");
        assert!(left(held(*client, &stack).await) > 30);
    }
}

/// Work goes on when a hold-off is over, and not before.
pub async fn work_goes_on_when_a_hold_off_is_over(test: &str, client: &dyn RateLimiter) {
    let stack = per_second(&format!("{test}.over"), 50);
    let called = Instant::now();
    client.hold_off(&stack, Duration::from_millis(300)).await.expect("a hold-off");
    let booked = slots(client, &stack, &[1]).await;
    // The clocks' mapping is good to half a round trip.
    assert!(booked[0].at >= called + Duration::from_millis(290));
}

/// What is booked or held on one stack takes nothing from another.
pub async fn stacks_are_independent(test: &str, client: &dyn RateLimiter) {
    let held = per_second(&format!("{test}.one"), 1);
    let other = per_second(&format!("{test}.other"), 50);
    slots(client, &held, &[1]).await;
    client.hold_off(&held, Duration::from_secs(60)).await.expect("a hold-off");
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
        match client.reserve(&stack, &[models]).await {
            Err(error @ LimiterError::Impossible { .. }) => {
                let text = error.to_string();
                assert!(text.contains(word) && text.contains(&name), "{text}");
            }
            other => panic!("{word}: {other:?}"),
        }
    }
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
