//! The report of the store's state.

use std::{fs, time::Duration};

use crate::common::{
    self, broken, candidate, candidates, content, open, open_with, options, path, put, read, until,
};
use futures::StreamExt as _;
use gorego_storage::{Blob, BlobStore as _, CHUNK_SIZE, Evictable as _};
use gorego_storage_local::LocalOptions;
use std::sync::atomic::Ordering::Relaxed;

#[tokio::test(flavor = "multi_thread")]
async fn evictions_are_reported_by_kind_and_with_the_age_of_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    common::scanned(&store).await;
    let unleased = put(&store, &content(1, 5000)).await;
    let action = put(&store, &content(2, 1000)).await;
    common::put_result(&store, "i", &action, 0).await;
    let before = store.report();
    assert_eq!((before.blobs, before.results), (2, 1));
    assert_eq!((before.evicted_blobs, before.eviction_age), (0, None));
    store.evict(&[candidate(&store, 8192)], false);
    let now = store.report();
    assert_eq!(
        (now.blobs, now.evicted_blobs, now.evicted_bytes),
        (1, 1, 8192)
    );
    assert_eq!(now.leases_broken, 0);
    assert!(now.eviction_age.unwrap() < Duration::from_mins(1));
    assert_eq!(store.find_missing(&[unleased]).await.unwrap(), [unleased]);
    // The result is leased, since clients do not upload it again.
    store.evict(&candidates(&store), true);
    let now = store.report();
    assert_eq!((now.evicted_blobs, now.evicted_results), (2, 1));
    assert_eq!((now.blobs, now.results, now.leases_broken), (0, 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn leased_bytes_are_measured_once_the_scan_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    put(&store, &content(1, 5000)).await;
    put(&store, &content(2, 1000)).await;
    store.close().await.unwrap();
    drop(store);
    let lease = |lease| LocalOptions {
        lease,
        ..options(dir.path())
    };
    for (lease_term, leased) in [(Duration::from_hours(1), 12_288), (Duration::ZERO, 0)] {
        let store = open_with(lease(lease_term)).await;
        until(|| store.report().leased.is_some()).await;
        let now = store.report();
        assert_eq!((now.leased, now.scanned), (Some(leased), 2));
        assert!(!now.usage.scanning);
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn quarantined_and_lost_files_and_removed_uploads_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    common::scanned(&store).await;
    let lost = put(&store, &content(1, 1000)).await;
    fs::remove_file(path(dir.path(), &lost)).unwrap();
    read(&store, &lost).await.unwrap_err();
    let obstructed = put(&store, &content(2, 1000)).await;
    let place = path(dir.path(), &obstructed);
    fs::remove_file(&place).unwrap();
    fs::create_dir(&place).unwrap();
    read(&store, &obstructed).await.unwrap_err();
    let now = store.report();
    assert_eq!((now.lost, now.quarantined), (1, 1));
    let large = content(3, 3 << 20);
    let upload = gorego_storage::DigestFunction::Sha256.digest(&large);
    let cut_off = broken("upload", 0, &[large.slice(..2 << 20)]);
    store.put(&upload, cut_off).await.unwrap_err();
    assert!(store.report().usage.idle_uploads > 0);
    store.remove_idle_uploads(Duration::ZERO).unwrap();
    assert_eq!(store.report().idle_removed, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn scrubbing_is_reported_if_it_is_enabled() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    common::scanned(&store).await;
    put(&store, &content(1, 1000)).await;
    assert_eq!(store.report().scrub, None);
    drop(store);
    let often = LocalOptions {
        scrub_period: Some(Duration::from_millis(1)),
        ..options(dir.path())
    };
    let store = open_with(often).await;
    let scrubbed = || store.report().scrub.unwrap_or_default();
    until(|| scrubbed().files >= 2 && scrubbed().bytes >= 2000).await;
    assert!(!scrubbed().pass_start.is_zero());
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_blobs_count_once_they_are_stored_and_as_far_as_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let size = 3 * CHUNK_SIZE;
    let blob = content(1, size);
    let digest = put(&store, &blob).await;
    store.put(&digest, Blob::Bytes(blob)).await.unwrap();
    let traffic = store.traffic();
    assert_eq!(traffic.written.load(Relaxed), size as u64);
    let mut chunks = store.get(&digest, 0).await.unwrap().into_chunks();
    chunks.next().await.unwrap().unwrap();
    drop(chunks);
    assert_eq!(traffic.read.load(Relaxed), CHUNK_SIZE as u64);
    let small = put(&store, &content(2, 100)).await;
    store.get_batch(&[small]).await;
    store.get(&small, 40).await.unwrap();
    assert_eq!(traffic.read.load(Relaxed), CHUNK_SIZE as u64 + 160);
}
