//! Disks that fail, and stops at bad moments.

use std::{
    os::unix::fs::symlink,
    path::Path,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::common::{
    self, candidate, content, damage, open, open_with, options, path, put, read, scanned, until,
};
use gorego_storage::{ActionCache, BlobStore, DigestFunction, Error, Evictable as _};
use gorego_storage_local::LocalOptions;
use reapi::v2::ActionResult;

fn quarantined(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("quarantine")).unwrap().count()
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_folder_is_retried_and_the_others_are_indexed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let digest = put(&store, &content(1, 1000)).await;
    store.close().await.unwrap();
    drop(store);
    let broken = dir.path().join("cas/zz");
    symlink("zz", &broken).unwrap();

    let store = open(dir.path()).await;
    tokio::time::sleep(Duration::from_mins(10)).await;
    assert!(store.usage().scanning);
    assert_eq!(common::candidates(&store).len(), 1);
    assert_eq!(store.find_missing(&[digest]).await.unwrap(), []);
    let new = put(&store, &content(2, 1000)).await;
    std::fs::remove_file(&broken).unwrap();
    tokio::time::sleep(Duration::from_mins(2)).await;
    assert!(!store.usage().scanning);
    assert_eq!(store.usage().used, 2 * (4096 + common::FOLDERS));
    assert_eq!(store.find_missing(&[digest, new]).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_outlives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let digest = put(&store, &content(1, 1000)).await;
    store.find_missing(&[digest]).await.unwrap();
    store.close().await.unwrap();
    drop(store);

    let store = open(dir.path()).await;
    scanned(&store).await;
    let leased = candidate(&store, 4096);
    assert!(leased.leased);
    assert_eq!(store.evict(&[leased], false).count, 0);
    drop(store);

    let hour = 60 * 60 * 1000;
    common::set_atime(&path(dir.path(), &digest), common::now_ms() - 2 * hour);
    let store = open(dir.path()).await;
    scanned(&store).await;
    assert!(!candidate(&store, 4096).leased, "it has ended since");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_file_is_kept_as_long_as_a_partial_upload() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let digest = put(&store, &content(1, 1000)).await;
    scanned(&store).await;
    drop(store);
    let file = path(dir.path(), &digest);
    damage(&file);
    // Hours ago by the file's own time, but in doubt all the same.
    std::fs::remove_file(dir.path().join("state")).unwrap();
    let old = SystemTime::now() - Duration::from_hours(48);
    let times = std::fs::FileTimes::new().set_modified(old);
    let opened = std::fs::File::options().write(true).open(&file).unwrap();
    opened.set_times(times).unwrap();

    let store = open(dir.path()).await;
    assert_eq!(store.find_missing(&[digest]).await.unwrap(), [digest]);
    let day = Duration::from_hours(24);
    assert_eq!(store.remove_idle_uploads(day).unwrap().count, 0);
    assert_eq!(quarantined(dir.path()), 1);
    let now = Duration::ZERO;
    assert_eq!(store.remove_idle_uploads(now).unwrap().count, 1);
    assert_eq!(
        (quarantined(dir.path()), store.usage().idle_uploads),
        (0, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_store_refuses_puts() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    scanned(&store).await;
    let digest = put(&store, &content(1, 1000)).await;
    store.close().await.unwrap();
    for len in [1000, 1_000_000] {
        let late = content(2, len);
        let name = DigestFunction::Sha256.digest(&late);
        let put = BlobStore::put(&*store, &name, common::whole("u", 0, &late)).await;
        assert!(matches!(put, Err(Error::Unavailable(_))), "{put:?}");
    }
    let result = ActionCache::put(&*store, "", &digest, ActionResult::default()).await;
    assert!(matches!(result, Err(Error::Unavailable(_))), "{result:?}");
    assert_eq!(read(&store, &digest).await.unwrap(), content(1, 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_kills_do_not_inflate_the_usage() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..50 {
        let store = open(dir.path()).await;
        put(&store, &content(seed, 1000)).await;
        let used = store.usage().used;
        assert!(used < 1_000_000, "{used} after {seed} restarts");
    }
}

#[tokio::test(start_paused = true)]
async fn once_all_blobs_are_verified_the_next_unclean_stop_leaves_none_unverified() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    put(&store, &content(1, 1000)).await;
    drop(store);
    let synced = || {
        let state = std::fs::read_to_string(dir.path().join("state")).unwrap();
        let value = state
            .lines()
            .find_map(|line| line.strip_prefix("synced_ms="));
        value.unwrap().parse::<u64>().unwrap()
    };
    let before = synced();
    let later = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_millis(50);
    until(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap() > later).await;
    let store = open(dir.path()).await;
    tokio::time::sleep(Duration::from_mins(3)).await;
    drop(store);
    assert!(synced() > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn scrubbing_finds_corrupt_files() {
    let dir = tempfile::tempdir().unwrap();
    let scrubbed = LocalOptions {
        scrub_period: Some(Duration::from_millis(1)),
        ..options(dir.path())
    };
    let store = open_with(scrubbed).await;
    let bad = put(&store, &content(1, 1000)).await;
    let good = put(&store, &content(2, 300_000)).await;
    let action = DigestFunction::Sha256.digest(b"action");
    common::put_result(&store, "i", &action, 1).await;
    damage(&path(dir.path(), &bad));
    damage(&common::find_file(&dir.path().join("ac")).unwrap());
    let counters = store.counters();
    until(|| counters.corrupt.load(Relaxed) == 2).await;
    assert_eq!(store.find_missing(&[bad]).await.unwrap(), [bad]);
    assert_eq!(common::get_result(&store, "i", &action).await, None);
    assert_eq!(quarantined(dir.path()), 2);
    assert_eq!(read(&store, &good).await.unwrap(), content(2, 300_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_blob_that_cannot_be_quarantined_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let digest = put(&store, &content(1, 1000)).await;
    scanned(&store).await;
    let file = path(dir.path(), &digest);
    damage(&file);
    let quarantine = dir.path().join("quarantine");
    // The store makes the folder anew when it finds it missing.
    until(|| {
        let _ = std::fs::remove_dir(&quarantine);
        std::fs::write(&quarantine, "in the way").is_ok()
    })
    .await;
    // Only now has the store a reason to look at the blob.
    store.pin_one(&digest).await.unwrap().unwrap().unreadable();
    assert_eq!(store.find_missing(&[digest]).await.unwrap(), [digest]);
    assert!(!file.exists());
    store.close().await.unwrap();
    drop(store);
    let store = open(dir.path()).await;
    assert_eq!(store.find_missing(&[digest]).await.unwrap(), [digest]);
}

#[tokio::test(start_paused = true)]
async fn a_partial_upload_counts_once_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let small = LocalOptions {
        max_bytes: 8 << 20,
        wake_bytes: 8 << 20,
        ..options(dir.path())
    };
    let store = open_with(small.clone()).await;
    let blob = content(1, 2_000_000);
    let digest = DigestFunction::Sha256.digest(&blob);
    let broken = common::broken("u", 0, &[blob.slice(..1_500_000)]);
    BlobStore::put(&*store, &digest, broken).await.unwrap_err();
    let used = store.usage().used;
    tokio::time::sleep(Duration::from_secs(5)).await;
    drop(store);
    let store = open_with(small).await;
    assert_eq!(store.usage().used, used);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_ends_while_its_kept_bytes_are_hashed_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    scanned(&store).await;
    let blob = content(1, 40_000_000);
    let digest = DigestFunction::Sha256.digest(&blob);
    let broken = common::broken("u", 0, &[blob.slice(..39_000_000)]);
    BlobStore::put(&*store, &digest, broken).await.unwrap_err();

    let rest = common::whole("u", 39_000_000, &blob.slice(39_000_000..));
    let (resumed, other) = tokio::join!(
        BlobStore::put(&*store, &digest, rest),
        BlobStore::put(&*store, &digest, common::whole("v", 0, &blob)),
    );
    resumed.unwrap();
    other.unwrap();
    let whole = 40_001_536 + common::FOLDERS;
    until(|| {
        let mut left = std::fs::read_dir(dir.path().join("uploads")).unwrap();
        let usage = store.usage();
        (usage.used, usage.idle_uploads) == (whole, 0) && left.next().is_none()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_janitor_is_woken_every_two_seconds_since_other_programs_fill_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for _ in 0..10 {
        let called = tokio::time::timeout(Duration::from_secs(3), store.pressure());
        called.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_use_in_the_future_counts_as_now() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let digest = put(&store, &content(1, 1000)).await;
    store.close().await.unwrap();
    drop(store);
    let year = 365 * 24 * 60 * 60 * 1000;
    common::set_atime(&path(dir.path(), &digest), common::now_ms() + year);
    let store = open(dir.path()).await;
    scanned(&store).await;
    assert!(candidate(&store, 4096).last_use <= common::now_ms());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_in_the_wrong_folder_is_left_alone_and_not_reported() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let digest = put(&store, &content(1, 1000)).await;
    store.close().await.unwrap();
    drop(store);
    let wrong = dir.path().join("cas/00/00").join(digest.hex());
    std::fs::create_dir_all(wrong.parent().unwrap()).unwrap();
    std::fs::rename(path(dir.path(), &digest), &wrong).unwrap();
    let store = open(dir.path()).await;
    scanned(&store).await;
    assert_eq!(store.find_missing(&[digest]).await.unwrap(), [digest]);
    assert!(wrong.exists());
}
