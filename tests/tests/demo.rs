//! The README's first command: it needs no server, and loses nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use pixfleet_tests::fleet::pixfleet;
use serde_json::Value;

#[test]
fn the_demo_needs_no_server_and_answers_every_call_once() {
    // Nowhere: whoever asks for a server fails.
    let output = Command::new(pixfleet())
        .args(["demo", "--json"])
        .env("PIXFLEET_RABBITMQ_URL", "amqp://127.0.0.1:1/%2f")
        .env("PIXFLEET_REDIS_URL", "redis://127.0.0.1:1/0")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (what, expected) in [("calls", 36), ("lost", 0), ("duplicates", 0)] {
        assert_eq!(figures[what], expected, "{figures}\n{said}");
    }
}
