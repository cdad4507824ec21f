//! A publisher that sends what no library would: headers as bytes.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The largest frame that a broker takes by default, in bytes.
pub const FRAME_MAX: u32 = 128 * 1024;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xce;
/// Of a message's properties, the headers alone.
const HEADERS: u16 = 1 << 13;

/// Arrays within arrays, `levels` deep, as the one header of a message.
pub fn nested(levels: usize) -> Vec<u8> {
    let mut value = Vec::with_capacity(levels * 5);
    for level in 1..=levels {
        value.push(b'A');
        value.extend(((levels - level) * 5).to_be_bytes()[4..].iter());
    }
    [&[1, b'h'], value.as_slice()].concat()
}

/// Publishes one message with these headers, and waits until the broker has confirmed it.
pub async fn publish(url: &str, exchange: &str, key: &str, headers: &[u8], body: &[u8]) {
    let (user, rest) = url.trim_start_matches("amqp://").split_once(':').unwrap();
    let (password, rest) = rest.split_once('@').unwrap();
    let (address, vhost) = rest.split_once('/').unwrap();
    let mut broker = Broker(TcpStream::connect(address).await.unwrap());
    broker.0.write_all(b"AMQP\x00\x00\x09\x01").await.unwrap();
    broker.expect(10, 10).await;
    let login = format!("\0{user}\0{password}");
    let start_ok = [&[0; 4][..], &short("PLAIN"), &long(login.as_bytes()), &short("en_US")].concat();
    broker.method(0, 10, 11, &start_ok).await;
    broker.expect(10, 30).await;
    let tune_ok = [&2_047_u16.to_be_bytes()[..], &FRAME_MAX.to_be_bytes(), &[0, 0]].concat();
    broker.method(0, 10, 31, &tune_ok).await;
    broker.method(0, 10, 40, &[&short(vhost)[..], &short(""), &[0]].concat()).await;
    broker.expect(10, 41).await;
    broker.method(1, 20, 10, &short("")).await;
    broker.expect(20, 11).await;
    broker.method(1, 85, 10, &[0]).await;
    broker.expect(85, 11).await;
    broker.method(1, 60, 40, &[&[0, 0][..], &short(exchange), &short(key), &[0]].concat()).await;
    let size = (body.len() as u64).to_be_bytes();
    let properties = [&60_u16.to_be_bytes()[..], &[0, 0], &size, &HEADERS.to_be_bytes(), &long(headers)];
    broker.frame(HEADER, 1, &properties.concat()).await;
    broker.frame(BODY, 1, body).await;
    broker.expect(60, 80).await;
}

struct Broker(TcpStream);

impl Broker {
    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let head = [&[kind][..], &channel.to_be_bytes(), &(payload.len() as u32).to_be_bytes()].concat();
        self.0.write_all(&[&head, payload, &[FRAME_END]].concat()).await.unwrap();
    }

    async fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) {
        let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat();
        self.frame(METHOD, channel, &payload).await;
    }

    /// Waits for a method, and for nothing else.
    async fn expect(&mut self, class: u16, method: u16) {
        let mut head = [0; 7];
        self.0.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut payload = vec![0; length + 1];
        self.0.read_exact(&mut payload).await.unwrap();
        let expected = [class.to_be_bytes(), method.to_be_bytes()].concat();
        assert!(payload.starts_with(&expected), "instead of {class}.{method}: {payload:?}");
    }
}

fn short(text: &str) -> Vec<u8> {
    [&[text.len() as u8], text.as_bytes()].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}
