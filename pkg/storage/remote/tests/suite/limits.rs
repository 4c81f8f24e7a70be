//! Limits of the calls and connections to a peer.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use crate::peer::{Act, LONG, Line, Peer, sha256, within};
use bytes::Bytes;
use futures::{FutureExt as _, future::join_all};
use gorego_storage::{Blob, BlobStore};
use gorego_storage_conformance as conformance;
use gorego_storage_remote::{RemoteAddress, RemoteOptions, RemoteStore};

const MIB: usize = 1 << 20;

fn one_at_a_time(peer: &Peer, timeout: Duration, retries: u32) -> RemoteStore {
    let options = RemoteOptions {
        max_calls: 1,
        timeout,
        retries,
        ..RemoteOptions::new(RemoteAddress::Tcp(peer.address.clone()))
    };
    RemoteStore::new(&options).unwrap()
}

/// Long enough for a call to have reached the peer.
async fn a_while(peer: &Peer) {
    let other = peer.store();
    for _ in 0..5 {
        within(other.find_missing(&[sha256(b"other")]))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_call_beyond_the_limit_waits() {
    let peer = Peer::start().await;
    let store = one_at_a_time(&peer, LONG, 0);
    within(store.capabilities()).await.unwrap();
    let small = conformance::content(1, 1000);
    let digest = peer.has(&small);
    peer.script("batch_read", [Act::Stall]);
    let absent = sha256(b"absent");
    let mut stalled = Box::pin(store.get(&absent, 0));
    while peer.calls("batch_read").is_empty() {
        assert!((&mut stalled).now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    let mut waiting = Box::pin(store.get(&digest, 0));
    tokio::select! {
        ended = &mut waiting => panic!("{ended:?}"),
        () = a_while(&peer) => {}
    }
    assert_eq!(peer.calls("batch_read").len(), 1);
    drop(stalled);
    let read = within(waiting).await.unwrap();
    assert_eq!(within(read.into_bytes()).await.unwrap(), small);
}

#[tokio::test]
async fn a_download_beyond_the_limit_waits() {
    let peer = Peer::start().await;
    let store = one_at_a_time(&peer, LONG, 0);
    let contents: Vec<Bytes> = (1..=2).map(|n| conformance::content(n, MIB)).collect();
    let digests: Vec<_> = contents.iter().map(|content| peer.has(content)).collect();
    let first = within(store.get(&digests[0], 0)).await.unwrap();
    let mut waiting = Box::pin(store.get(&digests[1], 0));
    tokio::select! {
        ended = &mut waiting => panic!("{ended:?}"),
        () = a_while(&peer) => {}
    }
    assert_eq!(peer.calls("read").len(), 1);
    // Calls are counted by themselves.
    within(store.find_missing(&digests)).await.unwrap();
    drop(first);
    let read = within(waiting).await.unwrap();
    assert!(within(read.into_bytes()).await.unwrap() == contents[1]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_too_long_counts_as_no_failure_of_the_peer() {
    let peer = Peer::start().await;
    let store = one_at_a_time(&peer, Duration::from_secs(1), 3);
    within(store.capabilities()).await.unwrap();
    peer.script("missing", vec![Act::Stall; 9]);
    let (one, other) = ([sha256(b"1")], [sha256(b"2")]);
    // Takes its turn when the first one is given up, and leaves too little to its second attempt.
    let second = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        store.find_missing(&other).await
    };
    let calls = async { tokio::join!(store.find_missing(&one), second) };
    let (one, other) = within(calls).await;
    let (one, other) = (one.unwrap_err().to_string(), other.unwrap_err().to_string());
    assert!(one.contains("too many calls"), "{one}");
    assert!(other.contains("no answer in 1s"), "{other}");
    assert_eq!(peer.calls("missing").len(), 2);
}

#[tokio::test]
async fn many_calls_share_the_connections_and_few_use_one() {
    let peer = Peer::start().await;
    let line = Line::at("127.0.0.1:0", &peer).await;
    let store = RemoteStore::new(&RemoteOptions {
        connections: 3,
        ..RemoteOptions::new(RemoteAddress::Tcp(line.address.clone()))
    });
    let store = store.unwrap();
    for _ in 0..5 {
        within(store.find_missing(&[sha256(b"x")])).await.unwrap();
    }
    assert_eq!(line.connections.load(SeqCst), 1);
    let digests: Vec<_> = (1..=5)
        .map(|seed| peer.has(&conformance::content(seed, MIB)))
        .collect();
    let reads = digests.iter().map(|digest| store.get(digest, 0));
    let blobs = within(join_all(reads)).await;
    assert!(blobs.iter().all(Result::is_ok), "{blobs:?}");
    assert_eq!(line.connections.load(SeqCst), 3);
}

#[tokio::test]
async fn a_cancelled_upload_releases_its_permit_though_the_peer_stalls() {
    let peer = Peer::start().await;
    let store = one_at_a_time(&peer, Duration::from_secs(1), 0);
    within(store.capabilities()).await.unwrap();
    peer.script("write", [Act::Stall]);
    let stalled = conformance::content(1, 4 * MIB);
    let other = conformance::content(2, MIB);
    let digests = [sha256(&stalled), sha256(&other)];
    let reached = async {
        while peer.state.metadata.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        ended = store.put(&digests[0], Blob::Bytes(stalled)) => panic!("{ended:?}"),
        () = reached => {}
    }
    let stored = async {
        while store
            .put(&digests[1], Blob::Bytes(other.clone()))
            .await
            .is_err()
        {}
    };
    within(stored).await;
}
