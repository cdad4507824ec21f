//! How evenly calls arrive at an API that is 20 ms away and speaks TLS: 40 at 20 a second, several of them at once.
//!
//! A call that has to open its connection at its slot arrives a round trip late, and so too close to the next one.

use std::{
    collections::HashSet,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use pixfleet_sandbox::{Latency, Running, Sandbox, Settings};
use pixfleet_tests::{fleet::KEY, one_machine::OneMachine};
use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional, duplex, split},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::mpsc,
    time::sleep_until,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};

use crate::Figure;

const TURNS: usize = 8;
const JOBS: usize = 40;
const LIMIT: u32 = 20;
/// The time to the API, each way.
const ONE_WAY: Duration = Duration::from_millis(20);
/// Several slots long, so that several connections are needed.
const LATENCY_MS: u64 = 160;
/// What the limiter allows for, unless it is told otherwise.
const JITTER_MS: f64 = 8.0;

pub(crate) async fn measure() -> Vec<Figure> {
    let mut early = Vec::new();
    for _ in 0..TURNS {
        early.extend(turn().await);
    }
    early.sort_by(f64::total_cmp);
    let (calls, median, most) = (early.len(), early[early.len() / 2], early[early.len() - 1]);
    let measured = format!("median {median:.1} ms, at most {most:.1} ms, of {calls} in {TURNS} runs");
    let data = json!({"median_ms": median, "max_ms": most, "calls": calls, "one_way_ms": ONE_WAY.as_millis() as u64});
    let what = "TLS, 20 ms away: a call on a new connection is late for the next one by";
    vec![Figure::new(
        what,
        measured,
        "median within the 8 ms that the limiter allows for",
        median < JITTER_MS,
        data,
    )]
}

/// One run; of each call that came on a new connection, by how much the next one, on an old, came too soon after it.
async fn turn() -> Vec<f64> {
    let settings = Settings {
        keys: vec![KEY.into()],
        latency: Latency::Constant { ms: LATENCY_MS },
        ..Settings::default()
    };
    let sandbox = Sandbox::start(TcpListener::bind("127.0.0.1:0").await.unwrap(), settings).unwrap();
    let certified = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let endpoint = far_away(&sandbox, &certified).await;
    let machine = OneMachine::new(JOBS, &endpoint);
    let limits = format!("limits = [{{ name = \"rate\", calls = {LIMIT} }}]\n");
    append(&machine.path().join("pixfleet.toml"), &limits);
    std::fs::write(machine.path().join("ca.pem"), certified.cert.pem()).unwrap();
    let mut command = Command::from(machine.run(&["o.jsonl"], 64));
    command.env("SSL_CERT_FILE", machine.path().join("ca.pem")).env_remove("SSL_CERT_DIR");
    let status = command.stdout(Stdio::null()).kill_on_drop(true).status().await.unwrap();
    assert!(status.success(), "the run ended with {status}");

    let mut calls: Vec<(u64, u64)> =
        sandbox.access().await.iter().map(|line| (line.at_us, line.connection)).collect();
    calls.sort_unstable();
    assert_eq!(calls.len(), JOBS);
    let interval_ms = (1_000.0 + JITTER_MS) / f64::from(LIMIT);
    let mut connections = HashSet::new();
    // Calls that are all late alike keep their distance: it shows where one on an old connection comes next.
    let new: Vec<bool> = calls.iter().map(|call| connections.insert(call.1)).collect();
    let pairs = calls.windows(2).zip(new.windows(2)).filter(|(_, new)| new[0] && !new[1]);
    pairs.map(|(pair, _)| (interval_ms - (pair[1].0 - pair[0].0) as f64 / 1e3).max(0.0)).collect()
}

fn append(file: &Path, text: &str) {
    let before = std::fs::read_to_string(file).unwrap();
    std::fs::write(file, before + text).unwrap();
}

/// The sandbox behind TLS, each byte so long on its way.
async fn far_away(sandbox: &Running, certified: &CertifiedKey<KeyPair>) -> String {
    pixfleet_worker::client::install_tls();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![certified.cert.der().clone()], key).unwrap();
    let tls = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let api = sandbox.url().trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (tls, api) = (tls.clone(), api.clone());
            client.set_nodelay(true).unwrap();
            let (near, far) = duplex(1 << 20);
            let (from_client, to_client) = client.into_split();
            let (from_api, to_api) = split(near);
            tokio::spawn(delayed(from_client, to_api));
            tokio::spawn(delayed(from_api, to_client));
            tokio::spawn(async move {
                // A connection that is opened and closed has no handshake.
                let Ok(mut open) = tls.accept(far).await else { return };
                let mut api = TcpStream::connect(api).await.unwrap();
                api.set_nodelay(true).unwrap();
                let _ = copy_bidirectional(&mut open, &mut api).await;
            });
        }
    });
    endpoint
}

async fn delayed(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin + Send + 'static) {
    let (put, mut on_the_way) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        while let Some((due, bytes)) = on_the_way.recv().await {
            sleep_until(due.into()).await;
            if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    });
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if put.send((Instant::now() + ONE_WAY, buffer[..n].to_vec())).is_err() {
            return;
        }
    }
}
