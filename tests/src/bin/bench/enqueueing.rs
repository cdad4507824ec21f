//! `pixfleet enqueue` against a bare loop of pipelined confirms on the same queue, turn by turn; and its memory.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueuePurgeOptions},
};
use pixfleet_sandbox::Settings;
use pixfleet_shared::{fleet::rabbit::job_queue, job::Priority};
use pixfleet_tests::fleet::{Fleet, image_url, job};
use serde_json::{Value, json};

use crate::{Figure, measured::peak_memory};

const TURNS: usize = 3;
const ROWS: usize = 100_000;
const MANY_ROWS: usize = 1_000_000;
const WINDOW: usize = 1_000;

pub(crate) async fn measure() -> Vec<Figure> {
    let fleet = Fleet::start(Settings::default(), "", "").await;
    let manifest = manifest(&fleet, ROWS);
    let mut turns = Vec::new();
    for turn in 0..TURNS {
        purge(&fleet).await;
        let bare = bare_loop(&fleet).await;
        purge(&fleet).await;
        let (ours, _) = enqueue(&fleet, &manifest, &format!("turn{turn}"), ROWS);
        turns.push((ours / bare, ours, bare));
    }
    turns.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (ratio, ours, bare) = turns[TURNS / 2];
    let measured = format!(
        "{ratio:.2} of a bare loop ({ours:.0}/s of {bare:.0}/s; {:.2} to {:.2})",
        turns[0].0,
        turns[TURNS - 1].0
    );
    let data = json!({"ratio": ratio, "lowest": turns[0].0, "highest": turns[TURNS - 1].0, "jobs_per_s": ours, "bare_per_s": bare});
    let rate =
        Figure::new("enqueue, 100,000 rows, median of 3 turns", measured, ">= 0.70", ratio >= 0.7, data);

    purge(&fleet).await;
    let (rate_of_many, peak) = enqueue(&fleet, &self::manifest(&fleet, MANY_ROWS), "many", MANY_ROWS);
    purge(&fleet).await;
    let mebibytes = peak as f64 / 1_048_576.0;
    let measured = format!("{mebibytes:.0} MiB at most, {rate_of_many:.0} rows/s");
    let data = json!({"peak_mib": mebibytes, "rows_per_s": rate_of_many});
    vec![rate, Figure::new("enqueue, 1,000,000 rows, memory", measured, "< 60 MiB", mebibytes < 60.0, data)]
}

fn manifest(fleet: &Fleet, rows: usize) -> PathBuf {
    let path = fleet.file(&format!("{rows}.csv"), "id,url\n");
    let mut file = std::io::BufWriter::new(std::fs::OpenOptions::new().append(true).open(&path).unwrap());
    for row in 0..rows {
        writeln!(file, "i{row},{}", image_url(row)).unwrap();
    }
    path
}

/// Rows per second, and the peak of resident memory in bytes.
fn enqueue(fleet: &Fleet, manifest: &Path, batch: &str, rows: usize) -> (f64, u64) {
    let manifest = manifest.to_str().unwrap();
    let arguments =
        ["enqueue", manifest, "--provider", "sandbox", "--models", "m", "--batch", batch, "--json"];
    let mut command = fleet.command(&arguments);
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut peak = 0;
    while process.try_wait().unwrap().is_none() {
        peak = peak.max(peak_memory(process.id()));
        std::thread::sleep(Duration::from_millis(20));
    }
    let summary: Value = serde_json::from_reader(process.stdout.take().unwrap()).expect("a summary");
    assert_eq!(summary["enqueued"].as_u64(), Some(rows as u64), "{summary}");
    (rows as f64 / summary["seconds"].as_f64().unwrap(), peak)
}

/// Messages per second of the plainest loop: the same body, persistent, mandatory, 1,000 unconfirmed.
async fn bare_loop(fleet: &Fleet) -> f64 {
    let connection = Connection::connect(&fleet.rabbitmq_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let body = job("turn0", 12_345).to_message().unwrap();
    let queue = job_queue(Priority::Normal, 0);
    let properties =
        BasicProperties::default().with_delivery_mode(2).with_content_type("application/json".into());
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let since = Instant::now();
    let mut unconfirmed = FuturesUnordered::new();
    for _ in 0..ROWS {
        let published =
            channel.basic_publish("".into(), queue.as_str().into(), options, &body, properties.clone());
        unconfirmed.push(published.await.unwrap());
        if unconfirmed.len() >= WINDOW {
            assert!(unconfirmed.next().await.unwrap().unwrap().is_ack());
        }
    }
    while let Some(confirm) = unconfirmed.next().await {
        assert!(confirm.unwrap().is_ack());
    }
    let rate = ROWS as f64 / since.elapsed().as_secs_f64();
    connection.close(200, "done".into()).await.unwrap();
    rate
}

async fn purge(fleet: &Fleet) {
    let connection = Connection::connect(&fleet.rabbitmq_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    for lane in 0..4 {
        let queue = job_queue(Priority::Normal, lane);
        channel.queue_purge(queue.as_str().into(), QueuePurgeOptions::default()).await.unwrap();
    }
    connection.close(200, "done".into()).await.unwrap();
}
