//! Tests of many readers of one blob that only the backing cache has.
#![cfg(test)]

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use gorego_integration::{
    client::Client,
    content::{blob, digest_of},
    lock::Lock,
    peer::{Fault, FaultyPeer, Method, Times},
    server::Server,
};
use tokio::{sync::Barrier, task::JoinSet};

const MIB: usize = 1024 * 1024;
/// A size above the memory for one fetch, and no multiple of a chunk or window.
const SIZE: usize = 24 * MIB + 12345;
const READERS: usize = 500;
const CONNECTIONS: usize = 10;

fn proxy(settings: &[&str]) -> (FaultyPeer, Server) {
    let peer = FaultyPeer::start();
    let server = Server::in_front_of(&peer.grpc_url(), settings);
    (peer, server)
}

/// Checks that every reader gets the whole blob. The first fetch stalls until each reader has its
/// beginning.
async fn read_all(peer: &FaultyPeer, server: &Server, content: &Bytes) {
    let digest = digest_of(content);
    // So little that unread bytes do not fill the connections' windows.
    peer.inject(Method::Read, Times::Next(1), Fault::StallAfter(1000));
    let begun = Arc::new(Barrier::new(READERS + 1));
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(Client::connect_far(server.address()).await);
    }
    let mut reads = JoinSet::new();
    for client in clients.iter().cycle().take(READERS) {
        let (client, digest, content) = (client.clone(), digest.clone(), content.clone());
        let begun = Arc::clone(&begun);
        reads.spawn(async move {
            let mut reading = client.read(&digest).await.unwrap();
            let mut at = 0;
            while let Some(piece) = reading.message().await.unwrap() {
                if at == 0 {
                    begun.wait().await;
                }
                let next = at + piece.data.len();
                assert!(content.get(at..next).unwrap() == piece.data, "from {at} on");
                at = next;
            }
            assert_eq!(at, content.len());
        });
    }
    tokio::select! {
        _ = begun.wait() => peer.release(),
        Some(ended) = reads.join_next() => panic!("a reader ended before all had begun: {ended:?}"),
    }
    reads.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_readers_of_a_missing_blob_cost_one_fetch() {
    let _lock = Lock::take("crowd");
    let (peer, server) = proxy(&[]);
    let content = blob(1, SIZE);
    peer.put(&content);
    read_all(&peer, &server, &content).await;
    assert_eq!(peer.calls(Method::Read).len(), 1);
    assert_eq!(peer.bytes_read(), content.len() as u64);
    let peak = server.peak_memory() / MIB as u64;
    assert!(peak < 300, "{peak} MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_readers_cost_at_most_two_fetches_without_local_space() {
    let _lock = Lock::take("crowd");
    let (peer, server) = proxy(&["local_cache.max_size_gb=16MiB"]);
    let content = blob(1, SIZE);
    peer.put(&content);
    read_all(&peer, &server, &content).await;
    assert!(peer.bytes_read() <= 2 * content.len() as u64);
    let peak = server.peak_memory() / MIB as u64;
    assert!(peak < 300, "{peak} MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_share_a_fetch_whose_first_reader_disconnects() {
    let (peer, server) = proxy(&[]);
    let content = blob(2, 8 * MIB + 12345);
    let digest = peer.put(&content);
    peer.inject(Method::Read, Times::Next(1), Fault::StallAfter(MIB));
    let first = Client::connect(server.address()).await;
    let mut begun = first.read(&digest).await.unwrap();
    begun.message().await.unwrap().expect("the beginning");
    let second = Client::connect(server.address()).await;
    let mut reading = second.read(&digest).await.unwrap();
    drop((begun, first));
    peer.release();
    let mut found = BytesMut::new();
    while let Some(piece) = reading.message().await.unwrap() {
        found.extend_from_slice(&piece.data);
    }
    assert!(found == content);
    assert_eq!(peer.calls(Method::Read).len(), 1);
}
