//! That each fault does what it says, to a server that says everything back.

use tokio::time::timeout;

use super::*;

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
    for fault in [Fault::Blackhole, Fault::Mute, Fault::Deaf, Fault::SilentAfter(1)] {
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

#[tokio::test]
async fn bytes_drip_one_by_one() {
    let (proxy, mut client) = echo().await;
    proxy.set(Fault::Drip(Duration::from_millis(30)));
    let sent = Instant::now();
    client.write_all(&[1, 2, 3, 4]).await.unwrap();
    let mut back = [0; 4];
    timeout(SOON, client.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(back, [1, 2, 3, 4]);
    assert!(sent.elapsed() >= Duration::from_millis(90));
}

#[tokio::test]
async fn a_cut_comes_after_so_many_bytes_and_not_before() {
    let (proxy, mut client) = echo().await;
    proxy.set(Fault::CutAfter(2));
    client.write_all(&[1, 2, 3]).await.unwrap();
    let mut back = [0; 2];
    timeout(SOON, client.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(back, [1, 2]);
    let error = timeout(SOON, client.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_half_close_ends_the_answers_and_takes_questions_on() {
    let (proxy, mut client) = echo().await;
    client.write_u8(1).await.unwrap();
    assert_eq!(answer(&mut client).await.unwrap().unwrap(), 1);
    proxy.half_close();
    let error = timeout(SOON, client.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    client.write_u8(2).await.unwrap();
}
