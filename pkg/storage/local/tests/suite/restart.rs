//! Stores that open the directory of an earlier run.

use crate::common::{
    self, content, damage, open, open_with, options, path, put, read, scanned, until, whole,
};
use bytes::Bytes;
use gorego_storage::{
    BlobStore as _, DigestFunction, Error, Evictable as _, Put, UploadId, Uploads as _,
};
use gorego_storage_local::{LocalOptions, LocalStore, OpenFailure};

#[tokio::test(flavor = "multi_thread")]
async fn blobs_and_results_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (small, large) = (content(1, 1000), content(2, 3_000_000));
    let action = DigestFunction::Sha256.digest(b"action");
    let store = open(dir.path()).await;
    let digests = [put(&store, &small).await, put(&store, &large).await];
    common::put_result(&store, "main", &action, 7).await;
    let used = store.usage().used;
    store.close().await.unwrap();
    drop(store);

    let store = open(dir.path()).await;
    // Also before the scan has reached anything.
    assert_eq!(store.find_missing(&digests).await.unwrap(), []);
    assert_eq!(read(&store, &digests[1]).await.unwrap(), large);
    assert_eq!(common::get_result(&store, "main", &action).await, Some(7));
    assert_eq!(common::get_result(&store, "other", &action).await, None);
    scanned(&store).await;
    assert_eq!(store.find_missing(&digests).await.unwrap(), []);
    assert_eq!(store.usage().used, used);
}

// On one thread, so that the scan has not ended when the lookup begins.
#[tokio::test]
async fn many_blobs_are_looked_up_before_the_scan_has_reached_them() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = |kind: u8| (0..300_u16).map(move |n| Bytes::from(format!("{kind} {n}")));
    let named = |content: Bytes| (DigestFunction::Sha256.digest(&content), content);
    let store = open(dir.path()).await;
    for put in store.put_batch(blobs(1).map(named).collect()).await {
        put.unwrap();
    }
    store.close().await.unwrap();
    drop(store);

    let present = blobs(1).map(|content| named(content).0);
    let missing: Vec<_> = blobs(2).map(|content| named(content).0).collect();
    let all: Vec<_> = present.zip(&missing).flat_map(|(a, b)| [a, *b]).collect();
    let store = open(dir.path()).await;
    assert!(store.usage().scanning);
    assert_eq!(store.find_missing(&all).await.unwrap(), missing);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_unclean_stop_a_corrupt_blob_is_neither_reported_nor_served() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let (small, large) = (content(1, 1000), content(2, 3_000_000));
    let whole = put(&store, &content(3, 500)).await;
    let digests = [put(&store, &small).await, put(&store, &large).await];
    scanned(&store).await;
    drop(store);
    for digest in &digests {
        damage(&path(dir.path(), digest));
    }

    let store = open(dir.path()).await;
    assert_eq!(
        store.find_missing(&[digests[0], whole]).await.unwrap(),
        [digests[0]]
    );
    assert!(matches!(
        read(&store, &digests[1]).await,
        Err(Error::NotFound(_))
    ));
    assert_eq!(read(&store, &whole).await.unwrap(), content(3, 500));
    let quarantined = std::fs::read_dir(dir.path().join("quarantine"))
        .unwrap()
        .count();
    assert_eq!(quarantined, 2);
    // It can be uploaded anew.
    put(&store, &small).await;
    assert_eq!(read(&store, &digests[0]).await.unwrap(), small);
}

#[tokio::test(flavor = "multi_thread")]
async fn unverified_blobs_are_verified_in_the_background() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let digests = [
        put(&store, &content(1, 1000)).await,
        put(&store, &content(2, 1000)).await,
    ];
    scanned(&store).await;
    drop(store);
    damage(&path(dir.path(), &digests[0]));

    let store = open(dir.path()).await;
    let counters = store.counters();
    until(|| counters.corrupt.load(std::sync::atomic::Ordering::Relaxed) == 1).await;
    assert!(!path(dir.path(), &digests[0]).exists() && path(dir.path(), &digests[1]).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_whose_file_changed_size_is_missing_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let torn = put(&store, &content(1, 10_000)).await;
    let empty = put(&store, &content(2, 10_000)).await;
    store.close().await.unwrap();
    drop(store);
    for (digest, len) in [(&torn, 5000), (&empty, 0)] {
        let file = path(dir.path(), digest);
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, vec![0; len]).unwrap();
    }

    let store = open(dir.path()).await;
    scanned(&store).await;
    assert_eq!(
        store.find_missing(&[torn, empty]).await.unwrap(),
        [torn, empty]
    );
    assert!(!path(dir.path(), &empty).exists());
    put(&store, &content(1, 10_000)).await;
    assert_eq!(read(&store, &torn).await.unwrap(), content(1, 10_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_upload_resumes_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let blob = content(1, 2_000_000);
    let digest = DigestFunction::Sha256.digest(&blob);
    let store = open(dir.path()).await;
    let pieces = [blob.slice(..700_000), blob.slice(700_000..1_000_000)];
    store
        .put(&digest, common::broken("u", 0, &pieces))
        .await
        .unwrap_err();
    assert_eq!(
        store.committed(&digest, &UploadId::new("u")).await.unwrap(),
        1_000_000
    );
    drop(store);

    let store = open(dir.path()).await;
    assert_eq!(
        store.committed(&digest, &UploadId::new("u")).await.unwrap(),
        1_000_000
    );
    assert_eq!(store.find_missing(&[digest]).await.unwrap(), [digest]);
    let rest = whole("u", 1_000_000, &blob.slice(1_000_000..));
    assert_eq!(store.put(&digest, rest).await.unwrap(), Put::Stored);
    assert_eq!(read(&store, &digest).await.unwrap(), blob);
    assert_eq!(store.usage().idle_uploads, 0);
    assert_eq!(
        std::fs::read_dir(dir.path().join("uploads"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_action_result_is_a_miss_and_is_quarantined() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let action = DigestFunction::Sha256.digest(b"action");
    common::put_result(&store, "", &action, 1).await;
    let file = common::find_file(&dir.path().join("ac")).unwrap();
    damage(&file);
    assert_eq!(common::get_result(&store, "", &action).await, None);
    assert!(!file.exists());
    common::put_result(&store, "", &action, 2).await;
    assert_eq!(common::get_result(&store, "", &action).await, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_store_on_the_same_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _store = open(dir.path()).await;
    let second = LocalStore::open(options(dir.path())).await;
    let OpenFailure::InUse(holder) = second.unwrap_err().why else {
        panic!("opened twice")
    };
    assert_eq!(holder, std::process::id().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_layout_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("VERSION"), "999\n").unwrap();
    let opened = LocalStore::open(options(dir.path())).await;
    let error = opened.unwrap_err();
    assert!(matches!(error.why, OpenFailure::Version(_)), "{error}");
    assert!(!dir.path().join("cas").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_program_is_refused_untouched() {
    for folder in ["tmp", "uploads", "quarantine"] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(folder).join("thesis.txt");
        std::fs::create_dir(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "mine").unwrap();
        let opened = LocalStore::open(options(dir.path())).await;
        let error = opened.unwrap_err();
        assert!(matches!(error.why, OpenFailure::Foreign(_)), "{error}");
        assert!(file.exists() && !dir.path().join("VERSION").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_directory_counts_as_full_before_it_was_scanned() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for seed in 0..50 {
        put(&store, &content(seed, 100_000)).await;
    }
    scanned(&store).await;
    store.close().await.unwrap();
    let used = store.usage().used;
    drop(store);
    let tight = LocalOptions {
        max_bytes: used,
        wake_bytes: used,
        ..options(dir.path())
    };
    let store = open_with(tight).await;
    // The usage stays constant during the scan, except that the file being scanned counts twice.
    let now = store.usage().used;
    let at_once = 102_400 + 4 * common::FOLDERS;
    assert!((used..=used + at_once).contains(&now), "{now} of {used}");
    scanned(&store).await;
    assert_eq!(store.usage().used, used);
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_files_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let digest = put(&store, &content(1, 10)).await;
    let foreign = path(dir.path(), &digest).with_file_name("notes.txt");
    std::fs::write(&foreign, "mine").unwrap();
    store.close().await.unwrap();
    drop(store);
    let store = open(dir.path()).await;
    scanned(&store).await;
    assert_eq!(store.usage().used, 4096 + common::FOLDERS);
    assert!(foreign.exists());
}
