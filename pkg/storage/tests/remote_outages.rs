//! What becomes of calls while a peer is out of reach.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

#[path = "common/peer/mod.rs"]
mod peer;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use gorego_storage::{
    Blob, BlobStore, BreakerOptions, BreakerState, Error, RemoteAddress, RemoteOptions,
    RemoteStore, conformance,
};
use peer::{Act, Line, Peer, sha256, within};
use tokio::task::JoinSet;
use tonic::Code;

const MIB: usize = 1 << 20;

fn over_one_connection(line: &Line) -> RemoteStore {
    let options = RemoteOptions {
        connections: 1,
        ..RemoteOptions::new(RemoteAddress::Tcp(line.address.clone()))
    };
    RemoteStore::new(&options).unwrap()
}

/// A store whose breaker opens with the first failure, for this long.
fn sensitive(peer: &Peer, cool_down: Duration, retries: u32) -> RemoteStore {
    let options = RemoteOptions {
        retries,
        breaker: BreakerOptions {
            failures: 1,
            cool_down,
            max_cool_down: cool_down,
        },
        ..peer.options()
    };
    RemoteStore::new(&options).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_ends_none_of_the_downloads_that_share_it() {
    let peer = Peer::start().await;
    let contents: Vec<Bytes> = (1..=8)
        .map(|seed| conformance::content(seed, 2 * MIB))
        .collect();
    let line = Line::breaking_after(&peer, usize::MAX, 4 * MIB).await;
    let store = Arc::new(over_one_connection(&line));
    within(store.capabilities()).await.unwrap();
    let state = store.breaker();
    let mut reads = JoinSet::new();
    for content in &contents {
        let (store, content, digest) = (Arc::clone(&store), content.clone(), peer.has(content));
        reads.spawn(async move {
            let read = store.get(&digest, 0).await?.into_bytes().await?;
            Ok::<_, Error>(read == content)
        });
    }
    for right in within(reads.join_all()).await {
        assert!(right.unwrap());
    }
    assert!(peer.calls("read").len() > contents.len());
    assert!(!state.has_changed().unwrap(), "one cut is one failure");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_ends_none_of_the_calls_that_share_it() {
    let peer = Peer::start().await;
    let line = Line::breaking_after(&peer, 20_000, usize::MAX).await;
    let store = over_one_connection(&line);
    within(store.capabilities()).await.unwrap();
    let asked: Vec<Vec<_>> = (0..40_u32)
        .map(|call| {
            let of_it = call * 20..(call + 1) * 20;
            of_it.map(|n| sha256(&n.to_le_bytes())).collect()
        })
        .collect();
    let state = store.breaker();
    let calls = asked.iter().map(|asked| store.find_missing(asked));
    for missing in within(join_all(calls)).await {
        assert_eq!(missing.unwrap().len(), 20);
    }
    assert!(!state.has_changed().unwrap(), "one cut is one failure");
}

#[tokio::test]
async fn what_has_begun_waits_for_the_cool_down_and_what_begins_does_not() {
    let peer = Peer::start().await;
    let store = sensitive(&peer, Duration::from_millis(700), 1);
    let content = conformance::content(1, MIB);
    let digest = peer.has(&content);
    let asked = [sha256(b"x")];
    within(store.capabilities()).await.unwrap();
    peer.script("read", [Act::CutAfter(300_000)]);
    let mut state = store.breaker();
    let read = async { store.get(&digest, 0).await?.into_bytes().await };
    let meanwhile = async {
        let open = |state: &BreakerState| *state == BreakerState::Open;
        state.wait_for(open).await.unwrap();
        store.find_missing(&asked).await.unwrap_err()
    };
    let (read, error) = within(async { tokio::join!(read, meanwhile) }).await;
    assert_eq!(read.unwrap(), content);
    assert!(error.to_string().contains("not asked"), "{error}");
    assert!(peer.calls("missing").is_empty());
}

#[tokio::test]
async fn a_peer_that_begins_downloads_and_sends_nothing_opens_the_breaker() {
    let peer = Peer::start().await;
    let digest = peer.has(&conformance::content(1, MIB));
    let store = peer.impatient(0);
    within(store.capabilities()).await.unwrap();
    peer.script("read", vec![Act::StallAfter(0); 5]);
    for _ in 0..5 {
        within(store.get(&digest, 0)).await.unwrap_err();
    }
    assert_eq!(*store.breaker().borrow(), BreakerState::Open);
}

#[tokio::test]
async fn while_one_call_finds_out_the_others_fail_at_once() {
    let peer = Peer::start().await;
    let store = sensitive(&peer, Duration::from_millis(1), 0);
    let (one, other) = ([sha256(b"1")], [sha256(b"2")]);
    // What it can do is what is asked first, and nobody knows.
    peer.script("capabilities", [Act::Fail(Code::Unavailable), Act::Stall]);
    within(store.find_missing(&one)).await.unwrap_err();
    tokio::time::sleep(Duration::from_millis(10)).await;
    let others = async {
        while *store.breaker().borrow() != BreakerState::HalfOpen {
            tokio::task::yield_now().await;
        }
        store.find_missing(&other).await.unwrap_err()
    };
    tokio::select! {
        ended = store.find_missing(&one) => panic!("{ended:?}"),
        error = within(others) => assert!(error.to_string().contains("not asked"), "{error}"),
    }
}

#[tokio::test]
async fn while_one_asks_what_the_peer_can_do_others_go_by_what_they_know() {
    let peer = Peer::start().await;
    let store = peer.store();
    let (one, other) = ([sha256(b"1")], [sha256(b"2")]);
    within(store.capabilities()).await.unwrap();
    peer.script("missing", [Act::Fail(Code::Unavailable)]);
    within(store.find_missing(&one)).await.unwrap();
    peer.script("capabilities", [Act::Stall]);
    let others = async {
        while peer.calls("capabilities").len() < 2 {
            tokio::task::yield_now().await;
        }
        store.find_missing(&other).await
    };
    tokio::select! {
        ended = store.find_missing(&one) => panic!("{ended:?}"),
        missing = within(others) => assert_eq!(missing.unwrap(), other),
    }
}

#[tokio::test]
async fn an_upload_that_takes_its_time_keeps_nobody_waiting_after_an_outage() {
    let peer = Peer::start().await;
    let store = sensitive(&peer, Duration::from_millis(1), 3);
    within(store.capabilities()).await.unwrap();
    let digest = sha256(&conformance::content(1, MIB));
    peer.script("write", [Act::Fail(Code::Unavailable)]);
    let upload = store.put(&digest, Blob::stream(futures::stream::pending()));
    let other = async {
        while peer.calls("write").len() < 2 {
            tokio::task::yield_now().await;
        }
        let asked = [sha256(b"x")];
        store.find_missing(&asked).await
    };
    tokio::select! {
        ended = upload => panic!("{ended:?}"),
        missing = within(other) => assert_eq!(missing.unwrap().len(), 1),
    }
    assert_eq!(*store.breaker().borrow(), BreakerState::Closed);
}
