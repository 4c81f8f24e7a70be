//! Calls while a peer is out of reach.

use std::{sync::Arc, time::Duration};

use crate::peer::{Act, Line, Peer, sha256, within};
use bytes::Bytes;
use futures::{FutureExt as _, future::join_all};
use gorego_storage::{Blob, BlobStore, BreakerState, DigestFunction, Error};
use gorego_storage_conformance as conformance;
use gorego_storage_remote::{BreakerOptions, RemoteAddress, RemoteOptions, RemoteStore};
use reapi::v2::ActionResult;
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
async fn a_retry_waits_for_the_cool_down_and_a_new_call_fails_at_once() {
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
    assert!(error.to_string().contains("calls are suspended"), "{error}");
    assert!(peer.calls("missing").is_empty());
}

#[tokio::test]
async fn downloads_without_content_open_the_breaker() {
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
async fn calls_fail_at_once_during_a_probe() {
    let peer = Peer::start().await;
    let store = sensitive(&peer, Duration::from_millis(1), 0);
    let (one, other) = ([sha256(b"1")], [sha256(b"2")]);
    // The first call requests the capabilities, which are not cached yet.
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
        error = within(others) => assert!(error.to_string().contains("calls are suspended"), "{error}"),
    }
}

#[tokio::test]
async fn the_last_capabilities_are_used_while_one_call_requests_new_ones() {
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
async fn a_slow_upload_after_an_outage_delays_no_other_call() {
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

#[tokio::test]
async fn a_digest_function_that_the_peer_lacks_is_refused_during_an_outage() {
    let peer = Peer::start().await;
    peer.capable(|capabilities| capabilities.digest_functions = vec![1]);
    let store = sensitive(&peer, Duration::from_mins(1), 0);
    let promised = [DigestFunction::Sha256];
    assert_eq!(within(store.digest_functions()).await, promised);
    peer.script("missing", [Act::Fail(Code::Unavailable)]);
    within(store.find_missing(&[sha256(b"x")]))
        .await
        .unwrap_err();
    assert_eq!(*store.breaker().borrow(), BreakerState::Open);
    assert_eq!(within(store.digest_functions()).await, promised);

    let content = Bytes::from_static(b"content");
    for function in [DigestFunction::Blake3, DigestFunction::Sha256] {
        let digest = function.digest(&content);
        let batch = vec![(digest, content.clone())];
        let blob = Blob::Bytes(content.clone());
        let errors = [
            within(store.find_missing(&[digest])).await.unwrap_err(),
            within(store.get(&digest, 0)).await.unwrap_err(),
            within(store.get_batch(&[digest]))
                .await
                .remove(0)
                .unwrap_err(),
            within(store.put(&digest, blob)).await.unwrap_err(),
            within(store.put_batch(batch)).await.remove(0).unwrap_err(),
            within(gorego_storage::ActionCache::put(
                &store,
                "",
                &digest,
                ActionResult::default(),
            ))
            .await
            .unwrap_err(),
        ];
        for error in errors {
            if function == DigestFunction::Sha256 {
                assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
                continue;
            }
            let code = Code::InvalidArgument;
            let refused = matches!(error, Error::Refused { code: c, .. } if c == code);
            assert!(refused, "{error:?}");
        }
    }
}

#[tokio::test]
async fn known_digest_functions_are_returned_without_a_call() {
    let peer = Peer::start().await;
    peer.capable(|capabilities| capabilities.digest_functions = vec![1]);
    let store = peer.store();
    let sha256_only = vec![DigestFunction::Sha256];
    assert_eq!(within(store.digest_functions()).await, sha256_only);
    peer.script("missing", [Act::Fail(Code::Unavailable)]);
    within(store.find_missing(&[sha256(b"x")])).await.unwrap();
    // The capabilities are requested again; the peer does not answer.
    peer.script("capabilities", [Act::Stall]);
    let asked = async {
        while peer.calls("capabilities").len() < 2 {
            let functions = store.digest_functions().now_or_never();
            assert_eq!(functions.as_ref(), Some(&sha256_only));
            tokio::task::yield_now().await;
        }
    };
    within(asked).await;
    assert_eq!(store.digest_functions().now_or_never(), Some(sha256_only));
}

#[tokio::test]
async fn a_restarted_peer_with_another_function_is_noticed() {
    let peer = Peer::start().await;
    peer.capable(|capabilities| capabilities.digest_functions = vec![1]);
    let store = peer.store();
    assert_eq!(within(store.digest_functions()).await.len(), 1);
    peer.script("missing", [Act::Fail(Code::Unavailable)]);
    within(store.find_missing(&[sha256(b"x")])).await.unwrap();
    peer.capable(|capabilities| capabilities.digest_functions = vec![1, 9]);
    let heard = async {
        while store.digest_functions().await.len() == 1 {
            tokio::task::yield_now().await;
        }
    };
    within(heard).await;
}

#[tokio::test]
async fn outages_are_counted_and_error_answers_are_not() {
    let peer = Peer::start().await;
    let store = peer.impatient(0);
    let asked = [sha256(b"x")];
    within(store.find_missing(&asked)).await.unwrap();
    for code in [Code::PermissionDenied, Code::ResourceExhausted] {
        peer.script("missing", [Act::Fail(code)]);
        within(store.find_missing(&asked)).await.unwrap_err();
    }
    assert_eq!(store.outages(), 0);
    peer.script("missing", [Act::Fail(Code::Unavailable)]);
    within(store.find_missing(&asked)).await.unwrap_err();
    assert_eq!(store.outages(), 1);

    // From then on connections are refused.
    drop(peer);
    let refused = async {
        while store.outages() == 1 {
            let _ = store.find_missing(&asked).await;
        }
    };
    within(refused).await;
}

#[tokio::test]
async fn a_long_silence_of_a_peer_counts_as_an_outage() {
    let peer = Peer::start().await;
    let store = peer.impatient(0);
    within(store.capabilities()).await.unwrap();
    let asked = [sha256(b"x")];
    peer.script("missing", vec![Act::Stall; 5]);
    while *store.breaker().borrow() == BreakerState::Closed {
        assert_eq!(store.outages(), 0, "one slow call is no outage");
        within(store.find_missing(&asked)).await.unwrap_err();
    }
    assert_eq!(store.outages(), 1);
}

#[tokio::test]
async fn a_restart_between_two_calls_counts_as_an_outage_if_blobs_are_missing() {
    let peer = Peer::start().await;
    let line = Line::at("127.0.0.1:0", &peer).await;
    let store = over_one_connection(&line);
    let asked = [peer.has(&Bytes::from_static(b"content"))];
    assert_eq!(within(store.find_missing(&asked)).await.unwrap(), []);
    peer.state.blobs.lock().unwrap().clear();
    line.cut();
    let noticed = async {
        while store.outages() == 0 {
            tokio::task::yield_now().await;
        }
    };
    within(noticed).await;
}

#[tokio::test]
async fn a_connection_that_a_balancer_closes_is_no_outage() {
    let peer = Peer::start().await;
    let line = Line::at("127.0.0.1:0", &peer).await;
    let store = over_one_connection(&line);
    let content = Bytes::from_static(b"content");
    let digest = sha256(&content);
    within(store.put(&digest, Blob::Bytes(content)))
        .await
        .unwrap();
    line.cut();
    let asked_again = async {
        while peer.calls("missing").is_empty() {
            tokio::task::yield_now().await;
        }
    };
    within(asked_again).await;
    assert_eq!(within(store.find_missing(&[digest])).await.unwrap(), []);
    assert_eq!(store.outages(), 0);
    assert_eq!(*store.breaker().borrow(), BreakerState::Closed);
}
