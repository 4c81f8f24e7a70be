//! Tests of the janitor with the local store.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gorego_janitor::{Janitor, Marks, Options, Totals};
use gorego_storage::{
    Blob, BlobStore as _, BlobStream, Digest, DigestFunction, Error, Evictable as _, Put, Resume,
    UploadId, Uploads as _,
};
use gorego_storage_local::{LocalOptions, LocalStore, SyncMode};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

const LIMIT: u64 = 4 * 1024 * 1024;
const MARKS: Marks = Marks {
    high: 0.95,
    low: 0.85,
    min_free: 0,
};

/// Opens a store and starts its janitor, which runs until the set is dropped.
async fn start(dir: &Path) -> (Arc<LocalStore>, watch::Receiver<Totals>, JoinSet<()>) {
    start_with(dir, Duration::ZERO).await
}

async fn start_with(
    dir: &Path,
    upload_lease: Duration,
) -> (Arc<LocalStore>, watch::Receiver<Totals>, JoinSet<()>) {
    let options = LocalOptions {
        dir: dir.to_owned(),
        max_bytes: LIMIT,
        wake_bytes: MARKS.high_bytes(LIMIT),
        lease: Duration::from_hours(3),
        upload_lease,
        force_update_atime: false,
        sync: SyncMode::None,
        scrub_period: None,
        pieces: None,
    };
    let store = Arc::new(LocalStore::open(options).await.unwrap());
    let options = Options {
        marks: MARKS,
        interval: Duration::from_mins(1),
        upload_expiry: Duration::from_hours(24),
    };
    let janitor = Janitor::new(Arc::clone(&store) as _, options);
    let totals = janitor.totals();
    let mut tasks = JoinSet::new();
    tasks.spawn(janitor.run(CancellationToken::new()));
    (store, totals, tasks)
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

/// Waits until the condition is true. The usage falls before the totals rise: a test waits for
/// both.
async fn until(store: &LocalStore, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_mins(1), waiting).await;
    assert!(waited.is_ok(), "{:?}", store.usage());
}

/// Waits until the usage is below the high mark and at least `evicted` entries are counted.
async fn until_evicted(store: &LocalStore, totals: &watch::Receiver<Totals>, evicted: u64) {
    let high = MARKS.high_bytes(LIMIT);
    until(store, || {
        store.usage().used <= high && totals.borrow().evicted.count >= evicted
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn continuous_uploads_succeed_and_stay_below_the_limit() {
    const UPLOADERS: u64 = 8;
    const EACH: u64 = 250;
    const SIZE: u64 = 16 * 1024;
    let dir = tempfile::tempdir().unwrap();
    let (store, totals, _janitor) = start(dir.path()).await;
    let mut uploaders = JoinSet::new();
    for uploader in 0..UPLOADERS {
        let store = Arc::clone(&store);
        uploaders.spawn(async move {
            for number in 0..EACH {
                let len = usize::try_from(SIZE).unwrap();
                put(&store, uploader * EACH + number, len).await;
                // An upload that is being published may count twice.
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
    until_evicted(&store, &totals, UPLOADERS * EACH - LIMIT / SIZE).await;
    assert_eq!(totals.borrow().leases_broken, 0);
    assert_eq!(
        store.find_missing(&last).await.unwrap(),
        [],
        "the newest stay"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_succeed_when_leases_hold_the_whole_cache() {
    let dir = tempfile::tempdir().unwrap();
    let (store, totals, _janitor) = start(dir.path()).await;
    for number in 0..1000 {
        let digest = put(&store, number, 16 * 1024).await;
        assert_eq!(store.find_missing(&[digest]).await.unwrap(), []);
    }
    until(&store, || totals.borrow().leases_broken > 0).await;
}

/// Returns an upload that fails after some of its bytes.
fn interrupted(upload: &str, arrived: &Bytes) -> Blob {
    let chunks = stream::iter([
        Ok(arrived.clone()),
        Err(Error::Unavailable("the client went away".into())),
    ]);
    Blob::Stream(BlobStream {
        chunks: chunks.boxed(),
        resume: Some(Resume {
            upload: UploadId::new(upload),
            offset: 0,
        }),
        verified: None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_larger_than_the_cache_is_refused_without_evicting() {
    let dir = tempfile::tempdir().unwrap();
    let (store, totals, _janitor) = start(dir.path()).await;
    let mut kept = Vec::new();
    for number in 0..100 {
        kept.push(put(&store, number, 16 * 1024).await);
    }
    let content = Bytes::from(vec![1; 1 << 20]);
    let digest = DigestFunction::Sha256.digest(&content);
    let too_large = Digest::from_hash(DigestFunction::Sha256, digest.hash(), LIMIT + 1);
    // Refused at the start: the content never arrives.
    let chunks = stream::pending().boxed();
    let blob = Blob::Stream(BlobStream {
        chunks,
        resume: None,
        verified: None,
    });
    let refused = store.put(&too_large.unwrap(), blob).await;
    let Err(Error::Full { why, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        why.contains(&LIMIT.to_string()) && why.contains("max_size_gb"),
        "{why}"
    );
    assert_eq!(totals.borrow().evicted.count, 0);
    assert_eq!(store.find_missing(&kept).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_upload_breaks_leases_of_at_most_a_tenth_of_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, _janitor) = start(dir.path()).await;
    let mut leased = Vec::new();
    for number in 0..100 {
        let digest = put(&store, number, 16 * 1024).await;
        assert_eq!(store.find_missing(&[digest]).await.unwrap(), []);
        leased.push(digest);
    }
    // It would fit, but only by breaking most of the leases.
    let content = Bytes::from(vec![1; 3_000_000]);
    let digest = DigestFunction::Sha256.digest(&content);
    let pieces: Vec<_> = content
        .chunks(100_000)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    let blob = Blob::Stream(BlobStream {
        chunks: stream::iter(pieces).boxed(),
        resume: None,
        verified: None,
    });
    let refused = store.put(&digest, blob).await;
    assert!(matches!(refused, Err(Error::Full { .. })), "{refused:?}");
    let lost = store.find_missing(&leased).await.unwrap().len() as u64;
    assert!(
        lost * 16 * 1024 <= LIMIT / 10,
        "{lost} leased blobs are gone"
    );
    // An upload that needs few leases is accepted.
    put(&store, 1000, 1_950_000).await;
    let lost = store.find_missing(&leased).await.unwrap().len() as u64;
    assert!(
        (1..=LIMIT / 10 / 16 / 1024).contains(&lost),
        "{lost} leased blobs are gone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fresh_uploads_stay_while_old_leased_blobs_are_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let (store, totals, _janitor) = start_with(dir.path(), Duration::from_mins(10)).await;
    let mut old = Vec::new();
    for number in 0..110 {
        old.push(put(&store, number, 16 * 1024).await);
    }
    assert_eq!(store.find_missing(&old).await.unwrap(), []);
    // Recency is counted in milliseconds: uploads of the same one are as old as the leases.
    let leased = SystemTime::now();
    while leased.elapsed().unwrap() < Duration::from_millis(2) {
        tokio::task::yield_now().await;
    }
    let mut fresh = Vec::new();
    for number in 1000..1090 {
        fresh.push(put(&store, number, 16 * 1024).await);
    }
    until_evicted(&store, &totals, 1).await;
    // Looked up first: a lookup of old ones would make them the younger ones, and evictions go on.
    assert_eq!(store.find_missing(&fresh).await.unwrap(), []);
    let lost = store.find_missing(&old).await.unwrap();
    assert!(!lost.is_empty(), "there is no room for all of them");
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_uploads_do_not_displace_blobs() {
    const SIZE: usize = 64 * 1024;
    let dir = tempfile::tempdir().unwrap();
    let (store, totals, _janitor) = start(dir.path()).await;
    let mut kept = Vec::new();
    for number in 0..100 {
        kept.push(put(&store, number, 16 * 1024).await);
    }
    for number in 0..100_u8 {
        let content = Bytes::from(vec![number; 2 * SIZE]);
        let digest = DigestFunction::Sha256.digest(&content);
        let broken = interrupted(&number.to_string(), &content.slice(..SIZE));
        store.put(&digest, broken).await.unwrap_err();
        // A partial upload without room is dropped at once, which the janitor would not count.
        until(&store, || {
            store.usage().idle_uploads <= LIMIT / 10 + SIZE as u64
        })
        .await;
    }
    until(&store, || totals.borrow().uploads_dropped.count >= 90).await;
    assert_eq!(store.find_missing(&kept).await.unwrap(), []);
    // The newest can be resumed.
    let newest = DigestFunction::Sha256.digest(&vec![99; 2 * SIZE]);
    let committed = store
        .committed(&newest, &UploadId::new("99"))
        .await
        .unwrap();
    assert_eq!(committed, SIZE as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_partial_upload_is_evicted_in_its_turn() {
    let dir = tempfile::tempdir().unwrap();
    let (store, totals, _janitor) = start(dir.path()).await;
    let content = Bytes::from(vec![1; 600_000]);
    let digest = DigestFunction::Sha256.digest(&content);
    let upload = UploadId::new("u");
    let broken = interrupted("u", &content.slice(..500_000));
    store.put(&digest, broken).await.unwrap_err();
    for number in 0..100 {
        put(&store, number, 16 * 1024).await;
    }
    assert_eq!(store.committed(&digest, &upload).await.unwrap(), 500_000);
    for number in 100..300 {
        put(&store, number, 16 * 1024).await;
    }
    until_evicted(&store, &totals, 1).await;
    assert_eq!(store.committed(&digest, &upload).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_removed_from_outside_do_not_stop_eviction() {
    let dir = tempfile::tempdir().unwrap();
    let (store, totals, _janitor) = start(dir.path()).await;
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
    until_evicted(&store, &totals, 101).await;
}
