//! `pixfleet`, the one binary: every role is a subcommand, and this crate alone wires roles to servers.
//!
//! `main` parses, reads the settings, starts the log and the runtime, and turns how the role ended into an exit
//! code. Each role is a file of its own: its `Args`, and `run(args, config)`, with the compiled providers where it
//! makes calls.

mod batch;
mod budget;
mod config;
mod dead;
mod demo;
mod engine;
mod enqueue;
mod exit;
mod health;
mod ledger;
mod limits;
mod order;
mod output;
mod results;
mod run;
mod sandbox;
mod schemas;
mod spans;
mod stack;
mod status;
mod topology;
mod words;
mod worker;

use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::{Parser, Subcommand};
use pixfleet_shared::{failpoint, telemetry};

use crate::{
    config::{Keys, Log, Sources},
    exit::Exit,
};

#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Pushes millions of images through rate-limited image APIs, and loses none.
#[derive(Debug, Parser)]
#[command(
    name = "pixfleet",
    version,
    max_term_width = 120,
    after_help = "EXAMPLES
  pixfleet demo                              the whole way on one machine, against a sandbox
  pixfleet run images.csv --provider restb --models re_logo --out answers.csv    the same against an API
  pixfleet config example > pixfleet.toml    a settings file to start from
  pixfleet enqueue images.csv --provider restb --models re_roomtype_global_v2 --batch spring
  pixfleet worker                            as many as you like, under one limit
  pixfleet results --batch spring --by-image

EXIT CODES
  0 done    1 failed    2 wrong command line or settings    3 done, but for bad manifest rows
  4 ended before everything was done; what is left is still in the queue, or in the state file"
)]
struct Cli {
    #[command(subcommand)]
    role: Role,
    #[command(flatten)]
    sources: Sources,
}

#[derive(Debug, Subcommand)]
enum Role {
    Run(Box<run::Args>),
    Enqueue(Box<enqueue::Args>),
    Worker(worker::Args),
    Results(Box<results::Args>),
    Status(status::Args),
    Batch(batch::Args),
    Ledger(Box<ledger::Args>),
    Limits(Box<limits::Args>),
    Dead(Box<dead::Args>),
    Topology(topology::Args),
    Sandbox(Box<sandbox::Args>),
    Demo(demo::Args),
    Config(config::Args),
    Health(health::Args),
    Schemas(schemas::Args),
}

impl Role {
    /// Whether it reads what others have published.
    fn is_sent_messages(&self) -> bool {
        matches!(
            self,
            Self::Worker(_) | Self::Results(_) | Self::Batch(_) | Self::Dead(_) | Self::Topology(_)
        )
    }
}

fn main() -> ExitCode {
    failpoint::reached("start");
    let cli = Cli::parse();
    if cli.role.is_sent_messages() {
        stack::deepen();
    }
    play(cli).unwrap_or_else(|error| Exit::of_error(&error, &mut std::io::stderr()).into())
}

fn play(cli: Cli) -> anyhow::Result<ExitCode> {
    let sources = cli.sources;
    match cli.role {
        Role::Config(args) => config::run(args, &sources),
        Role::Schemas(args) => schemas::run(&args),
        Role::Health(args) => runtime()?.block_on(health::run(args, &sources)),
        Role::Run(args) => {
            let (loaded, provider) = sources.load_with_provider(args.provider())?;
            start(&loaded.quiet_log(), run::run(*args, loaded, provider))
        }
        Role::Enqueue(args) => {
            let (loaded, catalog) = sources.load_with_providers(Keys::NotNeeded)?;
            start(&loaded.quiet_log(), enqueue::run(*args, loaded, catalog))
        }
        Role::Worker(args) => {
            let (loaded, catalog) = sources.load_with_providers(Keys::Needed)?;
            start(&loaded.log(), worker::run(args, loaded, catalog))
        }
        Role::Results(args) => {
            let loaded = sources.load()?;
            start(&loaded.quiet_log(), results::run(*args, loaded.config))
        }
        Role::Status(args) => {
            let loaded = sources.load()?;
            // Providers that can't be used are no reason not to look.
            let providers = sources.load_with_providers(Keys::NotNeeded);
            let catalog = providers.map(|(_, catalog)| catalog).unwrap_or_default();
            start(&loaded.quiet_log(), status::run(args, loaded.config, catalog))
        }
        Role::Batch(args) => {
            let loaded = sources.load()?;
            start(&loaded.quiet_log(), batch::run(args, loaded.config))
        }
        Role::Ledger(args) => {
            let loaded = sources.load()?;
            start(&loaded.quiet_log(), ledger::run(*args, loaded.config))
        }
        Role::Limits(args) => {
            let (loaded, catalog) = sources.load_with_providers(Keys::NotNeeded)?;
            start(&loaded.quiet_log(), limits::run(*args, loaded, catalog))
        }
        Role::Dead(args) => {
            let loaded = sources.load()?;
            let providers = sources.load_with_providers(Keys::NotNeeded);
            let catalog = providers.map(|(_, catalog)| catalog).unwrap_or_default();
            start(&loaded.quiet_log(), dead::run(*args, loaded.config, catalog))
        }
        Role::Topology(args) => {
            let loaded = sources.load()?;
            start(&loaded.quiet_log(), topology::run(args, loaded.config))
        }
        Role::Demo(args) => {
            let loaded = sources.load()?;
            start(&loaded.quiet_log(), demo::run(args, loaded.config))
        }
        Role::Sandbox(args) => start(&sources.load()?.log(), sandbox::run(*args)),
    }
}

/// Runs a role under the log, TLS and the async runtime.
fn start(log: &Log, role: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    telemetry::start_log(&log.filter, log.format)
        .map_err(|error| anyhow!("the log can't be started: {error}"))?;
    // RabbitMQ, Redis and HTTP share it; a second installation would be refused, and there is none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    runtime()?.block_on(role)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the async runtime can't be started")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples() {
        let mut left: Vec<clap::Command> = vec![Cli::command()];
        while let Some(command) = left.pop() {
            let help = command.get_after_help().or(command.get_after_long_help()).map(ToString::to_string);
            let shown = command.is_hide_set()
                || help.as_ref().is_some_and(|help| help.to_uppercase().contains("EXAMPLES"));
            help.iter().flat_map(|help| help.lines()).for_each(|line| {
                assert!(line.chars().count() <= 118, "wrapped where there is no terminal: {line}");
            });
            assert!(shown, "`pixfleet {}` has no EXAMPLES", command.get_name());
            left.extend(command.get_subcommands().cloned());
        }
    }

    #[test]
    fn flags_of_the_settings_may_stand_behind_the_role() {
        let cli = Cli::try_parse_from([
            "pixfleet", "health", "--set", "a.b=1", "--config", "c.toml", "--set", "c=2",
        ]);
        assert_eq!(cli.unwrap().sources.set, ["a.b=1", "c=2"]);
    }
}
