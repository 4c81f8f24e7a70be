//! The janitor and the local store together: uploads never stop, and the limit holds.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gorego_janitor::{Counters, Janitor, Marks, Options};
use gorego_storage::{
    Blob, BlobStore as _, BlobStream, Digest, DigestFunction, Error, Evictable as _, LocalOptions,
    LocalStore, Put, Resume, SyncMode, UploadId, Uploads as _,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const LIMIT: u64 = 4 * 1024 * 1024;
const MARKS: Marks = Marks {
    high: 0.95,
    low: 0.85,
    min_free: 0,
};

/// A store with a janitor at work until the set is dropped.
async fn kept_tidy(dir: &Path) -> (Arc<LocalStore>, Arc<Counters>, JoinSet<()>) {
    let options = LocalOptions {
        dir: dir.to_owned(),
        max_bytes: LIMIT,
        wake_bytes: MARKS.high_bytes(LIMIT),
        lease: Duration::from_hours(3),
        force_update_atime: false,
        sync: SyncMode::None,
        scrub_period: None,
    };
    let store = Arc::new(LocalStore::open(options).await.unwrap());
    let options = Options {
        marks: MARKS,
        interval: Duration::from_mins(1),
        upload_expiry: Duration::from_hours(24),
    };
    let janitor = Janitor::new(Arc::clone(&store) as _, options);
    let counters = janitor.counters();
    let mut tasks = JoinSet::new();
    tasks.spawn(janitor.run(CancellationToken::new()));
    (store, counters, tasks)
}

async fn put(store: &LocalStore, number: u64, len: usize) -> Digest {
    let mut content = vec![0; len];
    let (head, _) = content.split_at_mut(size_of::<u64>());
    head.copy_from_slice(&number.to_le_bytes());
    let digest = DigestFunction::Sha256.digest(&content);
    let put = store.put(&digest, Blob::Bytes(Bytes::from(content))).await;
    assert!(matches!(put, Ok(Put::Stored)), "blob {number}: {put:?}");
    digest
}

/// Waits until the janitor is done.
async fn settled(store: &LocalStore) {
    let low_enough = async {
        while store.usage().used > MARKS.high_bytes(LIMIT) {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_mins(1), low_enough).await;
    assert!(waited.is_ok(), "{:?}", store.usage());
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_without_pause_all_succeed_and_stay_below_the_limit() {
    const UPLOADERS: u64 = 8;
    const EACH: u64 = 250;
    const SIZE: u64 = 16 * 1024;
    let dir = tempfile::tempdir().unwrap();
    let (store, counters, _janitor) = kept_tidy(dir.path()).await;
    let mut uploaders = JoinSet::new();
    for uploader in 0..UPLOADERS {
        let store = Arc::clone(&store);
        uploaders.spawn(async move {
            for number in 0..EACH {
                let len = usize::try_from(SIZE).unwrap();
                put(&store, uploader * EACH + number, len).await;
                // An upload about to end may count twice.
                let used = store.usage().used;
                assert!(used <= LIMIT + UPLOADERS * SIZE, "{used} bytes are used");
            }
        });
    }
    uploaders.join_all().await;
    let mut last = Vec::new();
    for number in 0..20 {
        last.push(put(&store, UPLOADERS * EACH + number, 16 * 1024).await);
    }
    settled(&store).await;
    assert!(counters.evicted.load(Relaxed) >= UPLOADERS * EACH - LIMIT / SIZE);
    assert_eq!(counters.leases_broken.load(Relaxed), 0);
    assert_eq!(
        store.find_missing(&last).await.unwrap(),
        [],
        "the newest stay"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_never_keep_an_upload_out() {
    let dir = tempfile::tempdir().unwrap();
    let (store, counters, _janitor) = kept_tidy(dir.path()).await;
    for number in 0..1000 {
        let digest = put(&store, number, 16 * 1024).await;
        assert_eq!(store.find_missing(&[digest]).await.unwrap(), []);
    }
    assert!(counters.leases_broken.load(Relaxed) > 0);
    // As large as the store: everything has to go.
    put(&store, 1000, usize::try_from(LIMIT).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_upload_outlives_any_number_of_blobs_that_could_go_instead() {
    let dir = tempfile::tempdir().unwrap();
    let (store, counters, _janitor) = kept_tidy(dir.path()).await;
    let content = Bytes::from(vec![1; 600_000]);
    let digest = DigestFunction::Sha256.digest(&content);
    let upload = UploadId::new("u");
    let broken = stream::iter([
        Ok(content.slice(..500_000)),
        Err(Error::Unavailable("the client went away".into())),
    ]);
    let broken = Blob::Stream(BlobStream {
        chunks: broken.boxed(),
        resume: Some(Resume {
            upload: upload.clone(),
            offset: 0,
        }),
        verified: None,
    });
    store.put(&digest, broken).await.unwrap_err();
    let mut uploaders = JoinSet::new();
    for uploader in 0..4 {
        let store = Arc::clone(&store);
        uploaders.spawn(async move {
            for number in 0..300 {
                put(&store, uploader * 1000 + number, 16 * 1024).await;
            }
        });
    }
    uploaders.join_all().await;
    assert!(counters.evicted.load(Relaxed) > 800);
    assert_eq!(store.committed(&digest, &upload).await.unwrap(), 500_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_somebody_else_removed_do_not_stop_eviction() {
    let dir = tempfile::tempdir().unwrap();
    let (store, counters, _janitor) = kept_tidy(dir.path()).await;
    for number in 0..100 {
        let digest = put(&store, number, 16 * 1024).await;
        if number % 2 == 0 {
            let hex = digest.hex();
            let file = ["cas", &hex[..2], &hex[2..4], &hex]
                .iter()
                .collect::<PathBuf>();
            std::fs::remove_file(dir.path().join(file)).unwrap();
        }
    }
    for number in 100..500 {
        put(&store, number, 16 * 1024).await;
    }
    settled(&store).await;
    assert!(counters.evicted.load(Relaxed) > 100);
}
