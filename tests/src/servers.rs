//! The real servers that `tests/services run -- COMMAND` starts. A missing one fails the test, by name.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

static NEXT: AtomicU32 = AtomicU32::new(0);

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run the tests with `tests/services run -- cargo test`, which starts the servers")
    })
}

/// The private Redis.
pub fn redis_url() -> String {
    variable("PIXFLEET_REDIS_URL")
}

/// The private RabbitMQ, default virtual host.
pub fn rabbitmq_url() -> String {
    variable("PIXFLEET_RABBITMQ_URL")
}

/// A name that no other test of this or another process has.
pub fn fresh_name(prefix: &str) -> String {
    format!("{prefix}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A virtual host of its own on the private RabbitMQ: queues have fixed names, and tests run side by side.
pub fn fresh_rabbitmq_url() -> String {
    let vhost = fresh_name("test");
    let made = services(&[
        "ctl",
        "eval",
        &format!(
            "rabbit_vhost:add(<<\"{vhost}\">>, <<\"test\">>), rabbit_auth_backend_internal:set_permissions(\
         <<\"guest\">>, <<\"{vhost}\">>, <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"test\">>)."
        ),
    ]);
    assert!(made.status.success(), "no virtual host: {}", String::from_utf8_lossy(&made.stderr));
    let url = rabbitmq_url();
    let base = url.rsplit_once('/').map_or(url.as_str(), |(base, _)| base);
    format!("{base}/{vhost}")
}

/// Runs `tests/services` on the running set: `ctl` is rabbitmqctl, `cli` redis-cli, `kill` and `revive` a server.
pub fn services(arguments: &[&str]) -> Output {
    let (verb, rest) = arguments.split_first().expect("a verb of tests/services");
    Command::new(repository().join("tests/services"))
        .arg(verb)
        .args(["--dir", &variable("PIXFLEET_SERVICES_DIR")])
        .args(rest)
        .output()
        .expect("tests/services can be run")
}

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}
