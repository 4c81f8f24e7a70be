//! Promises of a [`gorego_storage::BlobStore`] to concurrent callers.

use std::{pin::pin, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, future::Either, stream};
use tokio::{sync::Barrier, task::JoinSet};

use super::content::{End, KINDS, SHA256, content, expect, read, stream_of};
use gorego_storage::{Blob, BlobStore, CHUNK_SIZE, Digest, Put};

/// The number of concurrent callers.
const CALLERS: usize = 16;

/// Creates a stream that delivers `content` and then stalls, and a future that completes when it stalls.
pub(super) fn stalling(content: &Bytes) -> (Blob, impl Future<Output = ()> + use<>) {
    let (delivered, all) = tokio::sync::oneshot::channel();
    let Blob::Stream(mut stream) = stream_of(content, End::Complete) else {
        panic!("not a stream");
    };
    let report = stream::once(async move {
        let _ = delivered.send(());
        std::future::pending().await
    });
    stream.chunks = stream.chunks.chain(report).boxed();
    let all = async move {
        let _ = all.await;
    };
    (Blob::Stream(stream), all)
}

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
    let digest = SHA256.digest(&content);
    store
        .put(&digest, Blob::Bytes(content.clone()))
        .await
        .unwrap();
    for digest in [digest, SHA256.empty()] {
        let put = store
            .put(&digest, stream_of(&Bytes::new(), End::Stall))
            .await;
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
            let (blob, delivered) = stalling(&content.slice(..arrived));
            let put = run_until(store.put(&digest, blob), delivered).await;
            expect(store, &digest, None).await;
            drop(put);
        }
    }
}

pub(super) async fn a_dropped_put_stores_no_blob(store: &dyn BlobStore) {
    for size in [10, 4 * CHUNK_SIZE] {
        let content = content(3, size);
        let digest = SHA256.digest(&content);
        let (blob, delivered) = stalling(&content);
        drop(run_until(store.put(&digest, blob), delivered).await);
        expect(store, &digest, None).await;
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
            let (blob, delivered) = stalling(&content.slice(..size / 2));
            let stalled = run_until(store.put(&digest, blob), delivered).await;
            let put = store.put(&digest, kind.blob(&content)).await;
            assert_eq!(put.unwrap(), Put::Stored);
            assert_eq!(
                stalled.await.unwrap(),
                Put::Existed,
                "the other put was {kind:?}"
            );
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
        let stored = puts
            .iter()
            .filter(|put| matches!(put, Ok(Put::Stored)))
            .count();
        assert!(puts.iter().all(Result::is_ok) && stored > 0, "{puts:?}");
        expect(&*store, &digest, Some(&content)).await;
    }
}

pub(super) async fn concurrent_readers_get_the_same_content<S: BlobStore>(store: Arc<S>) {
    let content = content(8, 4 * CHUNK_SIZE + 1);
    let digest: Digest = SHA256.digest(&content);
    store
        .put(&digest, Blob::Bytes(content.clone()))
        .await
        .unwrap();
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        let (store, offset) = (Arc::clone(&store), number * CHUNK_SIZE / 4);
        let expected = content.slice(offset..);
        callers
            .spawn(async move { read(&*store, &digest, offset as u64).await.unwrap() == expected });
    }
    assert!(callers.join_all().await.into_iter().all(|same| same));
}
