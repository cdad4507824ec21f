//! The client against servers of this machine.

use std::sync::atomic::AtomicUsize;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use super::*;

/// A server that answers each request with what `answer` makes of its head, and counts its connections.
pub(crate) struct Server {
    pub(crate) url: String,
    /// A request for `/gated` is answered once a permit is here.
    gate: Arc<Semaphore>,
    pub(crate) connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Bytes to write, and whether the connection stays open after them.
pub(crate) struct Said(pub(crate) Vec<u8>, pub(crate) bool);

pub(crate) fn ok(body: &[u8]) -> Said {
    with("200 OK", "", body)
}

pub(crate) fn with(status: &str, headers: &str, body: &[u8]) -> Said {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    Said([head.as_bytes(), body].concat(), true)
}

pub(crate) async fn serve(answer: impl Fn(&str) -> Said + Send + Sync + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(Semaphore::new(0));
    let (count, passage, answer) = (Arc::clone(&connections), Arc::clone(&gate), Arc::new(answer));
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(talk(stream, Arc::clone(&answer), Arc::clone(&passage)));
        }
    });
    Server { url, gate, connections, task }
}

async fn talk(mut stream: TcpStream, answer: Arc<impl Fn(&str) -> Said>, gate: Arc<Semaphore>) {
    let mut read = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        read.extend_from_slice(&buffer[..n]);
        let Some(end) = read.windows(4).position(|end| end == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&read[..end]).into_owned();
        if head.contains("/gated") {
            gate.acquire().await.unwrap().forget();
        }
        let Said(bytes, keep) = answer(&head);
        read.clear();
        if stream.write_all(&bytes).await.is_err() || !keep {
            return;
        }
    }
}

fn get(url: &str) -> PreparedRequest {
    PreparedRequest {
        method: reqwest::Method::GET,
        url: format!("{url}/?key=hunter22").parse().unwrap(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
    }
}

fn client(transport: Transport) -> Client {
    Client::new(&transport).unwrap()
}

fn whole(outcome: &CallOutcome) -> &[u8] {
    match &outcome.answer.as_ref().unwrap().content {
        Content::Whole(bytes) => bytes,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn calls_in_a_row_share_one_connection() {
    let server = serve(|_| ok(b"{}")).await;
    let client = client(Transport::default());
    for _ in 0..20 {
        assert_eq!(whole(&client.send(&get(&server.url)).await), b"{}");
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_client_is_renewed_by_age_and_a_call_in_flight_ends_on_the_old_one() {
    let server = serve(|_| ok(b"1")).await;
    let client = client(Transport { max_age_s: 0, ..Transport::default() });
    let first = client.0.current.load_full();
    let mut gated = get(&server.url);
    gated.url.set_path("/gated");
    let in_flight = tokio::spawn({
        let client = client.clone();
        async move { client.send(&gated).await }
    });
    while server.connections.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    while Arc::ptr_eq(&first, &client.0.current.load()) {
        assert_eq!(whole(&client.send(&get(&server.url)).await), b"1");
    }
    assert_eq!(whole(&client.send(&get(&server.url)).await), b"1");
    assert!(!in_flight.is_finished());
    server.gate.add_permits(1);
    assert_eq!(whole(&in_flight.await.unwrap()), b"1");
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_not_a_second_request() {
    let server = serve(|_| with("302 Found", "location: /elsewhere\r\n", b"")).await;
    let outcome = client(Transport::default()).send(&get(&server.url)).await;
    assert_eq!(outcome.status(), Some(302));
}

#[tokio::test]
async fn a_connection_that_is_refused_means_that_nothing_left() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let failed = client(Transport::default()).send(&get(&format!("http://{port}"))).await.answer.unwrap_err();
    assert!(!failed.left && !failed.message.contains("hunter22"), "{failed:?}");
    let nowhere =
        client(Transport::default()).send(&get("http://pixfleet.invalid")).await.answer.unwrap_err();
    assert!(!nowhere.left, "{nowhere:?}");
}

#[tokio::test]
async fn a_tls_handshake_that_fails_or_hangs_means_that_nothing_left() {
    let plain = serve(|_| ok(b"{}")).await;
    let url = plain.url.replace("http:", "https:");
    let transport = Transport { connect_ms: 200, ..Transport::default() };
    let hung = client(transport).send(&get(&url)).await.answer.unwrap_err();
    assert!(!hung.left, "{hung:?}");
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", closed.local_addr().unwrap());
    let task = tokio::spawn(async move { while closed.accept().await.is_ok() {} });
    let failed = client(Transport::default()).send(&get(&url)).await.answer.unwrap_err();
    assert!(!failed.left, "{failed:?}");
    task.abort();
}

#[tokio::test]
async fn a_cut_or_a_silence_after_the_request_left_says_so() {
    let server = serve(|_| Said(Vec::new(), false)).await;
    let cut = client(Transport::default()).send(&get(&server.url)).await.answer.unwrap_err();
    assert!(cut.left && !cut.message.contains("hunter22"), "{cut:?}");
    let server = serve(|_| Said(Vec::new(), true)).await;
    let transport = Transport { connect_ms: 100, total_ms: 200, ..Transport::default() };
    let silence = client(transport).send(&get(&server.url)).await.answer.unwrap_err();
    assert!(silence.left, "{silence:?}");
}

#[tokio::test]
async fn an_answer_is_read_up_to_its_bound_and_no_further() {
    let transport = Transport { max_response_bytes: 1024, ..Transport::default() };
    let said = serve(|_| ok(&[b'x'; 1025])).await;
    let answer = client(transport.clone()).send(&get(&said.url)).await.answer.unwrap();
    assert!(matches!(answer.content, Content::TooLarge(1024)), "{answer:?}");
    let unsaid = serve(|_| {
        let chunk = format!("400\r\n{}\r\n", "x".repeat(1024)).repeat(4);
        Said(format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunk}").into(), true)
    });
    let answer = client(transport.clone()).send(&get(&unsaid.await.url)).await.answer.unwrap();
    assert!(matches!(answer.content, Content::TooLarge(1024)), "{answer:?}");
    let exact = serve(|_| ok(&[b'x'; 1024])).await;
    assert_eq!(whole(&client(transport).send(&get(&exact.url)).await).len(), 1024);
}

#[tokio::test]
async fn an_answer_that_ends_early_is_cut_and_not_whole() {
    let server = serve(|_| Said(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}".to_vec(), false)).await;
    let answer = client(Transport::default()).send(&get(&server.url)).await.answer.unwrap();
    assert!(matches!(answer.content, Content::Cut(_)), "{answer:?}");
}
