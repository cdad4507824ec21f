//! The proof of "nothing lost, nothing paid twice": a fleet under load, a fault, and a checker that compares what was put in,
//! what came out, what is kept and what the API saw.
//!
//! Each scenario is a function of a [`Plan`]; `tests/tests/faults.rs` plays them with few jobs, `tests/faults` at length.

pub mod checker;
pub mod collecting;
pub mod gather;
pub mod history;
pub mod stage;

mod api;
mod broker;
mod messages;
mod network;
mod redis;
mod workers;

use std::{future::Future, pin::Pin, process::Command, sync::OnceLock};

use pixfleet_shared::failpoint::OF_A_JOB;
use tokio::sync::Semaphore;

pub use stage::{Plan, Report, again};

use crate::fleet::pixfleet;

type Played = Pin<Box<dyn Future<Output = Report> + Send>>;

/// A fault, and the fleet that it befalls.
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// Whether it does something to servers that other scenarios use.
    pub alone: bool,
    play: fn(Plan) -> Played,
}

macro_rules! scenarios {
    ($($module:ident::$name:ident $($alone:ident)?),* $(,)?) => {
        /// Every scenario.
        pub const SCENARIOS: &[Scenario] = &[$(Scenario {
            name: stringify!($name),
            alone: scenarios!(@ $($alone)?),
            play: |plan| Box::pin($module::$name(plan)),
        }),*];
    };
    (@ alone) => { true };
    (@) => { false };
}

scenarios! {
    workers::killed_at_each_step,
    workers::all_killed,
    workers::producer_killed,
    workers::frozen,
    workers::rolling_restarts,
    workers::poison,
    broker::killed_in_mid_confirm alone,
    broker::stopped alone,
    broker::connections_closed,
    broker::memory_alarm alone,
    broker::disk_alarm alone,
    broker::queue_deleted,
    broker::ack_timeout alone,
    broker::queues_full,
    broker::topology_drift,
    network::one_way_to_the_broker,
    network::one_way_to_redis,
    network::silent_broker_handshakes,
    network::silent_redis_handshakes,
    network::broken_connections,
    redis::restarted,
    redis::emptied,
    redis::failed_over,
    api::storm,
    api::storm_resent_once,
    api::broken_connections_to_it,
    messages::hostile,
    workers::taken_over,
    workers::paused_and_killed,
}

/// Scenarios at the same time: each has half a dozen processes, and the machine may have two cores.
const AT_ONCE: u32 = 2;
static ROOM: Semaphore = Semaphore::const_new(AT_ONCE as usize);

impl Scenario {
    /// The scenario of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        SCENARIOS.iter().find(|scenario| scenario.name == name)
    }

    /// Plays it, once there is room.
    pub async fn play(&self, plan: Plan) -> Report {
        need_failpoints();
        let _room = ROOM.acquire_many(if self.alone { AT_ONCE } else { 1 }).await.unwrap();
        (self.play)(plan).await
    }
}

/// A binary without failpoints would pass, because nothing would happen to it.
fn need_failpoints() {
    static THERE: OnceLock<bool> = OnceLock::new();
    let there = THERE.get_or_init(|| {
        let started = Command::new(pixfleet()).arg("--version").env("FAILPOINTS", "start=return").output();
        !started.unwrap().status.success()
    });
    assert!(
        *there,
        "this `pixfleet` has no failpoints, of which {} are needed: build it with \
         `cargo build -p pixfleet-cli --features failpoints`, as tests/run does",
        OF_A_JOB.len()
    );
}

impl Report {
    /// Nothing, or what is wrong, with the command that plays it again.
    pub fn verdict(&self) -> Result<(), String> {
        if self.problems.is_empty() {
            return Ok(());
        }
        let Self { name, plan, problems, figures, .. } = self;
        Err(format!("{}\n{}\n{figures:?}", again(name, *plan), problems.join("\n")))
    }

    /// Its figures in one line.
    pub fn line(&self) -> String {
        let Self { name, plan, figures, notes, seconds, problems, .. } = self;
        let checker::Figures { jobs, calls, results, repetitions, after_the_sink, .. } = *figures;
        let checker::Figures { ambiguous, dead, parked, resent, paid_twice, lost, listed, .. } = *figures;
        let rate = results as f64 / seconds;
        let verdict = if problems.is_empty() { "ok" } else { "FAILED" };
        format!(
            "{verdict:6} {name:24} seed {:3}  jobs {jobs:6}  calls {calls:6}  results {results:6}  again {repetitions:4}  \
             after sink {after_the_sink}  ambiguous {ambiguous:3}  listed {listed:3}  dead {dead:3}  parked {parked:3}  \
             resent {resent:3}  paid twice {paid_twice}  lost {lost}  {seconds:6.1} s  {rate:6.0}/s  {}",
            plan.seed,
            notes.join("; ")
        )
    }
}
