//! What the API does: errors, silence, cuts, and answers that nobody can read.

use std::time::Duration;

use pixfleet_sandbox::{Faults, Settings};
use rand::RngExt;
use tokio::time::sleep;

use super::{
    history::Policy,
    stage::{Plan, Report, Setting, Stage},
};
use crate::fault_proxy::Fault;

/// One call in five goes wrong, in each of the ways that there are.
fn stormy(seed: u64) -> Setting {
    let setting = Setting::default();
    let faults = Faults {
        error_500: 0.1,
        hang: 0.01,
        cut: 0.02,
        drop: 0.03,
        malformed: 0.02,
        huge: 0.01,
        hang_ms: 20_000,
        huge_bytes: 3 << 20,
        seed,
    };
    let sandbox = Settings { faults, ..setting.sandbox };
    Setting { sandbox, total_ms: 3_000, more: "attempts = 10\n".to_owned(), ..setting }
}

/// Errors, hangs, cuts, dropped connections, and answers that are broken or huge; what may be paid for is not sent again.
pub(super) async fn storm(plan: Plan) -> Report {
    played("storm", plan, stormy(plan.seed)).await
}

/// The same, with what may be paid for sent again once.
pub(super) async fn storm_resent_once(plan: Plan) -> Report {
    played("storm_resent_once", plan, Setting { policy: Policy::ResendOnce, ..stormy(plan.seed) }).await
}

async fn played(name: &'static str, plan: Plan, setting: Setting) -> Report {
    let mut stage = Stage::set(name, plan, setting).await;
    stage.start_workers();
    stage.enqueue().await;
    stage.end().await
}

/// Connections to the API are reset, cut in the middle of an answer, closed on one side, and fall silent.
pub(super) async fn broken_connections_to_it(plan: Plan) -> Report {
    let setting = Setting { proxied: true, total_ms: 2_000, ..Setting::lasting(plan, 8) };
    let mut stage = Stage::set("broken_connections_to_it", plan, setting).await;
    stage.start_workers();
    stage.enqueue().await;
    for round in 0..4 {
        let moment = (stage.collector.count() + plan.jobs / 20).min(plan.jobs);
        stage.results(moment).await;
        stage.strike();
        let bytes = stage.chance.random_range(0..300);
        match round {
            0 => stage.api.reset(),
            1 => stage.api.half_close(),
            2 => stage.api.set(Fault::CutAfter(bytes)),
            _ => stage.api.set(Fault::SilentAfter(bytes)),
        }
        sleep(Duration::from_millis(400)).await;
        stage.api.set(Fault::None);
        stage.relent();
    }
    stage.end().await
}
