//! How late a wait ends: the runtime's timer beside the alarm, on an idle machine and on one whose processors are busy.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use pixfleet_worker::alarm;
use rand::RngExt;
use serde_json::json;
use tokio::time::{self, Instant};

use crate::Figure;

/// Waits of one measurement, one after the other.
const WAITS: usize = 2_000;

/// The same waits by both, idle and loaded.
pub(crate) async fn measure() -> Vec<Figure> {
    let idle = compare("idle").await;
    let load = Load::on_every_processor();
    let loaded = compare("every processor busy").await;
    drop(load);
    vec![idle, loaded]
}

async fn compare(machine: &str) -> Figure {
    // A task of the runtime, as a job is: the main task is polled by a thread of its own.
    let runtime = tokio::spawn(late(time::sleep_until)).await.unwrap();
    let alarm = tokio::spawn(late(alarm::sleep_until)).await.unwrap();
    let measured = format!("alarm {}, the runtime's timer {}", alarm.text(), runtime.text());
    let data = json!({"alarm_us": alarm.json(), "runtime_us": runtime.json(), "waits": WAITS});
    let met = alarm.median * 2.0 < runtime.median;
    Figure::new(
        format!("lateness of a wait, {machine}"),
        measured,
        "median below half of the runtime's",
        met,
        data,
    )
}

/// Lateness in microseconds.
struct Late {
    median: f64,
    p99: f64,
    most: f64,
}

impl Late {
    fn text(&self) -> String {
        let Self { median, p99, most } = self;
        format!("p50 {median:.0} us, p99 {p99:.0} us, at most {most:.0} us")
    }

    fn json(&self) -> serde_json::Value {
        json!({"p50": self.median, "p99": self.p99, "max": self.most})
    }
}

async fn late<W: Future<Output = ()>>(wait_until: impl Fn(Instant) -> W) -> Late {
    let mut seen = Vec::with_capacity(WAITS);
    for _ in 0..WAITS {
        let at = Instant::now() + Duration::from_micros(rand::rng().random_range(1_000..6_000));
        wait_until(at).await;
        seen.push(at.elapsed().as_secs_f64() * 1e6);
    }
    seen.sort_by(f64::total_cmp);
    Late { median: seen[WAITS / 2], p99: seen[WAITS * 99 / 100], most: seen[WAITS - 1] }
}

/// Threads that compute until they are dropped.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn on_every_processor() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let processors = thread::available_parallelism().map_or(2, usize::from);
        let threads = (0..processors)
            .map(|_| {
                let stop = Arc::clone(&stop);
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                })
            })
            .collect();
        Self { stop, threads }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
