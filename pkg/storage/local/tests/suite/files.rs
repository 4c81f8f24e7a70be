//! Files of blobs on the disk, and reads after another program changed them.

use std::os::unix::fs::PermissionsExt as _;

use crate::common::{
    self, atime_ms, content, open, open_with, options, path, put, read, scanned, set_atime,
};
use bytes::Bytes;
use gorego_limits::Budget;
use gorego_storage::{Blob, BlobStore as _, DigestFunction, Error, Evictable as _, Put};
use gorego_storage_local::{LocalOptions, SyncMode};

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_a_read_only_executable_file_under_its_hash() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let (small, large) = (content(1, 10), content(2, 2_000_000));
    for blob in [small, large] {
        let digest = DigestFunction::Sha256.digest(&blob);
        store
            .put(&digest, common::whole("u", 0, &blob))
            .await
            .unwrap();
        let file = path(dir.path(), &digest);
        assert_eq!(std::fs::read(&file).unwrap(), blob);
        assert_eq!(
            std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
            0o555
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_file_costs_at_most_one_failed_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    scanned(&store).await;
    for len in [1000, 2_000_000] {
        let blob = content(1, len);
        let digest = put(&store, &blob).await;
        std::fs::remove_file(path(dir.path(), &digest)).unwrap();
        assert!(matches!(
            read(&store, &digest).await,
            Err(Error::NotFound(_))
        ));
        assert_eq!(store.find_missing(&[digest]).await.unwrap(), [digest]);
        assert_eq!(store.usage().used, 0);
        put(&store, &blob).await;
        assert_eq!(read(&store, &digest).await.unwrap(), blob);
        std::fs::remove_file(path(dir.path(), &digest)).unwrap();
        read(&store, &digest).await.unwrap_err();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_another_size_is_not_served_and_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    // Waits for the scan, which would remove a folder that is empty between two files.
    scanned(&store).await;
    for (len, wrong) in [
        (1000, 999),
        (1000, 1001),
        (2_000_000, 1),
        (2_000_000, 2_000_001),
    ] {
        let blob = content(1, len);
        let digest = put(&store, &blob).await;
        let file = path(dir.path(), &digest);
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, vec![0; wrong]).unwrap();
        assert!(
            matches!(read(&store, &digest).await, Err(Error::NotFound(_))),
            "{len} {wrong}"
        );
        assert!(!file.exists());
        assert_eq!(store.find_missing(&[digest]).await.unwrap(), [digest]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn last_use_survives_a_restart_as_access_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let digest = put(&store, &content(1, 1000)).await;
    let file = path(dir.path(), &digest);
    set_atime(&file, 1_600_000_000_000);
    read(&store, &digest).await.unwrap();
    // Reading is no reason to write to the disk.
    assert_eq!(atime_ms(&file), 1_600_000_000_000);
    store.close().await.unwrap();
    assert!(atime_ms(&file) > 1_700_000_000_000);
    drop(store);

    set_atime(&file, 1_650_000_000_000);
    let store = open(dir.path()).await;
    scanned(&store).await;
    assert_eq!(common::candidate(&store, 4096).last_use, 1_650_000_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_force_update_atime_each_hit_is_written_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let forced = LocalOptions {
        force_update_atime: true,
        ..options(dir.path())
    };
    let store = open_with(forced).await;
    for len in [1000, 2_000_000] {
        let digest = put(&store, &content(1, len)).await;
        let file = path(dir.path(), &digest);
        set_atime(&file, 1_600_000_000_000);
        read(&store, &digest).await.unwrap();
        assert!(atime_ms(&file) > 1_700_000_000_000);
        set_atime(&file, 1_600_000_000_000);
        store.find_missing(&[digest]).await.unwrap();
        assert!(atime_ms(&file) > 1_700_000_000_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sync_mode_stores() {
    for sync in [SyncMode::None, SyncMode::Data, SyncMode::Full] {
        let dir = tempfile::tempdir().unwrap();
        let store = open_with(LocalOptions {
            sync,
            ..options(dir.path())
        })
        .await;
        let blob = content(1, 700_000);
        let digest = DigestFunction::Sha256.digest(&blob);
        let stored = store
            .put(&digest, common::whole("u", 0, &blob))
            .await
            .unwrap();
        assert_eq!(
            (stored, read(&store, &digest).await.unwrap()),
            (Put::Stored, blob)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_content_leaves_nothing_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    scanned(&store).await;
    for len in [1000, 2_000_000] {
        let blob = content(1, len);
        let digest = DigestFunction::Sha256.digest(&content(2, len));
        let error = store
            .put(&digest, common::whole("u", 0, &blob))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        let longer = Bytes::from([&blob[..], b"x"].concat());
        let error = store
            .put(&digest, common::whole("u", 0, &longer))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    }
    for folder in ["cas", "tmp", "uploads"] {
        assert_eq!(
            std::fs::read_dir(dir.path().join(folder)).unwrap().count(),
            0,
            "{folder}"
        );
    }
    assert_eq!(store.usage().used, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_one_piece_is_read_at_once_while_memory_lasts() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Budget::memory("tests", 4 << 20);
    let store = open_with(LocalOptions {
        pieces: Some(memory.clone()),
        ..options(dir.path())
    })
    .await;
    let blob = content(1, 128 << 10);
    let digest = put(&store, &blob).await;
    let free = || memory.share(u64::MAX, 1).bytes();
    let mut held = Vec::new();
    while let Blob::Bytes(read) = store.get(&digest, 0).await.unwrap() {
        assert_eq!(read, blob);
        held.push(read);
    }
    assert_eq!(free(), (4 << 20) - (held.len() as u64) * (128 << 10));
    assert!(held.len() > 8, "{} at once", held.len());
    // Where memory is short, it is a file to read in pieces.
    assert_eq!(read(&store, &digest).await.unwrap(), blob);
    drop(held);
    assert_eq!(free(), 4 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_entry_names_its_blob_where_no_link_can_be_made() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let [linked, other, gone] = [1, 2, 3].map(|seed| content(seed, 1000));
    let linked = put(&store, &linked).await;
    let other = put(&store, &other).await;
    // No file system makes a hard link to a folder.
    let file = path(dir.path(), &other);
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    for (name, digest) in [("1", linked), ("2", other)] {
        store.outbox_link(name.to_owned(), digest).await.unwrap();
    }
    let gone = DigestFunction::Sha256.digest(&gone);
    store.outbox_link("3".to_owned(), gone).await.unwrap_err();
    assert_eq!(store.outbox_names().await.unwrap(), ["1", "2"]);
    let size = |name| {
        std::fs::metadata(dir.path().join("outbox").join(name))
            .unwrap()
            .len()
    };
    assert_eq!([size("1"), size("2")], [1000, 0]);
    assert_eq!(
        std::fs::read_dir(dir.path().join("tmp")).unwrap().count(),
        0
    );
}
