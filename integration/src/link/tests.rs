//! Tests of the link.

use std::io;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::content::blob;

const MIB: usize = 1024 * 1024;

/// A server that echoes bytes, one connection after the other.
struct Echo {
    address: SocketAddr,
    _thread: tokio::task::JoinSet<()>,
}

impl Echo {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut thread = tokio::task::JoinSet::new();
        thread.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(async move {
                    let (mut reads, mut writes) = stream.into_split();
                    let _ = tokio::io::copy(&mut reads, &mut writes).await;
                });
            }
        });
        Self {
            address,
            _thread: thread,
        }
    }
}

/// Sends `content`, closes its side and reads until the other side is closed.
async fn exchange(address: SocketAddr, content: &[u8]) -> Vec<u8> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut reads, mut writes) = stream.into_split();
    let send = async {
        writes.write_all(content).await?;
        writes.shutdown().await
    };
    let mut received = Vec::new();
    let (sent, read) = tokio::join!(send, reads.read_to_end(&mut received));
    sent.unwrap();
    read.unwrap();
    received
}

async fn ask(stream: &mut TcpStream, word: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(word).await?;
    let mut answer = vec![0; word.len()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn content_passes_unchanged_and_is_counted() {
    let echo = Echo::start().await;
    let link = Link::with(
        echo.address,
        Settings {
            latency: Duration::from_millis(2),
            rate: Some(Rate::mbit(800)),
            ..Settings::default()
        },
    );
    let content = blob(1, 5 * MIB + 17);
    for _ in 0..2 {
        assert!(exchange(link.address(), &content).await == content);
    }
    let counts = link.wait_for(|counts| counts.open == 0).await;
    let bytes = 2 * u64::try_from(content.len()).unwrap();
    let expected = Counts {
        connections: 2,
        open: 0,
        up: bytes,
        down: bytes,
    };
    assert_eq!(counts, expected);
}

#[tokio::test]
async fn an_answer_takes_at_least_twice_the_latency() {
    let echo = Echo::start().await;
    let latency = Duration::from_millis(20);
    let link = Link::with(
        echo.address,
        Settings {
            latency,
            ..Settings::default()
        },
    );
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    ask(&mut stream, b"first").await.unwrap();
    let asked = Instant::now();
    assert_eq!(ask(&mut stream, b"second").await.unwrap(), b"second");
    assert!(asked.elapsed() >= 2 * latency, "{:?}", asked.elapsed());
}

#[tokio::test]
async fn bytes_take_at_least_the_time_of_the_rate() {
    let echo = Echo::start().await;
    let link = Link::to(echo.address);
    link.set_rate(Some(Rate::mbit(80)));
    let content = blob(2, MIB);
    let started = Instant::now();
    assert!(exchange(link.address(), &content).await == content);
    assert!(started.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn a_cut_ends_open_connections_and_accepts_new_ones() {
    let echo = Echo::start().await;
    let link = Link::to(echo.address);
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    ask(&mut stream, b"before").await.unwrap();
    link.cut();
    assert_eq!(link.counts().open, 0);
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(exchange(link.address(), b"after").await, b"after");
}

#[tokio::test]
async fn new_connections_are_refused_until_the_link_is_restored() {
    let echo = Echo::start().await;
    let link = Link::to(echo.address);
    let mut open = TcpStream::connect(link.address()).await.unwrap();
    ask(&mut open, b"before").await.unwrap();
    link.refuse();
    let error = TcpStream::connect(link.address()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(ask(&mut open, b"still").await.unwrap(), b"still");
    link.down();
    assert!(ask(&mut open, b"no more").await.is_err());
    link.restore();
    assert_eq!(exchange(link.address(), b"after").await, b"after");
}

#[tokio::test]
async fn a_stalled_link_holds_bytes_back_and_loses_none() {
    let echo = Echo::start().await;
    let link = Link::to(echo.address);
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    ask(&mut stream, b"before").await.unwrap();
    let before = link.counts();
    link.stall();
    stream.write_all(b"during").await.unwrap();
    // A second accepted connection shows that the link had time to deliver the bytes.
    let _second = TcpStream::connect(link.address()).await.unwrap();
    let counts = link.wait_for(|counts| counts.connections == 2).await;
    assert_eq!((counts.up, counts.open), (before.up, 2));
    link.restore();
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"during");
}

#[tokio::test]
async fn each_connection_ends_after_exactly_its_quota() {
    let echo = Echo::start().await;
    let link = Link::to(echo.address);
    let content = blob(3, MIB);
    let cut = 700_001;
    link.cut_after(Direction::Down, u64::try_from(cut).unwrap());
    for _ in 0..2 {
        let mut stream = TcpStream::connect(link.address()).await.unwrap();
        let (mut reads, mut writes) = stream.split();
        let mut received = Vec::new();
        // The end is a reset if the client sent more.
        let (_, _) = tokio::join!(writes.write_all(&content), reads.read_to_end(&mut received));
        assert!(received == content[..cut], "{} arrived", received.len());
    }
    link.restore();
    assert!(exchange(link.address(), &content).await == content);
}

#[tokio::test]
async fn new_connections_reach_the_server_set_last() {
    let (first, second) = (Echo::start().await, Echo::start().await);
    let link = Link::to(first.address);
    drop(first);
    link.lead_to(second.address);
    assert_eq!(exchange(link.address(), b"there").await, b"there");
}

#[tokio::test]
async fn the_server_receives_exactly_the_quota() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let link = Link::to(listener.local_addr().unwrap());
    let content = blob(4, MIB);
    let cut = 300_007;
    link.cut_after(Direction::Up, u64::try_from(cut).unwrap());
    let mut client = TcpStream::connect(link.address()).await.unwrap();
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        received
    };
    // Whether the rest could be sent depends on buffers.
    let (_, received) = tokio::join!(client.write_all(&content), serve);
    assert!(received == content[..cut], "{} arrived", received.len());
    let counts = link.wait_for(|counts| counts.open == 0).await;
    assert_eq!(counts.up, u64::try_from(cut).unwrap());
    assert!(client.read_u8().await.is_err());
}
