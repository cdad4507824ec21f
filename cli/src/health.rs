//! The role `health`: asks a role's HTTP server whether it is well, as a container's health check.
//!
//! One plain HTTP/1.1 GET, bounded in time and size. An image of one binary has no curl.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{config::Sources, exit::Exit, output};

/// The most that is read of an answer, in bytes.
const MAX_ANSWER: u64 = 16 * 1024;

/// Ask a worker (or any URL) whether it is ready.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  pixfleet health                                               this machine's worker, at [admin] listen
  pixfleet health --url http://127.0.0.1:8080/sandbox/health    another one
  HEALTHCHECK CMD [\"pixfleet\", \"health\"]                        in a Dockerfile")]
pub(crate) struct Args {
    /// What is asked. Default: /readyz at the address of `admin.listen`
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Time for the whole question and answer, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2000)]
    timeout_ms: u64,
}

/// Asks once. Exit code 0 for a 2xx answer; else 1, and stderr says why.
pub(crate) async fn run(args: Args, sources: &Sources) -> anyhow::Result<ExitCode> {
    output::line(said(args, sources).await?.trim())?;
    Ok(Exit::Done.into())
}

/// What a healthy server says of itself.
async fn said(args: Args, sources: &Sources) -> anyhow::Result<String> {
    let url = match args.url {
        Some(url) => url,
        None => readiness_url(&sources.load()?.config.admin.listen)?,
    };
    let target = Target::parse(&url)?;
    let answer = timeout(Duration::from_millis(args.timeout_ms), ask(&target)).await;
    let answer = answer.map_err(|_| anyhow::anyhow!("{url} did not answer within {} ms", args.timeout_ms))?;
    let (status, body) = answer.with_context(|| format!("{url} can't be asked"))?;
    if !(200..300).contains(&status) {
        bail!("{url} answered {status}: {}", body.trim());
    }
    Ok(body)
}

/// A server that listens on every address is asked on this machine's own.
fn readiness_url(listen: &str) -> anyhow::Result<String> {
    let Some((host, port)) = listen.rsplit_once(':') else {
        bail!("[admin] listen is empty, so there is nothing to ask: give --url");
    };
    let host = match host {
        "0.0.0.0" => "127.0.0.1",
        "[::]" => "[::1]",
        host => host,
    };
    Ok(format!("http://{host}:{port}/readyz"))
}

#[derive(Debug, PartialEq, Eq)]
struct Target {
    host: String,
    path: String,
}

impl Target {
    fn parse(url: &str) -> anyhow::Result<Self> {
        let plain = !url.contains(|c: char| c.is_ascii_control() || c == ' ' || c == '@');
        let Some(rest) =
            url.strip_prefix("http://").filter(|rest| plain && !rest.is_empty() && !rest.starts_with('/'))
        else {
            bail!(
                "`{}` can't be asked: give a plain URL like http://127.0.0.1:9600/readyz",
                url.escape_debug()
            );
        };
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let host = if has_port { host.to_owned() } else { format!("{host}:80") };
        Ok(Self { host, path: if path.is_empty() { "/".to_owned() } else { path.to_owned() } })
    }
}

/// The answer's status and body. The end of the connection is the end of the body: it is asked to be closed.
async fn ask(target: &Target) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(&target.host).await?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAccept: text/plain\r\nUser-Agent: pixfleet-health\r\n\r\n",
        target.path, target.host
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is no HTTP")?;
    let mut words = head.split(' ');
    let status = match (words.next(), words.next().map(str::parse)) {
        (Some(version), Some(Ok(status))) if version.starts_with("HTTP/1.") => status,
        _ => bail!("the answer is no HTTP"),
    };
    Ok((status, body.chars().filter(|c| !c.is_control() || *c == '\n').take(500).collect()))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn asked(answer: &'static [u8], timeout_ms: u64) -> anyhow::Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/readyz", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1:"));
            stream.write_all(answer).await.unwrap();
            if answer.is_empty() {
                std::future::pending::<()>().await;
            }
        });
        let result = said(Args { url: Some(url), timeout_ms }, &Sources::default()).await;
        server.abort();
        result
    }

    #[tokio::test]
    async fn a_ready_server_is_healthy() {
        let said = asked(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n", 60_000).await;
        assert_eq!(said.unwrap(), "ready\n");
    }

    #[tokio::test]
    async fn a_server_that_is_not_ready_says_why() {
        let error =
            asked(b"HTTP/1.1 503 Service Unavailable\r\n\r\nredis is away\n", 60_000).await.unwrap_err();
        assert!(error.to_string().ends_with("answered 503: redis is away"), "{error}");
    }

    #[tokio::test]
    async fn silence_and_nonsense_are_not_healthy() {
        let error = asked(b"", 50).await.unwrap_err();
        assert!(error.to_string().contains("did not answer within 50 ms"), "{error}");
        let error = asked(b"SSH-2.0-OpenSSH\r\n\r\n", 60_000).await.unwrap_err();
        assert!(format!("{error:#}").contains("no HTTP"), "{error:#}");
    }

    #[test]
    fn a_server_on_every_address_is_asked_here() {
        assert_eq!(readiness_url("0.0.0.0:9600").unwrap(), "http://127.0.0.1:9600/readyz");
        assert_eq!(readiness_url("[::]:1").unwrap(), "http://[::1]:1/readyz");
        assert_eq!(readiness_url("localhost:1").unwrap(), "http://localhost:1/readyz");
        assert!(readiness_url("").unwrap_err().to_string().contains("--url"));
    }

    #[test]
    fn a_url_is_split_and_others_are_refused() {
        let target = |host: &str, path: &str| Target { host: host.into(), path: path.into() };
        assert_eq!(Target::parse("http://h:1/a?b").unwrap(), target("h:1", "/a?b"));
        assert_eq!(Target::parse("http://h").unwrap(), target("h:80", "/"));
        assert_eq!(Target::parse("http://[::1]:9600").unwrap(), target("[::1]:9600", "/"));
        for url in ["https://h/", "h:1", "http://", "http://u:p@h/", "http://h/\r\nX: y"] {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }
}
