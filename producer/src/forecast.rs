//! The forecast of a dry run: how many calls, what they cost, and when they are done under the limits. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pixfleet_shared::{
    limiter::{LimiterError, Stack, Weight},
    outlook::Outlook,
};
use serde::Serialize;

use crate::plan::Plan;

/// What a number of images means for calls, money and time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Images to be asked about.
    pub images: u64,
    /// Jobs they become. One call serves one job.
    pub jobs: u64,
    /// Calls, when none has to be repeated.
    pub calls: u64,
    /// Results: images times models.
    pub results: u64,
    /// What the calls cost, in the provider's units.
    pub cost: f64,
    /// Seconds from the first call's leaving to the last one's, at best: an idle fleet, enough workers, no other
    /// batch under the same limits. Null without a limit: then the workers decide.
    pub seconds: Option<f64>,
    /// The limit that decides that time.
    pub binding: Option<Binding>,
}

/// The limit that decides how long a batch takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Binding {
    /// The limit stack.
    pub stack: String,
    /// The limit's name in it.
    pub limit: String,
    /// Calls a second that it lets through in the long run.
    pub calls_per_s: f64,
}

/// The forecast for `images` images under `plan` and `stack`, for a fleet that begins `now` with nothing used.
///
/// # Errors
/// [`LimiterError::Impossible`] when the stack can never let a call go.
pub fn forecast(plan: &Plan, stack: &Stack, images: u64, now: Timestamp) -> Result<Forecast, LimiterError> {
    let calls = images * plan.calls().len() as u64;
    let results = images * plan.models().count() as u64;
    let weights: Vec<Weight> = plan.calls().iter().map(|models| weight(plan, models)).collect();
    for weight in &weights {
        pixfleet_shared::judge::fits(stack, *weight)?;
    }
    let start_us = u64::try_from(now.as_microsecond()).unwrap_or(0);
    let mut outlook = Outlook::new(stack, &BTreeMap::new(), start_us)?;
    let (mut first_us, mut last_us) = (None, start_us);
    for _ in 0..images {
        for weight in &weights {
            last_us = outlook.next(*weight)?;
            first_us.get_or_insert(last_us);
        }
    }
    // A stack of limits on calls in flight alone leaves the time to the API.
    let timed = stack.limits.iter().any(|limit| limit.units_per_s().is_some());
    let seconds = (last_us - first_us.unwrap_or(last_us)) as f64 / 1e6;
    let binding = outlook.binding().or_else(|| slowest(stack, &weights)).map(|name| Binding {
        stack: stack.name.clone(),
        limit: name.to_owned(),
        calls_per_s: calls_per_s(stack, name, &weights),
    });
    Ok(Forecast {
        images,
        jobs: calls,
        calls,
        results,
        cost: plan.cost(calls, results),
        seconds: timed.then_some(seconds),
        binding: binding.filter(|_| timed),
    })
}

/// What a call of `models` weighs before its picture is known.
fn weight(plan: &Plan, models: &[String]) -> Weight {
    let price = plan.cost(1, models.len() as u64);
    Weight {
        models: u32::try_from(models.len()).unwrap_or(u32::MAX),
        bytes: 0,
        price_micros: (price * 1e6).round() as u64,
    }
}

/// The limit that lets the fewest of these calls through in the long run.
fn slowest<'a>(stack: &'a Stack, weights: &[Weight]) -> Option<&'a str> {
    let timed = stack.limits.iter().filter(|limit| limit.units_per_s().is_some());
    let rate = |name: &str| calls_per_s(stack, name, weights);
    timed.map(|limit| limit.name.as_str()).min_by(|one, other| rate(one).total_cmp(&rate(other)))
}

/// Calls a second of the mix `weights` that the limit lets through in the long run.
fn calls_per_s(stack: &Stack, name: &str, weights: &[Weight]) -> f64 {
    let Some(limit) = stack.limits.iter().find(|limit| limit.name == name) else { return f64::INFINITY };
    let micros: u64 = weights.iter().map(|weight| weight.micros(limit.unit)).sum();
    let units = micros.max(1) as f64 / 1e6;
    let best = pixfleet_shared::judge::best_utilisation(limit);
    limit.units_per_s().map_or(f64::INFINITY, |rate| rate * best * weights.len() as f64 / units)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Tariff;
    use pixfleet_shared::{
        gcra::{Decision, LEAD_US, State, decide},
        judge,
        limiter::{Judge, Limit, Quota, Unit},
    };
    use proptest::prelude::*;

    fn now() -> Timestamp {
        "2026-11-26T10:00:00Z".parse().unwrap()
    }

    fn limit(name: &str, calls: u32, per_ms: u64, unit: Unit, judge: Judge, burst: u32) -> Limit {
        Limit { per_ms, judge, unit, burst, jitter_ms: Some(0.0), ..Limit::per_second(name, calls) }
    }

    fn stack(limits: Vec<Limit>) -> Stack {
        Stack { name: "restb".into(), limits }
    }

    fn plan(models: usize, per_call: usize) -> Plan {
        let names: Vec<String> = (0..models).map(|i| format!("m{i}")).collect();
        let tariff = Tariff { per_call: 0.01, per_model: 0.0 };
        Plan::new("restb", &names, per_call, tariff).unwrap()
    }

    #[test]
    fn six_images_at_six_models_and_four_a_second_take_just_under_nine_seconds() {
        let rate = limit("rate", 4, 1000, Unit::Call, Judge::Bucket, 1);
        let forecast = forecast(&plan(6, 1), &stack(vec![rate]), 6, now()).unwrap();
        assert_eq!((forecast.calls, forecast.results), (36, 36));
        assert_eq!(forecast.seconds, Some(8.75));
        assert!((forecast.cost - 0.36).abs() < 1e-9);
    }

    #[test]
    fn the_limit_that_takes_longest_is_named() {
        let stack = stack(vec![
            limit("rate", 100, 1000, Unit::Call, Judge::Bucket, 1),
            limit("day", 86_400, 86_400_000, Unit::Model, Judge::Bucket, 6),
        ]);
        let binding = forecast(&plan(6, 3), &stack, 1000, now()).unwrap().binding.unwrap();
        assert_eq!(binding.limit, "day");
        assert!((binding.calls_per_s - 1.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn without_a_limit_there_is_no_time_to_tell() {
        let forecast = forecast(&plan(1, 1), &stack(Vec::new()), 10, now()).unwrap();
        assert_eq!((forecast.seconds, forecast.binding), (None, None));
    }

    #[test]
    fn a_call_that_no_limit_would_ever_let_go_is_refused_before_it_is_enqueued() {
        let heavy = limit("rate", 10, 1000, Unit::Model, Judge::Bucket, 2);
        let message = forecast(&plan(6, 6), &stack(vec![heavy]), 1, now()).unwrap_err().to_string();
        assert!(message.contains("`rate`") && message.contains("6 models"), "{message}");
    }

    #[test]
    fn nothing_to_do_takes_no_time() {
        let rate = limit("rate", 1, 1000, Unit::Call, Judge::Sliding, 1);
        assert_eq!(forecast(&plan(1, 1), &stack(vec![rate]), 0, now()).unwrap().seconds, Some(0.0));
    }

    #[test]
    fn a_day_that_is_spent_waits_for_midnight() {
        let rate = Limit::per_second("rate", 10);
        let day = Limit { quota: Some(Quota::Day), ..Limit::per_second("day", 100) };
        let forecast = forecast(&plan(1, 1), &stack(vec![rate, day]), 250, now()).unwrap();
        // Fourteen hours to midnight, a day, and fifty calls.
        assert_eq!(forecast.seconds.map(|seconds| (seconds / 3600.0).round()), Some(38.0));
        assert_eq!(forecast.binding.map(|binding| binding.limit), Some("day".into()));
    }

    /// When the limiter itself, asked at every moment, lets the last call go.
    fn simulated_us(stack: &Stack, plan: &Plan, images: u64) -> u64 {
        let start = 10_000_000;
        let rules = judge::rules(stack, start, &BTreeMap::new()).unwrap();
        let mut state = State::idle(&rules);
        let (mut now, mut last) = (start, start + LEAD_US);
        for _ in 0..images {
            for models in plan.calls() {
                let costs = judge::costs(stack, weight(plan, models));
                loop {
                    match decide(&mut state, &rules, std::slice::from_ref(&costs), now) {
                        Decision::Slots { at, .. } => {
                            last = at[0];
                            break;
                        }
                        Decision::ComeBack { at, .. } => now = at,
                    }
                }
            }
        }
        last - start - LEAD_US
    }

    proptest! {
        #[test]
        fn the_forecast_is_the_limiters_own_time(
            images in 1u64..60, models in 1usize..8, per_call in 1usize..8,
            calls in 1u32..40, minute in 10u32..200, burst in 8u32..10,
            per_model: bool,
        ) {
            let unit = if per_model { Unit::Model } else { Unit::Call };
            let stack = stack(vec![
                limit("rate", calls, 1000, unit, Judge::Bucket, burst),
                limit("minute", minute, 60_000, Unit::Call, Judge::Sliding, burst),
            ]);
            let plan = plan(models, per_call);
            let told = forecast(&plan, &stack, images, now()).unwrap().seconds.unwrap() * 1e6;
            let seen = simulated_us(&stack, &plan, images) as f64;
            // Whoever is told to come back asks a lead later.
            let leads = (images * plan.calls().len() as u64 * LEAD_US) as f64;
            prop_assert!((told - seen).abs() <= leads + 1.0, "told {told}, seen {seen}");
        }
    }
}
