//! Connections that are opened ahead, against servers that tell what they see of each.

use std::{convert::Infallible, sync::OnceLock};

use http_body_util::Full;
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, rustls};
use url::Url;

use super::*;
use crate::client::Opened;

/// What a server sees of one connection, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Opened(usize),
    /// Bytes of a request.
    Asked(usize),
    /// The client has closed it.
    Closed(usize),
}

struct Server {
    url: Url,
    seen: mpsc::UnboundedReceiver<Seen>,
    /// Each answer takes a permit.
    answers: Arc<Semaphore>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn next(&mut self) -> Seen {
        self.seen.recv().await.unwrap()
    }

    fn request(&self) -> PreparedRequest {
        PreparedRequest {
            method: reqwest::Method::POST,
            url: self.url.join("/?key=hunter22").unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::from_static(b"{}"),
        }
    }
}

/// A server that answers `{}`, but closes its first connections with the words of `farewells`.
async fn serve(tls: Option<TlsAcceptor>, farewells: &'static [&'static str]) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://localhost:{}", listener.local_addr().unwrap().port()).parse().unwrap();
    let (tell, seen) = mpsc::unbounded_channel();
    let answers = Arc::new(Semaphore::new(1000));
    let permits = Arc::clone(&answers);
    let task = tokio::spawn(async move {
        for number in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            if let Some(farewell) = farewells.get(number) {
                let _ = stream.write_all(farewell.as_bytes()).await;
                drop(stream);
                let _ = tell.send(Seen::Opened(number));
                continue;
            }
            let (tell, permits, tls) = (tell.clone(), Arc::clone(&permits), tls.clone());
            tokio::spawn(async move {
                match tls {
                    Some(tls) => talk(tls.accept(stream).await.unwrap(), number, tell, permits).await,
                    None => talk(stream, number, tell, permits).await,
                }
            });
        }
    });
    Server { url, seen, answers, task }
}

async fn talk(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    number: usize,
    tell: mpsc::UnboundedSender<Seen>,
    answers: Arc<Semaphore>,
) {
    let _ = tell.send(Seen::Opened(number));
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        read.extend_from_slice(&buffer[..n]);
        if !read.ends_with(b"\r\n\r\n{}") {
            continue;
        }
        read.clear();
        let _ = tell.send(Seen::Asked(number));
        answers.acquire().await.unwrap().forget();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
    }
    let _ = tell.send(if read.is_empty() { Seen::Closed(number) } else { Seen::Asked(number) });
}

/// A certificate for `localhost`, and a base of clients that trust it.
fn trusted() -> &'static CertifiedKey<rcgen::KeyPair> {
    static OWN: OnceLock<CertifiedKey<rcgen::KeyPair>> = OnceLock::new();
    OWN.get_or_init(|| generate_simple_self_signed(["localhost".to_owned()]).unwrap())
}

fn trusting() -> reqwest::ClientBuilder {
    let certificate = reqwest::Certificate::from_der(trusted().cert.der()).unwrap();
    base_builder().tls_certs_only([certificate])
}

fn tls(alpn: &[&[u8]]) -> TlsAcceptor {
    install_tls();
    let key = rustls::pki_types::PrivateKeyDer::try_from(trusted().signing_key.serialize_der()).unwrap();
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![trusted().cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

fn client(making: Making) -> Client {
    Client::made(&Transport::default(), making).unwrap()
}

/// A client whose connections that were opened ahead grow old after this.
fn aging(fresh: Duration) -> Client {
    client(Making { fresh, ..Making::default() })
}

async fn answered(way: Way, request: &PreparedRequest) -> Opened {
    let sent = way.send(request, None).await;
    assert_eq!(sent.outcome.status(), Some(200), "{sent:?}");
    sent.opened
}

#[tokio::test]
async fn a_connection_is_there_before_its_request_and_the_request_comes_on_it() {
    for acceptor in [None, Some(tls(&[b"http/1.1"]))] {
        let mut server = serve(acceptor, &[]).await;
        let client = client(Making { base: trusting, ..Making::default() });
        client.first_connection(&server.url).await;
        assert_eq!(server.next().await, Seen::Opened(0));
        let way = client.warm(&server.url);
        assert!(
            server.seen.try_recv().is_err(),
            "nothing is said on it before the call, and no second is opened"
        );
        assert_eq!(answered(way, &server.request()).await, Opened::Ahead);
        assert_eq!(server.next().await, Seen::Asked(0));
        assert_eq!(answered(client.warm(&server.url), &server.request()).await, Opened::Before);
        assert_eq!(server.next().await, Seen::Asked(0));
    }
}

#[tokio::test]
async fn a_call_that_would_find_all_connections_in_use_gets_one_of_its_own() {
    let mut server = serve(None, &[]).await;
    server.answers.forget_permits(1000);
    let client = aging(FRESH);
    client.first_connection(&server.url).await;
    let first = tokio::spawn({
        let (way, request) = (client.warm(&server.url), server.request());
        async move { answered(way, &request).await }
    });
    assert_eq!([server.next().await, server.next().await], [Seen::Opened(0), Seen::Asked(0)]);
    let way = client.warm(&server.url);
    assert_eq!(server.next().await, Seen::Opened(1), "before the second call leaves");
    // The server knows of it a little before the client does.
    while client.0.current.load().stash.held(Instant::now()) == 0 {
        tokio::task::yield_now().await;
    }
    let second = tokio::spawn({
        let request = server.request();
        async move { answered(way, &request).await }
    });
    assert_eq!(server.next().await, Seen::Asked(1));
    server.answers.add_permits(2);
    assert_eq!((first.await.unwrap(), second.await.unwrap()), (Opened::Ahead, Opened::Ahead));
}

#[tokio::test]
async fn opening_ahead_sends_nothing_and_what_nobody_takes_is_closed() {
    let mut server = serve(None, &[]).await;
    let client = aging(Duration::from_millis(20));
    let ways: Vec<Way> = (0..20).map(|_| client.warm(&server.url)).collect();
    let mut seen = Vec::new();
    while seen.len() < 8 {
        seen.push(server.next().await);
    }
    let closed = seen.iter().filter(|seen| matches!(seen, Seen::Closed(_))).count();
    assert_eq!(closed, 4, "four at a time, and not a byte: {seen:?}");
    drop(ways);
}

/// A server that speaks HTTP/2 only, and counts its connections and its requests.
async fn serve_http_2() -> (Url, Arc<AtomicU64>, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port()).parse().unwrap();
    let (connections, requests) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (opened, asked, tls) = (Arc::clone(&connections), Arc::clone(&requests), tls(&[b"h2"]));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            opened.fetch_add(1, Ordering::SeqCst);
            let (asked, tls) = (Arc::clone(&asked), tls.clone());
            tokio::spawn(async move {
                let stream = TokioIo::new(tls.accept(stream).await.unwrap());
                let answer = service_fn(|_| {
                    asked.fetch_add(1, Ordering::SeqCst);
                    std::future::ready(Ok::<_, Infallible>(hyper::Response::new(Full::new(
                        Bytes::from_static(b"{}"),
                    ))))
                });
                let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(stream, answer).await;
            });
        }
    });
    (url, connections, requests)
}

#[tokio::test]
async fn with_http_2_one_connection_is_opened_ahead_and_carries_all_calls() {
    let (url, connections, requests) = serve_http_2().await;
    let client = client(Making { base: trusting, ..Making::default() });
    client.first_connection(&url).await;
    assert_eq!(requests.load(Ordering::SeqCst), 0, "nothing is asked by opening");
    let request = PreparedRequest {
        method: reqwest::Method::POST,
        url: url.clone(),
        headers: HeaderMap::new(),
        body: Bytes::from_static(b"{}"),
    };
    let ways: Vec<Way> = (0..10).map(|_| client.warm(&url)).collect();
    let mut opened = Vec::new();
    for way in ways {
        opened.push(answered(way, &request).await);
    }
    assert_eq!(opened.remove(0), Opened::Ahead);
    assert_eq!(opened, [Opened::Before; 9]);
    assert_eq!((connections.load(Ordering::SeqCst), requests.load(Ordering::SeqCst)), (1, 10));
}

#[tokio::test]
async fn a_connection_that_grew_old_is_not_used() {
    let mut server = serve(None, &[]).await;
    // Too old at once, and not yet closed.
    let client = aging(Duration::ZERO);
    client.first_connection(&server.url).await;
    assert_eq!(server.next().await, Seen::Opened(0));
    assert_eq!(answered(client.way(), &server.request()).await, Opened::Late);
}

#[tokio::test]
async fn a_connection_that_the_server_closed_costs_no_call() {
    for farewell in [&[""], &["HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\r\n"]] {
        let mut server = serve(None, farewell).await;
        let client = aging(FRESH);
        client.first_connection(&server.url).await;
        assert_eq!(server.next().await, Seen::Opened(0), "and closed");
        // The runtime has seen the end of that connection once it has seen what came after it.
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (_to, _from) = tokio::join!(TcpStream::connect(other.local_addr().unwrap()), other.accept());
        assert_eq!(answered(client.way(), &server.request()).await, Opened::Late);
    }
}

#[tokio::test]
async fn a_connection_to_one_api_is_never_given_to_a_call_to_another() {
    let (mut one, other) = (serve(None, &[]).await, serve(None, &[]).await);
    let client = aging(FRESH);
    client.first_connection(&one.url).await;
    assert_eq!(answered(client.way(), &other.request()).await, Opened::Late);
    assert_eq!(answered(client.way(), &one.request()).await, Opened::Ahead);
    assert_eq!([one.next().await, one.next().await], [Seen::Opened(0), Seen::Asked(0)]);
}

#[tokio::test]
async fn an_api_that_is_away_is_not_waited_for_twice() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let url: Url = format!("http://{port}").parse().unwrap();
    let client = aging(FRESH);
    client.first_connection(&url).await;
    let way = client.warm(&url);
    assert_eq!(client.0.current.load().stash.ways().open(Instant::now(), 0), 0, "one has just failed");
    let request =
        PreparedRequest { method: reqwest::Method::GET, url, headers: HeaderMap::new(), body: Bytes::new() };
    let failed = way.send(&request, None).await;
    assert!(!failed.outcome.answer.unwrap_err().left);
    assert_eq!(failed.lateness, None, "it never left");
}

#[tokio::test]
async fn before_its_first_slot_a_client_has_a_connection_and_knows_the_way() {
    let mut server = serve(None, &[]).await;
    let client = aging(FRESH);
    client.ready(&server.url).await;
    assert!(client.arrival().one_way() > Duration::ZERO);
    let mut seen = Vec::new();
    while seen.len() < 7 {
        seen.push(server.next().await);
    }
    let closed = seen.iter().filter(|seen| matches!(seen, Seen::Closed(_))).count();
    assert_eq!(closed, 3, "one to leave on, three for the measurement, and nothing said on any: {seen:?}");
    assert_eq!(answered(client.warm(&server.url), &server.request()).await, Opened::Ahead);
}

#[tokio::test]
async fn a_call_tells_how_late_it_was_handed_to_its_connection() {
    let server = tests::serve(|_| tests::ok(b"{}")).await;
    let client = aging(FRESH);
    let aimed_at = Instant::now() - Duration::from_secs(1);
    for body in [&b""[..], b"{}"] {
        let request = PreparedRequest {
            method: reqwest::Method::POST,
            url: server.url.parse().unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::from_static(body),
        };
        let before = Instant::now();
        let sent = client.way().send(&request, Some(aimed_at)).await;
        let lateness = sent.lateness.unwrap();
        let late = (before - aimed_at)..(Instant::now() - aimed_at);
        assert!(late.contains(&lateness), "{lateness:?} is not within {late:?}");
    }
}
