//! Calls to a peer that answers late, never, or only sometimes.

use std::time::Duration;

use crate::peer::{Act, Peer, sha256, within};
use futures::FutureExt as _;
use gorego_limits::Budget;
use gorego_storage::BreakerState;
use gorego_storage::{ActionCache, BlobStore, Error};
use gorego_storage_remote::{BreakerOptions, RemoteOptions, RemoteStore};
use reapi::v2::{ActionResult, OutputFile};
use tonic::Code;

#[tokio::test]
async fn temporary_failures_are_retried() {
    let peer = Peer::start().await;
    let store = peer.store();
    let digest = sha256(b"x");
    for code in [Code::Unavailable, Code::ResourceExhausted, Code::Aborted] {
        peer.script("missing", [Act::Fail(code), Act::Fail(code)]);
        assert_eq!(
            within(store.find_missing(&[digest])).await.unwrap(),
            [digest]
        );
    }
    assert_eq!(peer.calls("missing").len(), 9);
}

#[tokio::test]
async fn refusals_return_their_code_at_once_and_exhaustion_after_retries() {
    let peer = Peer::start().await;
    let store = RemoteStore::new(&RemoteOptions {
        retries: 1,
        ..peer.options()
    });
    let store = store.unwrap();
    let digest = sha256(b"x");
    for (code, calls) in [
        (Code::PermissionDenied, 1),
        (Code::Unauthenticated, 1),
        (Code::FailedPrecondition, 1),
        (Code::ResourceExhausted, 2),
    ] {
        let before = peer.calls("missing").len();
        peer.script("missing", vec![Act::Fail(code); calls]);
        let error = within(store.find_missing(&[digest])).await.unwrap_err();
        let same = matches!(&error, Error::Refused { code: c, .. } if *c == code);
        assert!(same, "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains(&peer.address) && text.contains(&digest.hex()),
            "{text}"
        );
        assert_eq!(peer.calls("missing").len() - before, calls);
    }
}

#[tokio::test]
async fn a_call_to_a_stalled_peer_times_out_and_announces_its_deadline() {
    let peer = Peer::start().await;
    let store = peer.impatient(0);
    within(store.capabilities()).await.unwrap();
    peer.script("missing", [Act::Stall]);
    let error = within(store.find_missing(&[sha256(b"x")]))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    assert!(error.to_string().contains("1s"), "{error}");
    let metadata = peer.state.metadata.lock().unwrap();
    let timeout = metadata.last().unwrap().get("grpc-timeout").unwrap();
    assert!(timeout.to_str().unwrap().ends_with('u'), "{timeout:?}");
}

#[tokio::test]
async fn cancelled_requests_for_digest_functions_leave_no_task_behind() {
    let peer = Peer::start().await;
    peer.script("capabilities", [Act::Stall]);
    let store = peer.store();
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = tasks();
    for _ in 0..100 {
        assert!(store.digest_functions().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    let left = tasks() - before;
    assert!(left < 10, "{left}");
}

#[tokio::test]
async fn the_breaker_opens_after_failures_and_closes_after_one_success() {
    let peer = Peer::start().await;
    let store = RemoteStore::new(&RemoteOptions {
        retries: 0,
        breaker: BreakerOptions {
            failures: 3,
            cool_down: Duration::from_millis(200),
            max_cool_down: Duration::from_millis(200),
        },
        ..peer.options()
    });
    let store = store.unwrap();
    let state = store.breaker();
    let action = sha256(b"x");
    assert_eq!(*state.borrow(), BreakerState::Closed);
    peer.script("result", vec![Act::Fail(Code::Unavailable); 3]);
    for _ in 0..3 {
        within(store.get_result(&action)).await.unwrap_err();
    }
    assert_eq!(*state.borrow(), BreakerState::Open);
    let error = within(store.get_result(&action)).await.unwrap_err();
    let text = error.to_string();
    let told = matches!(error, Error::Unavailable(_)) && text.contains("as told");
    assert!(
        told && text.contains(&format!("backing cache {} is unavailable", peer.address)),
        "{text}"
    );
    assert_eq!(
        peer.calls("result").len(),
        3,
        "a call that fails at once is not made"
    );

    let recovered = async {
        while store.get_result(&action).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    within(recovered).await;
    assert_eq!(*state.borrow(), BreakerState::Closed);
    assert_eq!(peer.calls("result").len(), 4);
}

/// Returns the result of an action from the instance without a name.
trait GetResult {
    async fn get_result(&self, action: &gorego_storage::Digest) -> Result<(), Error>;
}

impl GetResult for RemoteStore {
    async fn get_result(&self, action: &gorego_storage::Digest) -> Result<(), Error> {
        gorego_storage::ActionCacheExt::find(self, "", action)
            .await
            .map(|_| ())
    }
}

#[tokio::test]
async fn refusals_do_not_open_the_breaker() {
    let peer = Peer::start().await;
    let store = peer.store();
    peer.script("result", vec![Act::Fail(Code::PermissionDenied); 20]);
    for _ in 0..20 {
        within(store.get_result(&sha256(b"x"))).await.unwrap_err();
    }
    assert_eq!(*store.breaker().borrow(), BreakerState::Closed);
}

#[tokio::test]
async fn capabilities_are_requested_once_and_again_after_an_outage() {
    let peer = Peer::start().await;
    let store = peer.store();
    let digest = [sha256(b"x")];
    let (one, two) = tokio::join!(store.find_missing(&digest), store.find_missing(&digest));
    assert!(one.is_ok() && two.is_ok());
    assert_eq!(peer.calls("capabilities").len(), 1);
    peer.capable(|capabilities| capabilities.max_batch_total_size_bytes = 77);
    peer.script("missing", [Act::Fail(Code::Unavailable)]);
    within(store.find_missing(&digest)).await.unwrap();
    let capabilities = within(store.capabilities()).await.unwrap();
    assert_eq!(capabilities.max_batch_bytes, 77);
    assert_eq!(peer.calls("capabilities").len(), 2);
}

#[tokio::test]
async fn a_peer_without_capabilities_gets_the_defaults() {
    let peer = Peer::start().await;
    let store = peer.store();
    peer.script("capabilities", [Act::Fail(Code::Unimplemented)]);
    assert_eq!(
        within(store.find_missing(&[sha256(b"x")]))
            .await
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn action_results_come_from_the_instance_of_the_caller_or_the_configured_one() {
    let peer = Peer::start().await;
    let result = ActionResult {
        exit_code: 7,
        ..ActionResult::default()
    };
    let action = sha256(b"action");
    for (configured, expected) in [("", "theirs"), ("ours", "ours")] {
        let store = RemoteStore::new(&RemoteOptions {
            instance_name: configured.to_owned(),
            ..peer.options()
        });
        let store = store.unwrap();
        let found = gorego_storage::ActionCacheExt::find(&store, "theirs", &action);
        assert_eq!(within(found).await.unwrap(), None);
        let put = gorego_storage::ActionCache::put(&store, "theirs", &action, result.clone());
        within(put).await.unwrap();
        let found = gorego_storage::ActionCacheExt::find(&store, "theirs", &action);
        assert_eq!(within(found).await.unwrap(), Some(result.clone()));
        assert_eq!(peer.calls("update_result").pop().unwrap().name, expected);
        // The one store of blobs.
        within(store.find_missing(&[action])).await.unwrap();
        assert_eq!(peer.calls("missing").pop().unwrap().name, configured);
    }
    peer.script("update_result", [Act::Fail(Code::PermissionDenied)]);
    let put = gorego_storage::ActionCache::put(&peer.store(), "", &action, result).await;
    let error = put.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Refused {
                code: Code::PermissionDenied,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains(&action.hex()), "{error}");
}

#[tokio::test]
async fn a_result_that_decodes_to_too_much_memory_is_refused() {
    let peer = Peer::start().await;
    let store = peer.store();
    let action = sha256(b"action");
    let bomb = ActionResult {
        output_symlinks: vec![reapi::v2::OutputSymlink::default(); 300_000],
        ..ActionResult::default()
    };
    let key = action.hex();
    peer.state.results.lock().unwrap().insert(key, bomb);
    let error = within(store.get_result(&action)).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Refused {
                code: Code::DataLoss,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(peer.calls("result").len(), 1);
}

#[tokio::test]
async fn a_large_result_is_fetched_once_if_memory_is_free() {
    let peer = Peer::start().await;
    let store = peer.store();
    let action = sha256(b"action");
    let file = |number| OutputFile {
        path: format!("{number:0100}"),
        digest: Some(action.to_proto()),
        ..OutputFile::default()
    };
    let result = ActionResult {
        output_files: (0..1000).map(file).collect(),
        ..ActionResult::default()
    };
    let key = action.hex();
    peer.state
        .results
        .lock()
        .unwrap()
        .insert(key, result.clone());
    // With room for the result, and with less than it takes.
    for bytes in [2 << 20, 100 << 10] {
        let memory = Budget::memory("memory for results", bytes);
        let found = within(ActionCache::get(&store, "", &action, &memory)).await;
        let found = found.unwrap();
        assert_eq!(*found.result, result);
        assert!((100 << 10..=bytes).contains(&found.permit.bytes()));
    }
    assert_eq!(peer.calls("result").len(), 2);
}
