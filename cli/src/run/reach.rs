//! Whether the API can be reached at all: said before a run begins, and not by every one of its jobs.

use std::{io, time::Duration};

use anyhow::bail;
use pixfleet_worker::provider::Provider;
use tokio::{net::TcpStream, time::timeout};
use url::Url;

/// Opens a connection to the provider's endpoint and closes it again. Behind a proxy nothing is tried.
///
/// # Errors
/// What is wrong, with the setting that names the endpoint.
pub(super) async fn check(provider: &Provider) -> anyhow::Result<()> {
    let transport = provider.transport();
    let endpoint = &provider.definition().endpoint;
    let Some((host, port)) = Url::parse(endpoint).ok().as_ref().and_then(place) else {
        return Ok(());
    };
    if transport.proxy.is_some() {
        return Ok(());
    }
    let patience = Duration::from_millis(transport.connect_ms);
    let why = match timeout(patience, TcpStream::connect((host.as_str(), port))).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => said(&error),
        Err(_) => format!("no answer within {} ms", transport.connect_ms),
    };
    let name = provider.name();
    bail!(
        "`{name}` can't be reached at {host}:{port}: {why}. Is it running, and is its address right? \
         providers.{name}.endpoint is {endpoint}"
    )
}

fn place(url: &Url) -> Option<(String, u16)> {
    let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    Some((host, url.port_or_known_default()?))
}

fn said(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "nothing listens there (connection refused)".to_owned(),
        _ => error.to_string(),
    }
}
