//! A TCP proxy that does to a connection what networks do: nothing at all, silence, slowness, a cut, another address.
//!
//! It knows nothing of what it carries. Bytes are never lost or changed: what a fault holds back arrives when it is
//! over, as it does after a real silence that TCP outlived, unless one of the ends has given up by then. Only a cut and a
//! half-close end what is on the way.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
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
    /// Answers arrive, questions do not.
    Deaf,
    /// Of each connection so many bytes of answers arrive, and nothing after them: it falls silent in the middle of a
    /// handshake.
    SilentAfter(u64),
    /// Each connection is reset as soon as so many bytes of answers have passed.
    CutAfter(u64),
    /// Bytes arrive one by one, with this pause between two, each way.
    Drip(Duration),
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
    /// Grows with each half-close.
    half_closes: u64,
}

impl FaultProxy {
    /// Listens on a free port of 127.0.0.1 and leads to `port` of it.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let own = listener.local_addr().expect("an address").port();
        let (network, seen) =
            watch::channel(Network { upstream: local(port), fault: Fault::None, cuts: 0, half_closes: 0 });
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

    /// On every connection that is there, says that no answers will come any more, and goes on taking questions.
    pub fn half_close(&self) {
        self.network.send_modify(|network| network.half_closes += 1);
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
    let cut = Notify::new();
    let there = one_way(from_client, to_server, network.clone(), false, &cut);
    let back = one_way(from_server, to_client, network, true, &cut);
    tokio::select! {
        _ = async { tokio::join!(there, back) } => return Ok(()),
        _ = ends.wait_for(|network| network.cuts != cuts) => {}
        () = cut.notified() => {}
    }
    client.set_zero_linger()?;
    server.set_zero_linger()
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    network: watch::Receiver<Network>,
    is_answer: bool,
    cut: &Notify,
) {
    let (chunks, waiting) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
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
    let half_closes = network.borrow().half_closes;
    let mut closing = network.clone();
    let write = async move {
        let half_closed = async {
            let closed = |network: &Network| is_answer && network.half_closes != half_closes;
            let _ = closing.wait_for(closed).await;
        };
        tokio::select! {
            () = Way { network, is_answer, carried: 0 }.carry(&mut to, waiting, cut) => {}
            // The other way goes on.
            () = half_closed => { let _ = to.shutdown().await; }
        }
    };
    tokio::join!(read, write);
}

/// One direction of one connection.
struct Way {
    network: watch::Receiver<Network>,
    is_answer: bool,
    carried: u64,
}

impl Way {
    async fn carry(
        mut self,
        to: &mut (impl AsyncWrite + Unpin),
        mut waiting: mpsc::Receiver<(Instant, Vec<u8>)>,
        cut: &Notify,
    ) {
        while let Some((due, chunk)) = waiting.recv().await {
            sleep_until(due).await;
            let mut rest = &chunk[..];
            while !rest.is_empty() {
                let (most, pause) = self.passes().await;
                if most == 0 {
                    cut.notify_one();
                    return;
                }
                let (now, later) = rest.split_at(rest.len().min(most));
                if to.write_all(now).await.is_err() {
                    return;
                }
                self.carried += now.len() as u64;
                rest = later;
                sleep(pause).await;
            }
        }
        self.passes().await;
        // An end that is gone needs no goodbye.
        let _ = to.shutdown().await;
    }

    /// Waits until the network lets something through; answers how many bytes, and the pause after them. None at all is a cut.
    async fn passes(&mut self) -> (usize, Duration) {
        let (is_answer, carried) = (self.is_answer, self.carried);
        let open = |network: &Network| match network.fault {
            Fault::Blackhole => false,
            Fault::Mute => !is_answer,
            Fault::Deaf => is_answer,
            Fault::SilentAfter(most) => !is_answer || carried < most,
            Fault::None | Fault::Delay(_) | Fault::CutAfter(_) | Fault::Drip(_) => true,
        };
        // The proxy's end opens every way, so that its connections end too.
        let fault = match self.network.wait_for(open).await {
            Ok(network) => network.fault,
            Err(_) => Fault::None,
        };
        let left = |most: u64| usize::try_from(most.saturating_sub(carried)).unwrap_or(usize::MAX);
        match fault {
            Fault::SilentAfter(most) | Fault::CutAfter(most) if is_answer => (left(most), Duration::ZERO),
            Fault::Drip(pause) => (1, pause),
            _ => (usize::MAX, Duration::ZERO),
        }
    }
}

#[cfg(test)]
mod tests;
