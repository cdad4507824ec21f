//! From the start of `pixfleet run` to the first call's arrival: anew, and half-way through a million jobs.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use pixfleet_tests::{
    fleet::pixfleet,
    one_machine::{BATCH, OneMachine},
};
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use crate::{
    Figure,
    measured::{Api, Ended},
};

const STARTS: usize = 20;
const FEW_JOBS: usize = 100;
const TURNS: usize = 3;
const MANY_JOBS: usize = 1_000_000;
const OUTPUT: &str = "o.jsonl";
/// The longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// Twenty starts of a run of a few jobs.
pub(crate) async fn start() -> Vec<Figure> {
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let (listener, endpoint) = listen().await;
        let machine = OneMachine::new(FEW_JOBS, &endpoint);
        starts.push(until_the_first_call(machine.run(&[OUTPUT], 64), &listener).await);
    }
    starts.sort_by(f64::total_cmp);
    let (median, most) = (starts[STARTS / 2], starts[STARTS - 1]);
    let measured = format!("median {:.0} ms, at most {:.0} ms, of {STARTS}", median * 1e3, most * 1e3);
    let data = json!({"median_ms": median * 1e3, "max_ms": most * 1e3, "starts": STARTS});
    vec![Figure::new("run, from start to first call", measured, "median < 100 ms", median < 0.1, data)]
}

/// A million jobs, killed half-way, and gone on with from copies of what the kill left.
pub(crate) async fn resume() -> Vec<Figure> {
    let machine = half_done().await;
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        let copy = tempfile::tempdir_in(machine.path().parent().unwrap()).unwrap();
        let files = machine.path().join(".");
        let copied = Command::new("cp").arg("-R").arg(files).arg(copy.path()).status().unwrap();
        assert!(copied.success(), "no copy of the files");
        let (listener, endpoint) = listen().await;
        let mut command = machine.run(&[OUTPUT], 64);
        command.current_dir(copy.path());
        command.arg("--set").arg(format!("providers.sandbox.endpoint={endpoint}"));
        turns.push(until_the_first_call(command, &listener).await);
    }
    turns.sort_by(f64::total_cmp);
    let (median, most) = (turns[TURNS / 2], turns[TURNS - 1]);
    let measured = format!("median {median:.2} s, at most {most:.2} s, of {TURNS}");
    let data = json!({"median_s": median, "max_s": most, "turns": TURNS});
    let what = "run, 1,000,000 jobs, killed half-way: from start to the next call";
    vec![Figure::new(what, measured, "< 2 s", most < 2.0, data)]
}

async fn half_done() -> OneMachine {
    let api = Api::start();
    let machine = OneMachine::new(MANY_JOBS, &api.url);
    let run = machine.run(&[OUTPUT], 256).stdout(Stdio::null()).spawn();
    let mut run = Ended(run.expect("pixfleet can be run"));
    let half = async {
        while done(&machine) < MANY_JOBS as u64 / 2 {
            assert!(run.0.try_wait().unwrap().is_none(), "the run ended before it was half done");
            sleep(Duration::from_millis(500)).await;
        }
    };
    timeout(PATIENCE, half).await.expect("half of the jobs");
    drop(run);
    machine
}

/// Jobs that are done, as `pixfleet status` says beside the run; none before there is a state file.
fn done(machine: &OneMachine) -> u64 {
    let mut status = Command::new(pixfleet());
    status.args(["status", "--batch", BATCH, "--json", "--state"]).arg(machine.state());
    let told = status.current_dir(machine.path()).output().expect("pixfleet can be run").stdout;
    let told: Value = serde_json::from_slice(&told).unwrap_or_default();
    told["batches"][0]["ended"].as_u64().unwrap_or(0)
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    (listener, endpoint)
}

/// Seconds from the process's start until the first byte of a call. It is not answered; the process ends here.
async fn until_the_first_call(mut command: Command, listener: &TcpListener) -> f64 {
    let began = Instant::now();
    let run = command.stdout(Stdio::null()).spawn();
    let run = Ended(run.expect("pixfleet can be run"));
    let call = timeout(PATIENCE, first_call(listener)).await.expect("a call");
    let seconds = began.elapsed().as_secs_f64();
    // In this order: a call that is cut off would be complained about.
    drop(run);
    drop(call);
    seconds
}

/// A connection without a byte is none: a run looks whether the API is there before it begins.
async fn first_call(listener: &TcpListener) -> TcpStream {
    loop {
        let (mut connection, _) = listener.accept().await.unwrap();
        if connection.read(&mut [0]).await.is_ok_and(|bytes| bytes > 0) {
            return connection;
        }
    }
}
