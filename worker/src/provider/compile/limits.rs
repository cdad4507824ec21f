//! `[[limits]]`: each of them, all together, and whether the heaviest call can ever pass.

use pixfleet_shared::{
    judge,
    limiter::{Judge, Kind, Limit, MICRO, Stack, Unit, Weight},
};

use super::{super::definition::Definition, Check};

impl Check<'_> {
    /// The limits at `field`, of a provider whose calls are as heavy as `definition` lets them be.
    pub(super) fn limits(&mut self, field: &str, limits: &[Limit], definition: &Definition) {
        let models = definition.models_per_call.clamp(1, 1000);
        let price_micros = (definition.cost.of_call(models as usize).max(0.0) * 1e6).round() as u64;
        let heaviest = Weight { models, bytes: 0, price_micros };
        let stack = |limits: &[Limit]| Stack { name: String::new(), limits: limits.to_vec() };
        let mut sound = true;
        for (i, limit) in limits.iter().enumerate() {
            let at = format!("{field}[{i}]");
            if let Some(why) = judge::fault(limit) {
                self.wrong(&at, why);
                sound = false;
            } else if judge::fits(&stack(std::slice::from_ref(limit)), heaviest).is_err() {
                self.wrong(&at, too_narrow(limit, models));
            }
            if limit.unit == Unit::Money && definition.cost.price <= 0.0 {
                self.wrong(
                    &format!("{at}.unit"),
                    "money is counted by `cost.price`, which is 0: give the price",
                );
            }
            if limits[..i].iter().any(|other| other.name == limit.name) {
                self.wrong(&format!("{at}.name"), "another limit has this name");
                sound = false;
            }
        }
        // What the limiter demands of a stack beyond its limits one by one.
        if sound && let Err(judge::Problem(why)) = judge::check(&stack(limits)) {
            self.wrong(field, why);
        }
    }
}

/// A call of `models` models takes more of `limit` than it ever gives at once: the ways out.
fn too_narrow(limit: &Limit, models: u32) -> String {
    let Limit { name, calls, .. } = limit;
    let most = judge::heaviest(limit) / MICRO;
    if limit.unit == Unit::Money {
        return format!(
            "limit `{name}` is less money than one call costs: raise calls = {calls}, or mend cost.price"
        );
    }
    if matches!(limit.kind(), Kind::Quota(_)) {
        return format!(
            "limit `{name}` has {calls} units, fewer than a call of {models} models takes: raise it"
        );
    }
    let way_out = match limit.judge {
        Judge::Sliding | Judge::Fixed if models > *calls => {
            format!("models_per_call = {calls} and burst = {calls}, all that it gives in a window")
        }
        Judge::Sliding | Judge::Fixed | Judge::Bucket | Judge::Concurrent => {
            format!("it burst = {models}, as many as models_per_call, or models_per_call = {most}")
        }
        // nginx lets one more through than its `burst`.
        Judge::Leaky => {
            format!("it burst = {}, one less than models_per_call, or models_per_call = {most}", models - 1)
        }
    };
    format!(
        "limit `{name}` counts models and gives {most} at once, so a call of {models} could never leave: give {way_out}"
    )
}
