//! Outputs of actions that become blobs.

use std::{
    fs::{self, File, FileTimes, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::common::{
    FOLDERS, candidates, content, is_waiting, open, open_with, options, path, put, read, scanned,
    until,
};
use futures::{StreamExt as _, stream};
use gorego_storage::{
    Adopt, Digest, DigestFunction, Error, Evictable as _, Growth, Links as _, Result,
};
use gorego_storage_conformance::Tree;
use gorego_storage_local::{LocalOptions, LocalStore, Received};

const SHA256: DigestFunction = DigestFunction::Sha256;

async fn adopt(store: &LocalStore, file: Adopt) -> Result<Digest> {
    store.adopt(SHA256, vec![file]).await.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_output_becomes_the_file_of_its_blob() {
    let (dir, tree) = (tempfile::tempdir().unwrap(), Tree::new());
    let store = open(dir.path()).await;
    scanned(&store).await;
    let output = tree.path("output");
    fs::write(&output, content(1, 5000)).unwrap();
    fs::set_permissions(&output, Permissions::from_mode(0o6600)).unwrap();
    let old = SystemTime::now() - Duration::from_hours(48);
    let times = FileTimes::new().set_modified(old);
    File::options()
        .write(true)
        .open(&output)
        .unwrap()
        .set_times(times)
        .unwrap();
    let inode = fs::metadata(&output).unwrap().ino();

    let digest = adopt(&store, tree.moved("output")).await.unwrap();
    let blob = fs::metadata(path(dir.path(), &digest)).unwrap();
    assert_eq!(blob.ino(), inode);
    assert_eq!(blob.mode() & 0o7777, 0o555);
    let day = Duration::from_hours(24);
    assert!(
        blob.modified().unwrap() > SystemTime::now() - day,
        "an old time would exempt it from verification after a crash"
    );
    assert_eq!(store.usage().used, 8192 + FOLDERS);
    assert_eq!(read(&store, &digest).await.unwrap(), content(1, 5000));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_on_another_file_system_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    // Where none is another one, it is moved. A mount of the same file system counts as another one.
    for (seed, place) in [(1, "/dev/shm"), (2, "/tmp"), (3, ".")] {
        let Ok(there) = tempfile::tempdir_in(place) else {
            continue;
        };
        let tree = Tree::of(there);
        let output = tree.path("output");
        fs::write(&output, content(seed, 5000)).unwrap();
        let digest = adopt(&store, tree.moved("output")).await.unwrap();
        assert_eq!(read(&store, &digest).await.unwrap(), content(seed, 5000));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_waits_for_eviction_and_is_refused_if_it_cannot_fit() {
    let (dir, tree) = (tempfile::tempdir().unwrap(), Tree::new());
    let small = LocalOptions {
        max_bytes: 100_000,
        wake_bytes: 100_000,
        ..options(dir.path())
    };
    let store = open_with(small).await;
    scanned(&store).await;
    put(&store, &content(1, 60_000)).await;
    for name in ["moved", "copied"] {
        fs::write(
            tree.path(name),
            content(name.len().try_into().unwrap(), 60_000),
        )
        .unwrap();
        let file = match name {
            "moved" => tree.moved(name),
            _ => tree.copied(name),
        };
        let mut adoption = Box::pin(adopt(&store, file));
        until(|| {
            assert!(is_waiting(adoption.as_mut()));
            store.usage().wanted > 0
        })
        .await;
        assert_eq!(store.evict(&candidates(&store), true).count, 1);
        store.room_made(false);
        let digest = adoption.await.unwrap();
        assert_eq!(read(&store, &digest).await.unwrap().len(), 60_000);
    }
    fs::write(tree.path("large"), content(3, 120_000)).unwrap();
    for file in [tree.moved("large"), tree.copied("large")] {
        let refused = adopt(&store, file).await;
        assert!(matches!(refused, Err(Error::Full { .. })), "{refused:?}");
        assert!(tree.path("large").exists());
    }
    until(|| fs::read_dir(dir.path().join("tmp")).unwrap().count() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_store_leaves_outputs_where_they_are() {
    let (dir, tree) = (tempfile::tempdir().unwrap(), Tree::new());
    let store = open(dir.path()).await;
    scanned(&store).await;
    store.close().await.unwrap();
    fs::write(tree.path("output"), content(1, 5000)).unwrap();
    for file in [tree.moved("output"), tree.copied("output")] {
        let refused = adopt(&store, file).await;
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    }
    assert_eq!(fs::read(tree.path("output")).unwrap(), content(1, 5000));
    until(|| fs::read_dir(dir.path().join("tmp")).unwrap().count() == 0).await;
}

/// The system refuses to execute a file that a process has open for writing.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_can_be_executed_while_its_upload_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let mut script = b"#!/bin/sh\nexit 7\n".to_vec();
    script.resize(3_000_000, b'\n');
    let script = bytes::Bytes::from(script);
    let digest = SHA256.digest(&script);
    let chunks: Vec<_> = script
        .chunks(100_000)
        .map(|chunk| Ok(script.slice_ref(chunk)))
        .collect();
    let growth = Arc::new(Growth::default());
    let received = store
        .receive(
            &digest,
            stream::iter(chunks).boxed(),
            None,
            Some(Arc::clone(&growth)),
        )
        .await;
    let Ok(Received::Complete(mut complete)) = received else {
        panic!("not received");
    };
    complete.verify().await.unwrap();
    let uploaded = complete.blob().unwrap();
    complete.publish().await.unwrap();
    let status = Command::new(path(dir.path(), &digest)).status().unwrap();
    assert_eq!(status.code(), Some(7));
    assert_eq!(growth.read(0, 10).unwrap(), script.slice(..10));
    assert_eq!(uploaded.into_bytes().await.unwrap(), script);
}
