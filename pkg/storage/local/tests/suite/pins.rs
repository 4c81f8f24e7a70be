//! Pins of actions: what they protect, and which of them wait.

use std::{path::Path, sync::Arc};

use crate::common::{self, candidates, content, is_waiting, open, open_with, options, put, read};
use gorego_storage::{
    BlobStore as _, Digest, DigestFunction, Evictable as _, Links as _, PinError, Pins,
};
use gorego_storage_local::{LocalOptions, LocalStore};

const MIB: u64 = 1 << 20;

/// Opens a store of 10 MiB, of which pins may reserve 8.
async fn small(dir: &Path) -> Arc<LocalStore> {
    open_with(LocalOptions {
        max_bytes: 10 * MIB,
        wake_bytes: 10 * MIB,
        ..options(dir)
    })
    .await
}

/// Returns a missing blob of this many MiB.
fn blob(seed: u8, mib: u64) -> Digest {
    Digest::from_hash(DigestFunction::Sha256, &[seed; 32], mib * MIB).unwrap()
}

async fn reserve(store: &LocalStore, digests: &[Digest]) -> Pins {
    store.reserve_pins(digests).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_blobs_survive_eviction_until_the_last_pin_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    common::scanned(&store).await;
    let (one, two) = (content(1, 1000), content(2, 5000));
    let digests = [put(&store, &one).await, put(&store, &two).await];
    let first = store.pin(&digests).await.unwrap();
    let second = store.pin(&digests[..1]).await.unwrap();
    let evict = || store.evict(&candidates(&store), true).count;
    assert_eq!(evict(), 0);
    drop(first);
    assert_eq!(evict(), 1);
    assert_eq!(read(&store, &digests[0]).await.unwrap(), one);
    assert_eq!(
        store.find_missing(&digests).await.unwrap(),
        [digests[1]],
        "only one is pinned"
    );
    drop(second);
    assert_eq!(evict(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_arrives_after_its_pin_is_not_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let content = content(1, 1000);
    let pins = reserve(&store, &[DigestFunction::Sha256.digest(&content)]).await;
    put(&store, &content).await;
    assert_eq!(store.evict(&candidates(&store), true).count, 0);
    drop(pins);
    assert_eq!(store.evict(&candidates(&store), true).count, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_beyond_the_cache_fail_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = small(dir.path()).await;
    let held = reserve(&store, &[blob(1, 8)]).await;
    let too_many = [blob(2, 5), blob(3, 3), blob(4, 1)];
    let pinned = store.pin(&too_many).await;
    let Err(PinError::Full { bytes, .. }) = pinned else {
        panic!("{pinned:?}");
    };
    assert_eq!(bytes, 9 * MIB);
    // A blob counts once.
    drop(held);
    drop(reserve(&store, &[blob(2, 8), blob(2, 8)]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_that_exceed_the_cache_together_wait_for_each_other_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = small(dir.path()).await;
    let (shared, a, b, c) = (blob(1, 3), blob(2, 2), blob(3, 4), blob(4, 1));
    let first = reserve(&store, &[shared, a]).await;
    let second = [b, shared];
    let second = store.reserve_pins(&second);
    let third = [c];
    let third = store.reserve_pins(&third);
    tokio::pin!(second, third);
    assert!(is_waiting(second.as_mut()), "9 of 8 MiB");
    assert!(is_waiting(third.as_mut()), "it came later");
    assert_eq!(store.lacking(), MIB);
    drop(first);
    let second = second.await.unwrap();
    assert_eq!(store.lacking(), 0);
    let third = third.await.unwrap();
    // Those of 5 MiB that others pin need no more room.
    drop(reserve(&store, &[shared, b, c]).await);
    drop((second, third));
    drop(reserve(&store, &[blob(5, 8)]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_pin_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = small(dir.path()).await;
    let first = reserve(&store, &[blob(1, 5)]).await;
    {
        let (second, third) = ([blob(2, 4)], [blob(3, 1)]);
        let (mut second, mut third) = (
            Box::pin(store.reserve_pins(&second)),
            Box::pin(store.reserve_pins(&third)),
        );
        assert!(is_waiting(second.as_mut()) && is_waiting(third.as_mut()));
        assert_eq!(store.lacking(), MIB);
        drop(second);
        assert_eq!(store.lacking(), 0);
        drop(third.await.unwrap());
    }
    drop(first);
    drop(reserve(&store, &[blob(4, 8)]).await);
    let missing = store.pin(&[blob(5, 8)]).await;
    assert!(matches!(missing, Err(PinError::Missing(_))), "{missing:?}");
    drop(reserve(&store, &[blob(6, 8)]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unverified_blob_is_hashed_before_it_is_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let good = put(&store, &content(1, 1000)).await;
    let bad = put(&store, &content(2, 1000)).await;
    drop(store);
    common::damage(&common::path(dir.path(), &bad));
    let store = open(dir.path()).await;
    let pinned = store.pin(&[good, bad]).await;
    let Err(PinError::Missing(missing)) = pinned else {
        panic!("{pinned:?}");
    };
    assert_eq!(missing, [bad]);
    drop(store.pin(&[good]).await.unwrap());
}
