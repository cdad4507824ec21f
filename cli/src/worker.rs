//! `pixfleet worker`: works on the jobs of every configured provider, until told to stop.

use std::{process::ExitCode, sync::Arc};

use anyhow::Context;
use pixfleet_shared::settings::Problems;
use pixfleet_worker::provider::Catalog;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    config::Loaded,
    engine::{Choice, Engine},
    exit::Exit,
    output,
};

/// Work on jobs under the fleet's limits; start as many as you like, on as many machines
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  pixfleet worker                                    every provider of the settings
  pixfleet worker --set worker.concurrency=200       more calls in flight
  pixfleet worker --state spring.pixfleet            on a state file of this machine, with no server
  PIXFLEET_LOG_FORMAT=json pixfleet worker --json    logs for machines, and a report at the end

SIGNALS
  SIGTERM and SIGINT drain: no new jobs, calls in flight are finished, the rest goes back to the
  queue. A second one stops at once; the queue then delivers what was in hand to another worker.")]
pub(crate) struct Args {
    #[command(flatten)]
    engine: Choice,
    /// Print the drain's report as one JSON line at the end
    #[arg(long)]
    json: bool,
}

/// Works until a signal, and reports.
pub(crate) async fn run(args: Args, loaded: Loaded, catalog: Catalog) -> anyhow::Result<ExitCode> {
    let providers: Vec<_> = catalog.iter().cloned().collect();
    if providers.is_empty() {
        let advice = "no provider: add [providers.NAME] with preset = \"...\" (docs/providers.md)";
        return Err(Problems::from(loaded.document.problem("providers", advice)).into());
    }
    let config = loaded.config;
    let admin = listen(&config.admin.listen).await?;
    let place = args.engine.place(&config.engine, None)?;
    let names = providers.iter().map(|provider| provider.name().to_owned()).collect();
    let (engine, engines) = Engine::start(&place, &config, names).await?;
    let shutdown = on_signal()?;
    let report =
        pixfleet_worker::run(config.worker, providers, engines, Arc::default(), admin, shutdown).await;
    engine.close().await;
    let report = report?;
    if args.json {
        output::json(&serde_json::to_value(report)?)?;
    }
    Ok(if report.left == 0 { Exit::Done } else { Exit::WorkLeft }.into())
}

async fn listen(address: &str) -> anyhow::Result<Option<TcpListener>> {
    if address.is_empty() {
        return Ok(None);
    }
    let listener = TcpListener::bind(address).await;
    listener.map(Some).with_context(|| {
        format!("admin.listen = \"{address}\" can't be bound: give a free address, or \"\" for none")
    })
}

/// Cancelled by the first SIGTERM or SIGINT; a second one ends the process at once.
pub(crate) fn on_signal() -> anyhow::Result<CancellationToken> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let first = token.clone();
    tokio::spawn(async move {
        for told in 0.. {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if told > 0 {
                warn!("told twice: stopping at once");
                std::process::exit(Exit::WorkLeft as i32);
            }
            first.cancel();
        }
    });
    Ok(token)
}
