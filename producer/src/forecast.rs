//! The forecast of a dry run: how many calls, what they cost, and when they are done under the limits. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pixfleet_shared::{
    foresight::{Foresight, foresee},
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
    /// When they are done at best: an idle fleet, enough workers, no other batch under the same limits.
    #[serde(flatten)]
    pub time: Foresight,
}

/// The forecast for `images` images under `plan`, for a fleet that begins `now` with nothing used. A call leaves by the
/// one of the `stacks`, one for each account, that is free first.
///
/// # Errors
/// [`LimiterError::Impossible`] when one of the stacks can never let a call go.
pub fn forecast(
    plan: &Plan,
    stacks: &[Stack],
    images: u64,
    now: Timestamp,
) -> Result<Forecast, LimiterError> {
    let calls = images * plan.calls().len() as u64;
    let results = images * plan.models().count() as u64;
    let weights: Vec<Weight> = plan.calls().iter().map(|models| weight(plan, models)).collect();
    let start_us = u64::try_from(now.as_microsecond()).unwrap_or(0);
    let begun = stacks.iter().map(|stack| Outlook::new(stack, &BTreeMap::new(), start_us));
    let time = foresee(begun.collect::<Result<_, _>>()?, &weights, images)?;
    Ok(Forecast { images, jobs: calls, calls, results, cost: plan.cost(calls, results), time })
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
        let forecast = forecast(&plan(6, 1), &[stack(vec![rate])], 6, now()).unwrap();
        assert_eq!((forecast.calls, forecast.results), (36, 36));
        assert_eq!(forecast.time.seconds, Some(8.75));
        assert!((forecast.cost - 0.36).abs() < 1e-9);
    }

    #[test]
    fn the_limit_that_takes_longest_is_named() {
        let stack = stack(vec![
            limit("rate", 100, 1000, Unit::Call, Judge::Bucket, 1),
            limit("day", 86_400, 86_400_000, Unit::Model, Judge::Bucket, 6),
        ]);
        let binding = forecast(&plan(6, 3), &[stack], 1000, now()).unwrap().time.binding.unwrap();
        assert_eq!(binding.limit, "day");
        assert!((binding.calls_per_s - 1.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn without_a_limit_there_is_no_time_to_tell() {
        let forecast = forecast(&plan(1, 1), &[stack(Vec::new())], 10, now()).unwrap();
        assert_eq!((forecast.time.seconds, forecast.time.binding), (None, None));
    }

    #[test]
    fn a_call_that_no_limit_would_ever_let_go_is_refused_before_it_is_enqueued() {
        let heavy = limit("rate", 10, 1000, Unit::Model, Judge::Bucket, 2);
        let message = forecast(&plan(6, 6), &[stack(vec![heavy])], 1, now()).unwrap_err().to_string();
        assert!(message.contains("`rate`") && message.contains("6 models"), "{message}");
    }

    #[test]
    fn nothing_to_do_takes_no_time() {
        let rate = limit("rate", 1, 1000, Unit::Call, Judge::Sliding, 1);
        assert_eq!(forecast(&plan(1, 1), &[stack(vec![rate])], 0, now()).unwrap().time.seconds, Some(0.0));
    }

    #[test]
    fn a_day_that_is_spent_waits_for_midnight() {
        let rate = Limit::per_second("rate", 10);
        let day = Limit { quota: Some(Quota::Day), ..Limit::per_second("day", 100) };
        let forecast = forecast(&plan(1, 1), &[stack(vec![rate, day])], 250, now()).unwrap();
        // Fourteen hours to midnight, a day, and fifty calls.
        assert_eq!(forecast.time.seconds.map(|seconds| (seconds / 3600.0).round()), Some(38.0));
        assert_eq!(forecast.time.binding.map(|binding| binding.limit), Some("day".into()));
        let used_up = forecast.time.used_up.unwrap();
        assert_eq!((used_up.limit.as_str(), used_up.resets), ("day", 2));
        assert_eq!(used_up.resets_at, Some("2026-11-27T00:00:00Z".parse().unwrap()));
    }

    #[test]
    fn credits_that_do_not_reach_are_said() {
        let credits = Limit { quota: Some(Quota::Total), ..Limit::per_second("credits", 100) };
        let forecast = forecast(&plan(1, 1), &[stack(vec![credits])], 250, now()).unwrap();
        assert_eq!((forecast.time.beyond_credits, forecast.time.done_at), (150, None));
        assert_eq!(forecast.time.used_up.and_then(|used_up| used_up.resets_at), None);
    }

    #[test]
    fn two_accounts_take_half_of_the_time() {
        let rate = limit("rate", 4, 1000, Unit::Call, Judge::Bucket, 1);
        let stacks = [stack(vec![rate.clone()]), stack(vec![rate])];
        let forecast = forecast(&plan(1, 1), &stacks, 400, now()).unwrap();
        assert_eq!(forecast.time.seconds, Some(49.75));
        assert_eq!(forecast.time.binding.map(|binding| binding.calls_per_s), Some(8.0));
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
            let told = forecast(&plan, std::slice::from_ref(&stack), images, now()).unwrap().time.seconds.unwrap() * 1e6;
            let seen = simulated_us(&stack, &plan, images) as f64;
            // Whoever is told to come back asks a lead later.
            let leads = (images * plan.calls().len() as u64 * LEAD_US) as f64;
            prop_assert!((told - seen).abs() <= leads + 1.0, "told {told}, seen {seen}");
        }
    }
}
