//! Writes through both tiers.

use std::{fs, sync::atomic::Ordering::SeqCst, time::Duration};

use crate::common::{self, CHUNK, Proxy, content, sha256};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gorego_storage::{
    Blob, BlobStore, BlobStoreExt as _, BlobStream, Chunks, Digest, Error, Put, Resume, UploadId,
    Uploads,
};
use tokio::time::timeout;

fn pieces(content: &Bytes) -> Vec<Bytes> {
    let ends = (0..content.len()).step_by(CHUNK);
    ends.map(|at| content.slice(at..content.len().min(at + CHUNK)))
        .collect()
}

fn upload(content: &Bytes) -> Blob {
    Blob::stream(stream::iter(pieces(content).into_iter().map(Ok)))
}

async fn assert_in_both(proxy: &Proxy, digest: &Digest) {
    assert!(proxy.backing.memory.contains(digest).await.unwrap());
    assert!(proxy.local.contains(digest).await.unwrap());
}

#[tokio::test]
async fn a_written_blob_is_in_both_tiers() {
    for len in [10, CHUNK * 20] {
        let proxy = Proxy::new().await;
        let content = content(1, len);
        let digest = sha256(&content);
        proxy.store.put(&digest, upload(&content)).await.unwrap();
        assert_in_both(&proxy, &digest).await;
        let other = common::content(2, len);
        let digest = sha256(&other);
        proxy.store.put(&digest, Blob::Bytes(other)).await.unwrap();
        assert_in_both(&proxy, &digest).await;
    }
}

#[tokio::test]
async fn a_failed_upload_is_retried_from_the_staged_file() {
    let proxy = Proxy::new().await;
    let content = content(1, CHUNK * 20);
    let digest = sha256(&content);
    proxy.backing.script(|script| script.failing_puts = 1);
    proxy.store.put(&digest, upload(&content)).await.unwrap();
    assert_in_both(&proxy, &digest).await;
    assert_eq!(proxy.backing.puts.load(SeqCst), 2);
}

#[tokio::test]
async fn a_write_refused_by_the_backing_cache_is_not_stored_locally() {
    for blob in [true, false] {
        let proxy = Proxy::new().await;
        let content = content(1, CHUNK * 20);
        let digest = sha256(&content);
        proxy.backing.script(|script| script.down = true);
        let blob = if blob {
            Blob::Bytes(content.clone())
        } else {
            upload(&content)
        };
        let put = proxy.store.put(&digest, blob).await;
        assert!(matches!(put, Err(Error::Unavailable(_))), "{put:?}");
        assert!(!proxy.local.contains(&digest).await.unwrap());
    }
}

#[tokio::test]
async fn a_put_ends_early_if_the_backing_cache_has_the_blob() {
    let proxy = Proxy::new().await;
    let content = content(1, CHUNK * 20);
    let digest = sha256(&content);
    proxy.backing.script(|script| script.has_all = true);
    let stalls = stream::iter([Ok(content.slice(..CHUNK))]).chain(stream::pending());
    let put = proxy.store.put(&digest, Blob::stream(stalls)).await;
    assert_eq!(put.unwrap(), Put::Existed);
}

#[tokio::test]
async fn a_write_succeeds_without_room_in_the_local_tier() {
    let proxy = Proxy::with(common::options(), 2 << 20).await;
    let content = content(1, 8 << 20);
    let digest = sha256(&content);
    proxy.store.put(&digest, upload(&content)).await.unwrap();
    assert!(proxy.backing.memory.contains(&digest).await.unwrap());
}

#[tokio::test]
async fn a_write_without_room_in_the_local_tier_ends_with_its_client() {
    let proxy = Proxy::with(common::options(), 2 << 20).await;
    let content = content(1, 8 << 20);
    let broken = Error::source(std::io::Error::other("the client went away"));
    let broken = stream::iter([Ok(content.slice(..CHUNK)), Err(broken)]);
    let stalled = Blob::stream(broken.chain(stream::pending()));
    let put = proxy.store.put(&sha256(&content), stalled).await;
    assert!(matches!(put, Err(Error::Source(_))), "{put:?}");
}

#[tokio::test]
async fn mismatched_content_is_stored_nowhere() {
    for len in [10, CHUNK * 20] {
        let proxy = Proxy::new().await;
        let digest = sha256(&content(1, len));
        for blob in [upload(&content(2, len)), Blob::Bytes(content(2, len))] {
            let put = proxy.store.put(&digest, blob).await;
            assert!(matches!(put, Err(Error::Mismatch { .. })), "{put:?}");
            assert!(!proxy.store.contains(&digest).await.unwrap());
        }
    }
}

#[tokio::test]
async fn mismatched_content_is_refused_even_if_the_backing_cache_accepts_it() {
    let proxy = Proxy::new().await;
    proxy.backing.script(|script| script.careless = true);
    let digest = sha256(&content(1, CHUNK * 20));
    let wrong = upload(&content(2, CHUNK * 20));
    let put = proxy.store.put(&digest, wrong).await;
    assert!(matches!(put, Err(Error::Mismatch { .. })), "{put:?}");
    assert_eq!(proxy.store.find_missing(&[digest]).await.unwrap(), [digest]);
}

#[tokio::test]
async fn a_resumed_upload_reaches_both_tiers() {
    let proxy = Proxy::new().await;
    let content = content(1, CHUNK * 20);
    let digest = sha256(&content);
    let id = UploadId::new("upload");
    let resumed = |pieces: Vec<Result<Bytes, Error>>, offset| {
        Blob::Stream(BlobStream {
            chunks: stream::iter(pieces).boxed(),
            resume: Some(Resume {
                upload: id.clone(),
                offset,
            }),
            verified: None,
        })
    };
    let broken = Error::source(std::io::Error::other("the client went away"));
    let mut first: Vec<_> = pieces(&content).into_iter().take(10).map(Ok).collect();
    first.push(Err(broken));
    let put = proxy.store.put(&digest, resumed(first, 0)).await;
    assert!(matches!(put, Err(Error::Source(_))), "{put:?}");
    let committed = proxy.store.committed(&digest, &id).await.unwrap();
    assert_eq!(committed, 10 * CHUNK as u64);
    let rest = pieces(&content).into_iter().skip(10).map(Ok).collect();
    let put = proxy.store.put(&digest, resumed(rest, committed)).await;
    assert_eq!(put.unwrap(), Put::Stored);
    assert_in_both(&proxy, &digest).await;
}

#[tokio::test]
async fn a_put_of_a_present_blob_succeeds_if_its_partial_upload_is_unreadable() {
    let proxy = Proxy::new().await;
    let content = content(1, CHUNK * 20);
    let digest = sha256(&content);
    let upload = |last: Chunks| {
        let first = stream::iter(pieces(&content).into_iter().take(10).map(Ok));
        Blob::Stream(BlobStream {
            chunks: first.chain(last).boxed(),
            resume: Some(Resume {
                upload: UploadId::new("upload"),
                offset: 0,
            }),
            verified: None,
        })
    };
    let broken = Error::source(std::io::Error::other("the client went away"));
    let broken = stream::iter([Err(broken)]).boxed();
    let put = proxy.store.put(&digest, upload(broken)).await;
    assert!(matches!(put, Err(Error::Source(_))), "{put:?}");
    // The partial upload is no longer readable.
    let uploads = proxy.dir.path().join("uploads");
    fs::remove_dir_all(&uploads).unwrap();
    std::os::unix::fs::symlink("uploads", &uploads).unwrap();
    proxy.backing.script(|script| script.has_all = true);
    let put = proxy.store.put(&digest, upload(stream::pending().boxed()));
    assert_eq!(put.await.unwrap(), Put::Existed);
}

#[tokio::test]
async fn a_mismatched_blob_of_a_batch_affects_no_other() {
    let proxy = Proxy::new().await;
    let (good, bad) = (content(1, 10), sha256(&content(2, 10)));
    let batch = vec![(sha256(&good), good.clone()), (bad, good.clone())];
    let put = proxy.store.put_batch(batch).await;
    assert!(put[0].is_ok());
    assert!(matches!(put[1], Err(Error::Mismatch { .. })));
    assert_in_both(&proxy, &sha256(&good)).await;
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_the_backing_cache_cannot_accept_fails_before_its_end() {
    let proxy = Proxy::new().await;
    let content = content(1, CHUNK * 20);
    proxy.backing.script(|script| script.down = true);
    let stalls = stream::iter([Ok(content.slice(..CHUNK))]).chain(stream::pending());
    let digest = sha256(&content);
    let put = proxy.store.put(&digest, Blob::stream(stalls));
    let put = timeout(Duration::from_mins(1), put).await;
    let put = put.expect("the client need not send the rest");
    assert!(matches!(put, Err(Error::Unavailable(_))), "{put:?}");
}

#[tokio::test]
async fn an_upload_that_the_backing_cache_never_read_is_not_retried_by_the_proxy() {
    let proxy = Proxy::new().await;
    let content = content(1, CHUNK * 20);
    proxy.backing.script(|script| script.down = true);
    let error = proxy.store.put(&sha256(&content), upload(&content)).await;
    assert!(matches!(error, Err(Error::Unavailable(_))), "{error:?}");
    assert_eq!(proxy.backing.puts.load(SeqCst), 1);
}
