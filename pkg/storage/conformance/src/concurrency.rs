//! Promises of a [`gorego_storage::BlobStore`] to concurrent callers.

use std::{pin::pin, sync::Arc};

use bytes::Bytes;
use futures::future::Either;
use tokio::{sync::Barrier, task::JoinSet};

use super::content::{End, KINDS, SHA256, content, expect, put, read, stalling, stream_of};
use gorego_storage::{BlobStore, CHUNK_SIZE, Put};

/// The number of concurrent callers.
const CALLERS: usize = 16;

/// Runs a put until `delivered` completes. Returns the unfinished put.
pub(super) async fn run_until<P: Future + Unpin>(put: P, delivered: impl Future<Output = ()>) -> P
where
    P::Output: std::fmt::Debug,
{
    match futures::future::select(put, pin!(delivered)).await {
        Either::Left((ended, _)) => panic!("the put ended before its stream: {ended:?}"),
        Either::Right(((), put)) => put,
    }
}

pub(super) async fn the_content_for_a_present_blob_is_not_read(store: &dyn BlobStore) {
    let content = content(1, 2 * CHUNK_SIZE);
    let digest = put(store, SHA256, &content).await;
    for digest in [digest, SHA256.empty()] {
        let unread = stream_of(&Bytes::new(), End::Stall);
        let put = store.put(&digest, unread).await;
        assert_eq!(put.unwrap(), Put::Existed, "{digest}");
    }
    expect(store, &digest, Some(&content)).await;
}

pub(super) async fn a_blob_is_invisible_until_its_stream_ends(store: &dyn BlobStore) {
    for size in [10, 4 * CHUNK_SIZE] {
        let content = content(2, size);
        let digest = SHA256.digest(&content);
        // The last byte may have arrived, but the stream has not ended.
        for arrived in [size - 1, size] {
            let (blob, delivered) = stalling(&content.slice(..arrived), None);
            let put = run_until(store.put(&digest, blob), delivered).await;
            expect(store, &digest, None).await;
            drop(put);
            expect(store, &digest, None).await;
        }
        let put = store.put(&digest, stream_of(&content, End::Complete)).await;
        assert_eq!(put.unwrap(), Put::Stored);
        expect(store, &digest, Some(&content)).await;
    }
}

pub(super) async fn a_put_ends_when_another_finishes_first(store: &dyn BlobStore) {
    for kind in KINDS {
        for size in [10, 4 * CHUNK_SIZE] {
            let content = content(4 + kind as u64, size);
            let digest = SHA256.digest(&content);
            let (blob, delivered) = stalling(&content.slice(..size / 2), None);
            let stalled = run_until(store.put(&digest, blob), delivered).await;
            let put = store.put(&digest, kind.blob(&content)).await;
            assert_eq!(put.unwrap(), Put::Stored);
            assert_eq!(stalled.await.unwrap(), Put::Existed, "{kind:?}");
            expect(store, &digest, Some(&content)).await;
        }
    }
}

pub(super) async fn concurrent_puts_of_one_blob_succeed<S: BlobStore>(store: Arc<S>) {
    for size in [1, 4096, 4 * CHUNK_SIZE + 1] {
        let content = content(7, size);
        let digest = SHA256.digest(&content);
        let start = Arc::new(Barrier::new(CALLERS));
        let mut callers = JoinSet::new();
        for kind in KINDS.into_iter().cycle().take(CALLERS) {
            let (store, start) = (Arc::clone(&store), Arc::clone(&start));
            let blob = kind.blob(&content);
            callers.spawn(async move {
                start.wait().await;
                store.put(&digest, blob).await
            });
        }
        let puts = callers.join_all().await;
        let stored = puts.iter().any(|put| matches!(put, Ok(Put::Stored)));
        assert!(puts.iter().all(Result::is_ok) && stored, "{puts:?}");
        expect(&*store, &digest, Some(&content)).await;
    }
}

pub(super) async fn concurrent_readers_get_the_same_content<S: BlobStore>(store: Arc<S>) {
    let content = content(8, 4 * CHUNK_SIZE + 1);
    let digest = put(&*store, SHA256, &content).await;
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        let (store, offset) = (Arc::clone(&store), number * CHUNK_SIZE / 4);
        let expected = content.slice(offset..);
        callers.spawn(async move {
            let got = read(&*store, &digest, offset as u64).await;
            assert!(got.unwrap() == expected, "from {offset}");
        });
    }
    callers.join_all().await;
}
