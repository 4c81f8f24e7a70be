//! Eviction: which blobs the janitor may evict, and which uploads wait for it.

use std::time::Duration;

use crate::common::{
    self, candidate, candidates, content, is_waiting, open, open_with, options, path, put, read,
};
use futures::StreamExt as _;
use gorego_storage::{
    Blob, BlobStore as _, Candidate, Digest, DigestFunction, Error, Evictable as _, EvictionTotal,
};
use gorego_storage_local::LocalOptions;

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_blob_is_missing_and_its_room_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    common::scanned(&store).await;
    let digest = put(&store, &content(1, 5000)).await;
    // The two folders on the way to it count as well.
    assert_eq!(store.usage().used, 4 * 4096);
    let removed = store.evict(&candidates(&store), false);
    assert_eq!(
        removed,
        EvictionTotal {
            count: 1,
            bytes: 8192
        }
    );
    assert!(!path(dir.path(), &digest).exists());
    assert!(matches!(
        read(&store, &digest).await,
        Err(Error::NotFound(_))
    ));
    assert_eq!(store.usage().used, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_of_every_function_and_action_results_are_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    common::scanned(&store).await;
    for function in DigestFunction::ALL {
        let digest = function.digest(b"content");
        store
            .put(&digest, Blob::Bytes("content".into()))
            .await
            .unwrap();
        common::put_result(&store, "i", &digest, 0).await;
    }
    // Results are leased as soon as they are stored.
    assert_eq!(store.evict(&candidates(&store), true).count, 10);
    assert_eq!(store.usage().used, 0);
    assert_eq!(
        common::folders(dir.path(), "cas"),
        4,
        "one for each function"
    );
    assert_eq!(common::folders(dir.path(), "ac"), 5);
    for function in DigestFunction::ALL {
        let digest = function.digest(b"content");
        assert_eq!(store.find_missing(&[digest]).await.unwrap(), [digest]);
        assert_eq!(common::get_result(&store, "i", &digest).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_was_reported_present_is_leased_until_the_lease_ends() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let digest = put(&store, &content(1, 1000)).await;
    assert!(!candidate(&store, 4096).leased);
    store.find_missing(&[digest]).await.unwrap();
    let leased = candidate(&store, 4096);
    assert!(leased.leased);
    assert_eq!(store.evict(&[leased], false).count, 0);
    assert_eq!(store.evict(&[leased], true).count, 1);

    let dir = tempfile::tempdir().unwrap();
    let short = LocalOptions {
        lease: Duration::ZERO,
        ..options(dir.path())
    };
    let store = open_with(short).await;
    let digest = put(&store, &content(1, 1000)).await;
    store.find_missing(&[digest]).await.unwrap();
    assert!(!candidate(&store, 4096).leased);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_leases_a_blob_for_the_shorter_term() {
    let dir = tempfile::tempdir().unwrap();
    let leasing = |upload_lease| LocalOptions {
        upload_lease,
        ..options(dir.path())
    };
    let store = open_with(leasing(Duration::from_mins(10))).await;
    let (one, two) = (content(1, 1000), content(2, 5000));
    put(&store, &one).await;
    assert!(candidate(&store, 4096).leased);
    drop(store);

    // Files of an earlier run have the longer lease, since nothing tells which.
    let store = open_with(leasing(Duration::ZERO)).await;
    common::scanned(&store).await;
    assert!(candidate(&store, 4096).leased);
    assert_eq!(store.evict(&candidates(&store), true).count, 1);
    let digest = put(&store, &two).await;
    assert!(!candidate(&store, 8192).leased);
    store.find_missing(&[digest]).await.unwrap();
    let again = store.put(&digest, Blob::Bytes(two)).await.unwrap();
    assert_eq!(again, gorego_storage::Put::Existed);
    assert!(candidate(&store, 8192).leased, "the longer lease goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_limit_was_lowered_uploads_proceed_while_eviction_catches_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for seed in 0..20 {
        put(&store, &content(seed, 40_000)).await;
    }
    let used = store.usage().used;
    store.close().await.unwrap();
    drop(store);

    let lowered = LocalOptions {
        max_bytes: 100_000,
        wake_bytes: 95_000,
        ..options(dir.path())
    };
    let store = open_with(lowered).await;
    common::scanned(&store).await;
    assert_eq!(store.usage().used, used);
    let new = content(30, 15_000);
    let digest = DigestFunction::Sha256.digest(&new);
    let mut upload = store.put(&digest, Blob::Bytes(new));
    assert!(is_waiting(upload.as_mut()));
    assert_eq!(store.evict(&candidates(&store)[..1], true).count, 1);
    store.room_made(false);
    upload.await.unwrap();
    // Eviction gets on all the same, down to the limit and no further.
    let evicted = candidates(&store).len() - 1;
    assert_eq!(
        store.evict(&candidates(&store)[..evicted], true).count,
        evicted as u64
    );
    let large = content(31, 90_000);
    let digest = DigestFunction::Sha256.digest(&large);
    let mut upload = store.put(&digest, Blob::Bytes(large));
    assert!(is_waiting(upload.as_mut()), "{:?}", store.usage());
    store.room_made(true);
    assert!(matches!(upload.await, Err(Error::Full { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_cannot_fit_is_refused_before_its_content_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let small = LocalOptions {
        max_bytes: 1 << 20,
        wake_bytes: 1 << 20,
        ..options(dir.path())
    };
    let store = open_with(small).await;
    let digest = DigestFunction::Sha256.digest(b"");
    let digest = Digest::from_hash(DigestFunction::Sha256, digest.hash(), (1 << 20) + 1);
    let never = Blob::Stream(gorego_storage::BlobStream {
        chunks: Box::pin(futures::stream::pending()),
        resume: None,
        verified: None,
    });
    let refused = store.put(&digest.unwrap(), never).await;
    let Err(Error::Full { why, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert!(why.contains("1048576 bytes"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_used_since_its_visit_is_not_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let digest = put(&store, &content(1, 1000)).await;
    let shown = candidate(&store, 4096);
    let stale = Candidate {
        last_use: shown.last_use - 1,
        ..shown
    };
    assert_eq!(store.evict(&[stale], true).count, 0);
    let unknown = Candidate {
        entry: common::no_entry(),
        ..shown
    };
    assert_eq!(store.evict(&[unknown], true).count, 0);
    read(&store, &digest).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_not_evicted_while_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let blob = content(1, 1_000_000);
    let digest = put(&store, &blob).await;
    let reading = store.get(&digest, 0).await.unwrap();
    assert!(candidates(&store)[0].in_use);
    assert_eq!(store.evict(&candidates(&store), true).count, 0);
    assert_eq!(reading.into_bytes().await.unwrap(), blob);
    assert!(!candidates(&store)[0].in_use);
    assert_eq!(store.evict(&candidates(&store), true).count, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_waits_for_eviction_and_then_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let small = LocalOptions {
        max_bytes: 8192,
        wake_bytes: 8192,
        ..options(dir.path())
    };
    let store = open_with(small).await;
    common::scanned(&store).await;
    let first = put(&store, &content(1, 8000)).await;
    let second = content(2, 8000);
    let digest = DigestFunction::Sha256.digest(&second);
    let mut upload = store.put(&digest, Blob::Bytes(second));
    assert!(is_waiting(upload.as_mut()));
    store.pressure().await;
    // The two folders are beyond the limit already.
    assert_eq!(store.usage().wanted, 16_384);
    assert_eq!(store.evict(&candidates(&store), false).count, 1);
    store.room_made(false);
    upload.await.unwrap();
    assert_eq!(store.find_missing(&[first, digest]).await.unwrap(), [first]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_for_which_nothing_can_be_evicted_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let small = LocalOptions {
        max_bytes: 8192,
        wake_bytes: 8192,
        ..options(dir.path())
    };
    let store = open_with(small).await;
    common::scanned(&store).await;
    put(&store, &content(1, 8000)).await;
    let second = content(2, 8000);
    let digest = DigestFunction::Sha256.digest(&second);
    let mut upload = store.put(&digest, Blob::Bytes(second));
    assert!(is_waiting(upload.as_mut()));
    store.room_made(true);
    assert!(matches!(upload.await, Err(Error::Full { .. })));
    let huge = content(3, 9000);
    let digest = DigestFunction::Sha256.digest(&huge);
    assert!(matches!(
        store.put(&digest, Blob::Bytes(huge)).await,
        Err(Error::Full { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_upload_of_most_of_the_cache_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let small = LocalOptions {
        max_bytes: 1 << 20,
        wake_bytes: 1 << 20,
        ..options(dir.path())
    };
    let store = open_with(small).await;
    common::scanned(&store).await;
    let blob = content(1, 1_000_000);
    let digest = DigestFunction::Sha256.digest(&blob);
    store
        .put(&digest, common::broken("u", 0, &[blob.slice(..900_000)]))
        .await
        .unwrap_err();
    let rest = common::whole("u", 900_000, &blob.slice(900_000..));
    store.put(&digest, rest).await.unwrap();
    assert_eq!(read(&store, &digest).await.unwrap(), blob);
    assert_eq!(store.usage().used, 1_003_520 + common::FOLDERS);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_resumed_beyond_the_kept_bytes_takes_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let small = LocalOptions {
        max_bytes: 1 << 20,
        wake_bytes: 1 << 20,
        ..options(dir.path())
    };
    let store = open_with(small).await;
    common::scanned(&store).await;
    put(&store, &content(1, 900_000)).await;
    let blob = content(2, 1_000_000);
    let digest = DigestFunction::Sha256.digest(&blob);
    let last = common::whole("u", 999_999, &blob.slice(999_999..));
    let refused = store.put(&digest, last).await;
    assert!(
        matches!(refused, Err(Error::UploadOffset { committed: 0, .. })),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn partial_uploads_count_and_are_removed_unless_in_progress() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let blob = content(1, 1_000_000);
    let digest = DigestFunction::Sha256.digest(&blob);
    let pieces = [blob.slice(..400_000)];
    store
        .put(&digest, common::broken("u", 0, &pieces))
        .await
        .unwrap_err();
    assert_eq!(store.usage().idle_uploads, 401_408);
    let hour = Duration::from_hours(1);
    assert_eq!(store.remove_idle_uploads(hour).unwrap().count, 0);

    let stream =
        futures::stream::iter([Ok(blob.slice(..300_000))]).chain(futures::stream::pending());
    let resume = gorego_storage::Resume {
        upload: gorego_storage::UploadId::new("u"),
        offset: 0,
    };
    let stalled = gorego_storage::BlobStream {
        chunks: Box::pin(stream),
        resume: Some(resume),
        verified: None,
    };
    let mut sending = store.put(&digest, Blob::Stream(stalled));
    tokio::select! {
        _ = &mut sending => unreachable!("it never ends"),
        () = common::until(|| store.usage().idle_uploads == 0) => {}
    }
    assert_eq!(store.remove_idle_uploads(Duration::ZERO).unwrap().count, 0);
    drop(sending);
    let remove = || store.remove_idle_uploads(Duration::ZERO).unwrap();
    common::until(|| remove().count == 1).await;
    common::until(|| store.usage().used == 0).await;
}
