//! An HTTP server whose every answer a test writes, well-formed or not: an API, or a picture's server, of the worst kind.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::sleep,
};

/// The server. It ends when it is dropped, and what it says then with it.
pub struct Scripted {
    /// `http://<address>`.
    pub url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: JoinHandle<()>,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The request line and the headers.
    pub head: String,
    /// The body, as its `Content-Length` says.
    pub body: String,
}

impl Asked {
    /// The path, with its query.
    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }
}

/// What is answered.
pub enum Said {
    /// These bytes; the connection stays open.
    Bytes(Vec<u8>),
    /// These bytes, then the connection is closed.
    Last(Vec<u8>),
    /// The first bytes, then the second again and again with this pause, until nobody takes them any more.
    Endless(Vec<u8>, Vec<u8>, Duration),
}

/// A whole answer of this status, with these further header lines (each with its line end).
pub fn answer(status: &str, headers: &str, body: &[u8]) -> Said {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    Said::Bytes([head.as_bytes(), body].concat())
}

impl Scripted {
    /// Answers each request with what `answer` makes of it and of how many came before it.
    pub async fn start(answer: impl Fn(&Asked, usize) -> Said + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), asked.clone());
        let task = tokio::spawn(async move {
            let mut talks = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                talks.spawn(talk(stream, answer.clone(), seen.clone()));
            }
        });
        Self { url, asked, task }
    }

    /// Every request until now.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn talk(
    mut stream: TcpStream,
    answer: Arc<impl Fn(&Asked, usize) -> Said>,
    seen: Arc<Mutex<Vec<Asked>>>,
) {
    let mut read = Vec::new();
    while let Some(asked) = request(&mut stream, &mut read).await {
        let before = {
            let mut seen = seen.lock().unwrap();
            seen.push(asked.clone());
            seen.len() - 1
        };
        match answer(&asked, before) {
            Said::Bytes(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Said::Last(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Said::Endless(first, again, pause) => {
                let mut said = stream.write_all(&first).await;
                while said.is_ok() {
                    sleep(pause).await;
                    said = stream.write_all(&again).await;
                }
                return;
            }
        }
    }
}

/// The next request of a connection; none once it has ended.
async fn request(stream: &mut TcpStream, read: &mut Vec<u8>) -> Option<Asked> {
    let mut buffer = [0; 16 * 1024];
    loop {
        if let Some(end) = read.windows(4).position(|end| end == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&read[..end]).into_owned();
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            });
            let whole = end + 4 + length.unwrap_or(0);
            if read.len() >= whole {
                let body = String::from_utf8_lossy(&read[end + 4..whole]).into_owned();
                read.drain(..whole);
                return Some(Asked { head, body });
            }
        }
        match stream.read(&mut buffer).await {
            Ok(n @ 1..) => read.extend_from_slice(&buffer[..n]),
            _ => return None,
        }
    }
}
