//! `[[limits]]`: each of them, all together, and whether the heaviest call can ever pass.

use pixfleet_shared::{
    judge,
    limiter::{Judge, Limit, LimiterError, Stack},
};

use super::Check;

impl Check<'_> {
    /// The limits of a provider whose calls ask up to `models` models.
    pub(super) fn limits(&mut self, limits: &[Limit], models: u32) {
        let stack = |limits: &[Limit]| Stack { name: String::new(), limits: limits.to_vec() };
        let mut sound = true;
        for (i, limit) in limits.iter().enumerate() {
            let at = format!("limits[{i}]");
            if let Some(why) = judge::fault(limit) {
                self.wrong(&at, why);
                sound = false;
            } else if judge::fits(&stack(std::slice::from_ref(limit)), models).is_err() {
                self.wrong(&at, too_narrow(limit, models));
            }
            if limits[..i].iter().any(|other| other.name == limit.name) {
                self.wrong(&format!("{at}.name"), "another limit has this name");
                sound = false;
            }
        }
        // What the limiter demands of a stack beyond its limits one by one.
        if sound && let Err(LimiterError::Impossible { why, .. }) = judge::spacings(&stack(limits)) {
            self.wrong("limits", why);
        }
    }
}

/// A call of `models` models takes more of `limit` than it ever gives at once: the ways out.
fn too_narrow(limit: &Limit, models: u32) -> String {
    let Limit { name, calls, .. } = limit;
    let most = judge::heaviest(limit);
    let way_out = match limit.judge {
        Judge::Sliding | Judge::Fixed if models > *calls => {
            format!("models_per_call = {calls} and burst = {calls}, all that it gives in a window")
        }
        Judge::Sliding | Judge::Fixed | Judge::Bucket => {
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
