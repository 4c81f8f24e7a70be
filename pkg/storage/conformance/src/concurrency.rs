//! What a [`gorego_storage::BlobStore`] promises to several callers at once.

use std::{pin::pin, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, future::Either, stream};
use tokio::{sync::Barrier, task::JoinSet};

use super::content::{End, KINDS, SHA256, content, expect, read, stream_of};
use gorego_storage::{Blob, BlobStore, CHUNK_SIZE, Digest, Put};

/// How many callers come at once.
const CROWD: usize = 16;

/// A stream of pieces that reports having delivered all, and then brings nothing more.
pub(super) fn stalling(content: &Bytes) -> (Blob, impl Future<Output = ()> + use<>) {
    let (delivered, all) = tokio::sync::oneshot::channel();
    let Blob::Stream(mut arriving) = stream_of(content, End::Ends) else {
        panic!("a stream of pieces");
    };
    let report = stream::once(async move {
        let _ = delivered.send(());
        std::future::pending().await
    });
    arriving.chunks = arriving.chunks.chain(report).boxed();
    let all = async move {
        let _ = all.await;
    };
    (Blob::Stream(arriving), all)
}

/// Runs a put until `delivered`; hands it back unfinished.
pub(super) async fn run_until<P: Future + Unpin>(put: P, delivered: impl Future<Output = ()>) -> P
where
    P::Output: std::fmt::Debug,
{
    match futures::future::select(put, pin!(delivered)).await {
        Either::Left((ended, _)) => panic!("a put whose stream goes on has ended: {ended:?}"),
        Either::Right(((), put)) => put,
    }
}

pub(super) async fn a_present_blob_is_not_read_again(store: &dyn BlobStore) {
    let content = content(1, 2 * CHUNK_SIZE);
    let digest = SHA256.digest(&content);
    store
        .put(&digest, Blob::Bytes(content.clone()))
        .await
        .unwrap();
    for digest in [digest, SHA256.empty()] {
        let put = store
            .put(&digest, stream_of(&Bytes::new(), End::Stalls))
            .await;
        assert_eq!(put.unwrap(), Put::Existed, "{digest}");
    }
    expect(store, &digest, Some(&content)).await;
}

pub(super) async fn a_blob_is_invisible_until_its_end(store: &dyn BlobStore) {
    for size in [10, 4 * CHUNK_SIZE] {
        let content = content(2, size);
        let digest = SHA256.digest(&content);
        // Even the last byte may have come: the end has not.
        for arrived in [size - 1, size] {
            let (blob, delivered) = stalling(&content.slice(..arrived));
            let put = run_until(store.put(&digest, blob), delivered).await;
            expect(store, &digest, None).await;
            drop(put);
        }
    }
}

pub(super) async fn a_dropped_put_leaves_nothing_visible(store: &dyn BlobStore) {
    for size in [10, 4 * CHUNK_SIZE] {
        let content = content(3, size);
        let digest = SHA256.digest(&content);
        let (blob, delivered) = stalling(&content);
        drop(run_until(store.put(&digest, blob), delivered).await);
        expect(store, &digest, None).await;
        let put = store.put(&digest, stream_of(&content, End::Ends)).await;
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
                "overtaken by {kind:?}"
            );
            expect(store, &digest, Some(&content)).await;
        }
    }
}

pub(super) async fn many_put_one_blob_at_once<S: BlobStore>(store: Arc<S>) {
    for size in [1, 4096, 4 * CHUNK_SIZE + 1] {
        let content = content(7, size);
        let digest = SHA256.digest(&content);
        let start = Arc::new(Barrier::new(CROWD));
        let mut crowd = JoinSet::new();
        for kind in KINDS.into_iter().cycle().take(CROWD) {
            let (store, start) = (Arc::clone(&store), Arc::clone(&start));
            let blob = kind.blob(&content);
            crowd.spawn(async move {
                start.wait().await;
                store.put(&digest, blob).await
            });
        }
        let puts = crowd.join_all().await;
        let stored = puts
            .iter()
            .filter(|put| matches!(put, Ok(Put::Stored)))
            .count();
        assert!(puts.iter().all(Result::is_ok) && stored > 0, "{puts:?}");
        expect(&*store, &digest, Some(&content)).await;
    }
}

pub(super) async fn readers_share_a_blob<S: BlobStore>(store: Arc<S>) {
    let content = content(8, 4 * CHUNK_SIZE + 1);
    let digest: Digest = SHA256.digest(&content);
    store
        .put(&digest, Blob::Bytes(content.clone()))
        .await
        .unwrap();
    let mut crowd = JoinSet::new();
    for number in 0..CROWD {
        let (store, offset) = (Arc::clone(&store), number * CHUNK_SIZE / 4);
        let expected = content.slice(offset..);
        crowd
            .spawn(async move { read(&*store, &digest, offset as u64).await.unwrap() == expected });
    }
    assert!(crowd.join_all().await.into_iter().all(|same| same));
}
