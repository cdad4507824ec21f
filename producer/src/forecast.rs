//! The forecast of a dry run: how many calls, what they cost, and when they are done under the limits. Pure.

use pixfleet_shared::{
    gcra,
    judge::{self, Spacing},
    limiter::{LimiterError, Stack},
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

/// The forecast for `images` images under `plan` and `stack`.
///
/// # Errors
/// [`LimiterError::Impossible`] when the stack can never let a call go.
pub fn forecast(plan: &Plan, stack: &Stack, images: u64) -> Result<Forecast, LimiterError> {
    let calls = images * plan.calls().len() as u64;
    let results = images * plan.models().count() as u64;
    let spacings = judge::spacings(stack)?;
    for models in plan.calls() {
        judge::fits(stack, heft(models))?;
    }
    let last = last_departure(&spacings, plan, images);
    let binding = last.map(|(_, limit)| Binding {
        stack: stack.name.clone(),
        limit: spacings[limit].name.to_owned(),
        calls_per_s: calls_per_s(&spacings[limit], plan),
    });
    Ok(Forecast {
        images,
        jobs: calls,
        calls,
        results,
        cost: plan.cost(calls, results),
        seconds: last.map(|(us, _)| us as f64 / 1e6),
        binding,
    })
}

/// Units that all the calls of one image take from a limit.
fn units(spacing: &Spacing<'_>, plan: &Plan) -> u64 {
    plan.calls().iter().map(|models| gcra::cost(spacing.unit, heft(models))).sum()
}

fn heft(models: &[String]) -> u32 {
    u32::try_from(models.len()).unwrap_or(u32::MAX)
}

/// When the last call leaves, and the limit that keeps it until then: the limiter's own steps, from an idle fleet.
fn last_departure(spacings: &[Spacing<'_>], plan: &Plan, images: u64) -> Option<(u64, usize)> {
    let units = |limit: usize, models: &[String]| gcra::cost(spacings[limit].unit, heft(models));
    // Idle for longer than any limit remembers.
    let heaviest = plan.calls().iter().map(|models| u64::from(heft(models))).max();
    let start_us = spacings.iter().map(|limit| limit.interval_us).max()? * heaviest.unwrap_or(1);
    let mut tats_us = vec![0; spacings.len()];
    let mut last = (start_us, 0);
    for _ in 0..images {
        for models in plan.calls() {
            let earliest = |limit: usize| {
                let own = spacings[limit].interval_us * (units(limit, models) - 1);
                let us = (tats_us[limit] + own).saturating_sub(spacings[limit].tolerance_us);
                (us.max(start_us), limit)
            };
            last = (0..spacings.len()).map(earliest).max()?;
            for (limit, tat_us) in tats_us.iter_mut().enumerate() {
                *tat_us = last.0.max(*tat_us) + spacings[limit].interval_us * units(limit, models);
            }
        }
    }
    Some((last.0 - start_us, last.1))
}

fn calls_per_s(spacing: &Spacing<'_>, plan: &Plan) -> f64 {
    let per_image_us = units(spacing, plan).max(1) * spacing.interval_us.max(1);
    plan.calls().len() as f64 * 1e6 / per_image_us as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Tariff;
    use pixfleet_shared::{
        gcra::{Decision, LEAD_US, State, decide},
        limiter::{Judge, Limit, Unit},
    };
    use proptest::prelude::*;

    fn limit(name: &str, calls: u32, per_ms: u64, unit: Unit, judge: Judge, burst: u32) -> Limit {
        Limit { name: name.into(), calls, per_ms, judge, unit, burst, jitter_ms: 0.0 }
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
        let forecast = forecast(&plan(6, 1), &stack(vec![rate]), 6).unwrap();
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
        let binding = forecast(&plan(6, 3), &stack, 1000).unwrap().binding.unwrap();
        assert_eq!(binding.limit, "day");
        assert!((binding.calls_per_s - 1.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn without_a_limit_there_is_no_time_to_tell() {
        let forecast = forecast(&plan(1, 1), &stack(Vec::new()), 10).unwrap();
        assert_eq!((forecast.seconds, forecast.binding), (None, None));
    }

    #[test]
    fn a_call_that_no_limit_would_ever_let_go_is_refused_before_it_is_enqueued() {
        let heavy = limit("rate", 10, 1000, Unit::Model, Judge::Bucket, 2);
        let message = forecast(&plan(6, 6), &stack(vec![heavy]), 1).unwrap_err().to_string();
        assert!(message.contains("`rate`") && message.contains("6 models"), "{message}");
    }

    #[test]
    fn nothing_to_do_takes_no_time() {
        let rate = limit("rate", 1, 1000, Unit::Call, Judge::Sliding, 1);
        assert_eq!(forecast(&plan(1, 1), &stack(vec![rate]), 0).unwrap().seconds, Some(0.0));
    }

    /// When the limiter itself, asked at every moment, lets the last call go.
    fn simulated_us(stack: &Stack, plan: &Plan, images: u64) -> u64 {
        let spacings = judge::spacings(stack).unwrap();
        let mut state = State::idle(&spacings);
        let start = 10_000_000;
        let (mut now, mut last) = (start, start + LEAD_US);
        for _ in 0..images {
            for models in plan.calls() {
                loop {
                    match decide(&mut state, &spacings, &[models.len() as u32], now) {
                        Decision::Slots(slots) => {
                            last = slots[0];
                            break;
                        }
                        Decision::ComeBack(at) => now = at,
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
            let told = forecast(&plan, &stack, images).unwrap().seconds.unwrap() * 1e6;
            let seen = simulated_us(&stack, &plan, images) as f64;
            // Whoever is told to come back asks a lead later.
            let leads = (images * plan.calls().len() as u64 * LEAD_US) as f64;
            prop_assert!((told - seen).abs() <= leads + 1.0, "told {told}, seen {seen}");
        }
    }
}
