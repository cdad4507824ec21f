//! What the demo plays: the images, the models, the limit, the sandbox and its provider. Data.

use anyhow::Context as _;
use pixfleet_sandbox::{Judging, Latency, Rule, Settings};
use pixfleet_shared::settings::Document;
use pixfleet_worker::provider::{Provider, Source};

use crate::results::{Summary, TableRows, terminal};

/// The provider's name in the demo's jobs and results.
pub(super) const PROVIDER: &str = "restb-sandbox";
/// Workers of the demo.
pub(super) const WORKERS: usize = 2;
/// Calls a second, as in the tutorial.
pub(super) const LIMIT_PER_S: u32 = 4;
/// The six models of the vendor's client library.
pub(super) const MODELS: [&str; 6] = [
    "re_roomtype_global_v2",
    "re_exterior_styles",
    "re_features_v4",
    "re_logo",
    "re_compliance_v2",
    "re_condition_r1r6_global",
];
const IMAGES: [&str; 6] = ["kitchen", "bathroom", "bedroom", "living-room", "front", "garden"];
/// The tutorial's calls took 1160 ms.
const LATENCY: Latency = Latency::Lognormal { mean_ms: 1160.0, sigma: 0.1 };
/// Tokens of the `bucket` judge.
const BURST: u32 = 4;
const KEY: &str = "demo";

/// How the sandbox counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Judge {
    /// At most 4 calls in each second of the clock
    Fixed,
    /// At most 4 calls in any second
    #[default]
    Sliding,
    /// A token bucket of 4, refilled with 4 a second
    Bucket,
}

/// Results that the job must bring.
pub(super) fn results() -> u64 {
    (IMAGES.len() * MODELS.len()) as u64
}

/// The images as a CSV. Nobody fetches them: the sandbox answers by their URL, so every run sees the same.
pub(super) fn manifest() -> String {
    let row = |name| format!("{name},https://example.com/photos/{name}.jpg\n");
    std::iter::once("id,url\n".to_owned()).chain(IMAGES.map(row)).collect()
}

/// The sandbox.
pub(super) fn sandbox(judge: Judge) -> Settings {
    let rule = match judge {
        Judge::Fixed => Rule::Fixed,
        Judge::Sliding => Rule::Sliding,
        Judge::Bucket => Rule::Bucket { burst: BURST },
    };
    Settings {
        keys: vec![KEY.to_owned()],
        latency: LATENCY,
        judging: Judging { rule, limit: LIMIT_PER_S, ..Judging::default() },
        ..Settings::default()
    }
}

/// The `restb` preset, pointed at the sandbox, one model a call.
pub(super) fn provider(url: &str, judge: Judge) -> anyhow::Result<Provider> {
    let (word, burst) = match judge {
        Judge::Fixed => ("fixed", 1),
        Judge::Sliding => ("sliding", 1),
        Judge::Bucket => ("bucket", BURST),
    };
    let settings = format!(
        "preset = \"restb\"\nendpoint = \"{url}\"\nmodels_per_call = 1\n\
         limits = [{{ name = \"rate\", calls = {LIMIT_PER_S}, judge = \"{word}\", burst = {burst} }}]\n"
    );
    let source = Source {
        env: &|name| (name == "RESTB_CLIENT_KEY").then(|| KEY.to_owned()),
        folder: std::path::Path::new("."),
    };
    let own = Document::parse("the demo's provider", &settings)?;
    Provider::load(PROVIDER, &own, source).context("the demo's provider")
}

/// Images by models, as `pixfleet results --by-image --format table` prints them.
pub(super) fn table(mut summaries: Vec<Summary>) -> Vec<u8> {
    summaries.sort_by_key(|summary| IMAGES.iter().position(|name| *name == summary.image));
    let mut rows = TableRows::new(MODELS.map(str::to_owned).to_vec(), terminal::stdout_width());
    rows.summaries(&summaries);
    rows.drain()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_judge_has_a_sandbox_and_a_provider_that_can_be_served() {
        for judge in [Judge::Fixed, Judge::Sliding, Judge::Bucket] {
            assert_eq!(sandbox(judge).problems(), [""; 0]);
            let provider = provider("http://127.0.0.1:1", judge).unwrap();
            assert_eq!(provider.rate_per_s(provider.weight(1, 0)), Some(f64::from(LIMIT_PER_S)));
            assert!(MODELS.iter().all(|model| provider.accepts(model).is_ok()));
        }
    }
}
