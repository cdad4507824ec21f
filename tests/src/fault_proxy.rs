//! A TCP proxy that does to a connection what networks do: nothing at all, silence, slowness, a cut, another address.
//!
//! It knows nothing of what it carries. Bytes are never lost or changed: what a fault holds back arrives when it is
//! over, as it does after a real silence that TCP outlived, unless one of the ends has given up by then.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// Chunks on the way in one direction, at most 16 KiB each; whoever sends more waits.
const IN_FLIGHT: usize = 256;

/// What the network does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Carries everything at once.
    #[default]
    None,
    /// Connections are there, also new ones, and nothing passes either way.
    Blackhole,
    /// Questions arrive, answers do not.
    Mute,
    /// Each byte takes so much longer, each way.
    Delay(Duration),
}

/// The proxy. It ends, and its connections with it, when it is dropped.
pub struct FaultProxy {
    port: u16,
    network: watch::Sender<Network>,
    accepting: JoinHandle<()>,
}

#[derive(Clone, Copy)]
struct Network {
    upstream: SocketAddr,
    fault: Fault,
    /// Grows with each cut.
    cuts: u64,
}

impl FaultProxy {
    /// Listens on a free port of 127.0.0.1 and leads to `port` of it.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let own = listener.local_addr().expect("an address").port();
        let (network, seen) = watch::channel(Network { upstream: local(port), fault: Fault::None, cuts: 0 });
        Self { port: own, network, accepting: tokio::spawn(accept(listener, seen)) }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on, on every connection.
    pub fn set(&self, fault: Fault) {
        self.network.send_modify(|network| network.fault = fault);
    }

    /// Leads new connections to another port; those that are there stay.
    pub fn lead_to(&self, port: u16) {
        self.network.send_modify(|network| network.upstream = local(port));
    }

    /// Resets every connection that is there.
    pub fn reset(&self) {
        self.network.send_modify(|network| network.cuts += 1);
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

async fn accept(listener: TcpListener, network: watch::Receiver<Network>) {
    while let Ok((client, _)) = listener.accept().await {
        let network = network.clone();
        let upstream = network.borrow().upstream;
        tokio::spawn(async move {
            // A server that is not there: the client sees its connection closed.
            if let Ok(server) = TcpStream::connect(upstream).await {
                let _ = carry(client, server, network).await;
            }
        });
    }
}

/// Until both ways have ended, a cut, or the proxy's end.
async fn carry(
    mut client: TcpStream,
    mut server: TcpStream,
    network: watch::Receiver<Network>,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut ends, cuts) = (network.clone(), network.borrow().cuts);
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let there = one_way(from_client, to_server, network.clone(), false);
    let back = one_way(from_server, to_client, network, true);
    tokio::select! {
        _ = async { tokio::join!(there, back) } => return Ok(()),
        _ = ends.wait_for(|network| network.cuts != cuts) => {}
    }
    client.set_zero_linger()?;
    server.set_zero_linger()
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut network: watch::Receiver<Network>,
    is_answer: bool,
) {
    let (chunks, mut waiting) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let seen = network.clone();
    let read = async move {
        let mut buffer = vec![0; 16_384];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let late = match seen.borrow().fault {
                Fault::Delay(delay) => delay,
                _ => Duration::ZERO,
            };
            if chunks.send((Instant::now() + late, buffer[..length].to_vec())).await.is_err() {
                break;
            }
        }
    };
    let write = async move {
        while let Some((due, chunk)) = waiting.recv().await {
            sleep_until(due).await;
            passes(&mut network, is_answer).await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        passes(&mut network, is_answer).await;
        // An end that is gone needs no goodbye.
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

/// Waits until the network lets this direction through.
async fn passes(network: &mut watch::Receiver<Network>, is_answer: bool) {
    let open = |network: &Network| match network.fault {
        Fault::Blackhole => false,
        Fault::Mute => !is_answer,
        Fault::None | Fault::Delay(_) => true,
    };
    // The proxy's end opens every way, so that its connections end too.
    let _ = network.wait_for(open).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(10);

    /// A server that says everything back, and a connection to it through a proxy.
    async fn echo() -> (FaultProxy, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = FaultProxy::start(listener.local_addr().unwrap().port()).await;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap();
        (proxy, client)
    }

    async fn answer(client: &mut TcpStream) -> Option<io::Result<u8>> {
        timeout(Duration::from_millis(300), client.read_u8()).await.ok()
    }

    #[tokio::test]
    async fn what_a_silence_held_back_arrives_when_it_is_over() {
        for fault in [Fault::Blackhole, Fault::Mute] {
            let (proxy, mut client) = echo().await;
            client.write_u8(1).await.unwrap();
            assert_eq!(answer(&mut client).await.unwrap().unwrap(), 1);
            proxy.set(fault);
            client.write_u8(2).await.unwrap();
            assert!(answer(&mut client).await.is_none(), "{fault:?}");
            proxy.set(Fault::None);
            assert_eq!(timeout(SOON, client.read_u8()).await.unwrap().unwrap(), 2);
        }
    }

    #[tokio::test]
    async fn a_delay_is_of_each_way() {
        let (proxy, mut client) = echo().await;
        proxy.set(Fault::Delay(Duration::from_millis(100)));
        let sent = Instant::now();
        client.write_u8(1).await.unwrap();
        timeout(SOON, client.read_u8()).await.unwrap().unwrap();
        assert!(sent.elapsed() >= Duration::from_millis(200));
    }

    #[tokio::test]
    async fn a_reset_is_seen_at_once_and_a_new_connection_is_carried() {
        let (proxy, mut client) = echo().await;
        client.write_u8(1).await.unwrap();
        timeout(SOON, client.read_u8()).await.unwrap().unwrap();
        proxy.reset();
        let error = timeout(SOON, client.read_u8()).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let mut next = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap();
        next.write_u8(3).await.unwrap();
        assert_eq!(timeout(SOON, next.read_u8()).await.unwrap().unwrap(), 3);
    }
}
