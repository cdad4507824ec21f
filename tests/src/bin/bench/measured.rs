//! One process from its start to its end: how long, how much CPU, how much memory. And the API beside it.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use pixfleet_tests::fleet::{KEY, pixfleet};
use serde_json::Value;

/// The kernel tells CPU time in these, on every machine that this runs on.
const TICKS_PER_S: f64 = 100.0;
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The longest that a process may take.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// What a process took.
pub(crate) struct Taken {
    /// From its start to its exit.
    pub(crate) seconds: f64,
    /// Of the CPU, as the user and as the system.
    pub(crate) cpu_s: f64,
    /// The most memory that it had resident.
    pub(crate) peak_mib: f64,
    /// What it printed.
    pub(crate) report: Value,
}

/// Runs a command that prints one JSON line to its end.
pub(crate) fn measure(mut command: Command) -> Taken {
    let began = Instant::now();
    let process = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
    let mut process = Ended(process.expect("pixfleet can be run"));
    let (mut peak, pid) = (0, process.0.id());
    let cpu_s = loop {
        // A process that has ended and is not yet waited for still tells its CPU time, and its memory no more.
        let (state, cpu_s) = cpu(pid);
        if state == "Z" {
            break cpu_s;
        }
        peak = peak.max(peak_memory(pid));
        assert!(began.elapsed() < PATIENCE, "no end within {PATIENCE:?}");
        std::thread::sleep(LOOK_EVERY);
    };
    let seconds = began.elapsed().as_secs_f64();
    let status = process.0.wait().unwrap();
    assert!(status.success(), "the run ended with {status}");
    let report = serde_json::from_reader(process.0.stdout.take().unwrap()).expect("a report");
    Taken { seconds, cpu_s, peak_mib: peak as f64 / 1_048_576.0, report }
}

/// A process that does not outlive a figure that fails.
pub(crate) struct Ended(pub(crate) Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The state of a process and its CPU time in seconds.
fn cpu(pid: u32) -> (String, f64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name, in parentheses, may hold anything; what follows it is words: user and system time are the 12th and 13th.
    let words: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = |place: usize| words[place].parse::<f64>().unwrap();
    (words[0].to_owned(), (ticks(11) + ticks(12)) / TICKS_PER_S)
}

/// The most memory that a process had resident, in bytes; 0 for one that has ended.
pub(crate) fn peak_memory(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

/// A sandbox in a process of its own, so that its work is not counted as ours. No limit, no latency.
pub(crate) struct Api {
    _process: Ended,
    pub(crate) url: String,
}

impl Api {
    pub(crate) fn start() -> Self {
        let process = Command::new(pixfleet())
            .args(["sandbox", "--listen", "127.0.0.1:0", "--json", "--key", KEY])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let mut process = Ended(process.expect("pixfleet can be run"));
        let mut line = String::new();
        BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let greeting: Value = serde_json::from_str(&line).expect("the sandbox says where it listens");
        Self { _process: process, url: greeting["url"].as_str().unwrap().to_owned() }
    }
}
