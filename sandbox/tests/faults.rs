//! Each fault, as a client on the other end of the connection sees it.

#![allow(clippy::unwrap_used, reason = "a test helper that fails is a test that fails")]

mod client;

use std::time::Duration;

use client::{IMAGE, client, predict, sandbox};
use pixfleet_sandbox::{Fault, Faults, Outcome, Running, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CALL: &str = "GET /vision/v2/predict?client_key=k&model_id=re_logo&image_url=https%3A%2F%2Fi.example%2F1.jpg HTTP/1.1\r\nhost: sandbox\r\n\r\n";

async fn with(faults: Faults) -> Running {
    sandbox(Settings { faults, ..Settings::default() }).await
}

/// Everything that the sandbox sends until it closes the connection.
async fn until_closed(sandbox: &Running) -> String {
    let mut stream = TcpStream::connect(sandbox.addr()).await.unwrap();
    stream.write_all(CALL.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said).await;
    String::from_utf8(said).unwrap()
}

async fn only_outcome(sandbox: &Running) -> (Outcome, Option<u16>) {
    let lines = sandbox.access().await;
    assert_eq!(lines.len(), 1);
    (lines[0].outcome, lines[0].status)
}

#[tokio::test]
async fn a_500_is_answered_and_not_charged() {
    let sandbox = with(Faults { error_500: 1.0, ..Faults::default() }).await;
    let (status, body) = client::json(predict(&client(), &sandbox, IMAGE)).await;
    assert_eq!((status.as_u16(), body["error"].as_str()), (500, Some("true")));
    assert_eq!(only_outcome(&sandbox).await, (Outcome::Faulted(Fault::Error500), Some(500)));
    let total = sandbox.bill().total;
    assert_eq!((total.accepted, total.faulted, total.charged), (1, 1, 0));
}

#[tokio::test]
async fn a_drop_closes_the_connection_without_a_byte_and_is_charged() {
    let sandbox = with(Faults { drop: 1.0, ..Faults::default() }).await;
    assert_eq!(until_closed(&sandbox).await, "");
    assert_eq!(only_outcome(&sandbox).await, (Outcome::Faulted(Fault::Drop), None));
    assert_eq!(sandbox.bill().total.charged, 1);
}

#[tokio::test]
async fn a_cut_sends_half_of_the_announced_body_and_closes() {
    let sandbox = with(Faults { cut: 1.0, ..Faults::default() }).await;
    let said = until_closed(&sandbox).await;
    let (head, body) = said.split_once("\r\n\r\n").expect("a whole head");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let announced = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let announced: usize = announced.parse().unwrap();
    assert!(!body.is_empty() && body.len() < announced, "{} of {announced}", body.len());
    assert_eq!(only_outcome(&sandbox).await, (Outcome::Faulted(Fault::Cut), Some(200)));
}

#[tokio::test]
async fn a_hang_answers_nothing_until_its_time_is_over() {
    let sandbox = with(Faults { hang: 1.0, hang_ms: 50, ..Faults::default() }).await;
    assert_eq!(until_closed(&sandbox).await, "");
    assert_eq!(only_outcome(&sandbox).await, (Outcome::Faulted(Fault::Hang), None));
}

#[tokio::test]
async fn a_client_that_gives_up_on_a_hang_is_in_the_log() {
    let sandbox = with(Faults { hang: 1.0, ..Faults::default() }).await;
    let answer = predict(&client(), &sandbox, IMAGE).timeout(Duration::from_millis(200)).send().await;
    assert!(answer.unwrap_err().is_timeout());
    while sandbox.bill().total.calls < 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(only_outcome(&sandbox).await, (Outcome::Faulted(Fault::Hang), None));
}

#[tokio::test]
async fn a_malformed_body_is_whole_as_http_and_broken_as_json() {
    let sandbox = with(Faults { malformed: 1.0, ..Faults::default() }).await;
    let answer = predict(&client(), &sandbox, IMAGE).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let text = answer.text().await.unwrap();
    assert!(text.starts_with('{') && serde_json::from_str::<serde_json::Value>(&text).is_err(), "{text}");
}

#[tokio::test]
async fn a_huge_body_announces_no_length_and_has_the_ordered_one() {
    let sandbox = with(Faults { huge: 1.0, huge_bytes: 3_000_001, ..Faults::default() }).await;
    let answer = predict(&client(), &sandbox, IMAGE).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.content_length()), (200, None));
    assert_eq!(answer.bytes().await.unwrap().len(), 3_000_001);
}

#[tokio::test]
async fn a_shutdown_cuts_what_does_not_end_and_still_logs_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.jsonl");
    let faults = Faults { hang: 1.0, ..Faults::default() };
    let settings = Settings { faults, access_log: Some(path.clone()), ..Settings::default() };
    let sandbox = sandbox(settings).await;
    let mut stream = TcpStream::connect(sandbox.addr()).await.unwrap();
    stream.write_all(CALL.as_bytes()).await.unwrap();
    while sandbox.bill().in_flight < 1 {
        tokio::task::yield_now().await;
    }
    let bill = sandbox.shutdown_within(Duration::ZERO).await.unwrap();
    assert_eq!(bill.total.faulted, 1);
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0, "the connection is closed");
}
