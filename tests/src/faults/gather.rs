//! What the servers, the ledger and a sink's file hold at the end of a run. Read from outside, where that is possible:
//! the checker does not trust the code under test.

use std::{process::Output, time::Duration};

use lapin::{
    Connection, ConnectionProperties,
    options::{BasicGetOptions, QueueDeclareOptions},
    types::FieldTable,
};
use pixfleet_shared::{
    fleet::rabbit::{DEAD_QUEUE, job_queue},
    job::{Job, Priority},
    ledger::Ledger,
    queue::Reason,
};
use tokio::{
    process::Command,
    time::{Instant, sleep, timeout},
};

use super::{
    history::{Letter, Listed},
    stage::BATCH,
};
use crate::{fleet::Fleet, servers};

/// The longest that queues may take to become empty, once every result is out.
const PATIENCE: Duration = Duration::from_secs(40);

/// The virtual host of a broker's URL.
pub fn vhost(url: &str) -> &str {
    url.rsplit_once('/').map_or("/", |(_, vhost)| vhost)
}

/// Runs rabbitmqctl on the private broker, off the runtime's threads.
pub async fn ctl(arguments: &[&str]) -> Output {
    services(&[&["ctl"], arguments].concat()).await
}

/// Runs `tests/services`, off the runtime's threads.
pub async fn services(arguments: &[&str]) -> Output {
    let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
    let run = move || servers::services(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// Waits until the queues of jobs are empty; answers what is left in them: name, ready, unacked.
pub async fn drained(vhost: &str) -> Vec<(String, u64, u64)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left: Vec<_> =
            depths(vhost).await.into_iter().filter(|(_, ready, unacked)| ready + unacked > 0).collect();
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// The queues that hold jobs: name, ready, unacked. Results and dead letters are to stay in theirs.
pub async fn depths(vhost: &str) -> Vec<(String, u64, u64)> {
    let asked = ["-q", "-p", vhost, "list_queues", "name", "messages_ready", "messages_unacknowledged"];
    let listed = ctl(&asked).await;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.status.success(), "list_queues: {}", String::from_utf8_lossy(&listed.stderr));
    let mut depths = Vec::new();
    for line in text.lines() {
        let mut words = line.split('\t');
        let (Some(name), Some(Ok(ready)), Some(Ok(unacked))) =
            (words.next(), words.next().map(str::parse::<u64>), words.next().map(str::parse::<u64>))
        else {
            continue;
        };
        if !name.starts_with("pixfleet.results") && !name.starts_with("pixfleet.dead") {
            depths.push((name.to_owned(), ready, unacked));
        }
    }
    assert!(!depths.is_empty(), "no queue of jobs in:\n{text}");
    depths
}

/// The normal lanes in which no job waits, by the broker's word of now: what `list_queues` says is some seconds old.
pub async fn empty_lanes(url: &str) -> Vec<u8> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut empty = Vec::new();
    for lane in 0..4 {
        let name = job_queue(Priority::Normal, lane).as_str().into();
        let only_look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare(name, only_look, FieldTable::default()).await.unwrap();
        if queue.message_count() == 0 {
            empty.push(lane);
        }
    }
    empty
}

/// The dead letters, all of them; they stay where they are.
pub async fn letters(url: &str) -> Result<Vec<Letter>, String> {
    let read = async {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let mut letters = Vec::new();
        // Unacked until the channel ends: each is seen once, and goes back.
        while let Some(got) = channel.basic_get(DEAD_QUEUE.into(), BasicGetOptions::default()).await? {
            let job = Job::from_message(&got.delivery.data).ok().map(|job| job.id);
            letters.push(Letter { job, reason: Reason::named(got.delivery.routing_key.as_str()) });
        }
        connection.close(200, "read".into()).await?;
        Ok::<_, lapin::Error>(letters)
    };
    match timeout(PATIENCE, read).await {
        Ok(read) => read.map_err(|error| format!("the dead letters can't be read: {error}")),
        Err(_) => Err("the dead letters can't be read in time".to_owned()),
    }
}

/// The result ids in a file that `pixfleet results` wrote from the replay log.
pub async fn filed(fleet: &Fleet) -> Result<Vec<String>, String> {
    let path = fleet.path("results.jsonl");
    let into = path.display().to_string();
    let arguments = ["results", "--batch", BATCH, "--into", &into, "--idle", "5s", "--json"];
    let ended = Command::from(fleet.command(&arguments)).kill_on_drop(true).output();
    let ended = timeout(PATIENCE, ended).await.map_err(|_| "the sink did not end".to_owned())?;
    let ended = ended.map_err(|error| format!("the sink: {error}"))?;
    let said = String::from_utf8_lossy(&ended.stderr);
    if !ended.status.success() {
        return Err(format!("the sink ended with {}: {said}", ended.status));
    }
    let rows = std::fs::read_to_string(&path).map_err(|error| format!("the sink's file: {error}\n{said}"))?;
    let id = |row: &str| {
        let row: serde_json::Value = serde_json::from_str(row).map_err(|error| format!("{error}: {row}"))?;
        row["id"].as_str().map(str::to_owned).ok_or_else(|| format!("no id: {row}"))
    };
    rows.lines().map(id).collect()
}

/// The calls that the ledger lists as never answered.
pub async fn listed(ledger: &dyn Ledger) -> Result<Vec<Listed>, String> {
    let away = |error| format!("the ledger: {error}");
    let mut listed = Vec::new();
    for day in ledger.days().await.map_err(away)? {
        let calls = ledger.unanswered(day).await.map_err(away)?;
        listed.extend(calls.into_iter().map(|call| Listed { job: call.intent.job, then: call.then }));
    }
    Ok(listed)
}
