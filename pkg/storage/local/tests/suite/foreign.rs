//! Files and folders that other programs remove from the data directory, or put into it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use crate::common::{self, content, open, options, path, put, read, scanned, until};
use gorego_storage::{
    BlobStore as _, Digest, DigestFunction, Error, Evictable as _, Put, UploadId, Uploads as _,
};
use gorego_storage_local::{LocalStore, OpenFailure};
use rustix::fs::{CWD, FileType, Mode};

/// Longer than a read takes, so that one that hangs is a failure.
const LONG: Duration = Duration::from_secs(30);

/// Removes everything in a directory, as `rm -rf dir/*` does.
fn empty(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        remove(&entry.unwrap().path());
    }
}

fn remove(path: &Path) {
    if fs::symlink_metadata(path).unwrap().is_dir() {
        fs::remove_dir_all(path).unwrap();
    } else {
        fs::remove_file(path).unwrap();
    }
}

fn quarantined(dir: &Path) -> usize {
    fs::read_dir(dir.join("quarantine")).unwrap().count()
}

fn only_file_in(dir: &Path) -> PathBuf {
    let mut files = fs::read_dir(dir).unwrap();
    files.next().unwrap().unwrap().path()
}

type Stand = fn(&Path);

/// Things that may be in the place of a file.
const STANDS: [(&str, Stand); 5] = [
    ("folder", |path| {
        fs::create_dir(path).unwrap();
        fs::write(path.join("notes.txt"), "mine").unwrap();
    }),
    ("link to a file", |path| {
        symlink("/etc/hostname", path).unwrap();
    }),
    ("link to nothing", |path| {
        symlink("nothing", path).unwrap();
    }),
    ("pipe", |path| node(path, FileType::Fifo)),
    ("socket", |path| node(path, FileType::Socket)),
];

fn node(path: &Path, kind: FileType) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o666), 0).unwrap();
}

async fn upload(store: &LocalStore, name: &str, offset: u64, whole: &bytes::Bytes) -> Digest {
    let digest = DigestFunction::Sha256.digest(whole);
    let start = usize::try_from(offset).unwrap();
    let blob = common::whole(name, offset, &whole.slice(start..));
    assert_eq!(store.put(&digest, blob).await.unwrap(), Put::Stored);
    digest
}

async fn breaks_off(store: &LocalStore, name: &str, whole: &bytes::Bytes, after: usize) -> Digest {
    let digest = DigestFunction::Sha256.digest(whole);
    let blob = common::broken(name, 0, &[whole.slice(..after)]);
    store.put(&digest, blob).await.unwrap_err();
    digest
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_succeeds_right_after_the_data_directory_was_emptied() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    scanned(&store).await;

    empty(dir.path());
    let small = put(&store, &content(1, 1000)).await;
    assert_eq!(read(&store, &small).await.unwrap(), content(1, 1000));

    empty(dir.path());
    let large = upload(&store, "u", 0, &content(2, 2_000_000)).await;
    assert_eq!(read(&store, &large).await.unwrap(), content(2, 2_000_000));

    empty(dir.path());
    breaks_off(&store, "v", &content(3, 2_000_000), 1_000_000).await;
    upload(&store, "v", 1_000_000, &content(3, 2_000_000)).await;

    empty(dir.path());
    let action = DigestFunction::Sha256.digest(b"action");
    common::put_result(&store, "main", &action, 1).await;
    assert_eq!(common::get_result(&store, "main", &action).await, Some(1));

    let batched = content(4, 1000);
    empty(dir.path());
    let digest = DigestFunction::Sha256.digest(&batched);
    let stored = store.put_batch(vec![(digest, batched)]).await;
    assert!(matches!(stored[..], [Ok(Put::Stored)]), "{stored:?}");
}

#[tokio::test(start_paused = true)]
async fn an_emptied_data_directory_is_repaired_within_seconds() {
    let dir = tempfile::tempdir().unwrap();
    is_repaired_after(dir.path(), empty).await;
}

#[tokio::test(start_paused = true)]
async fn a_removed_data_directory_is_repaired_within_seconds() {
    let dir = tempfile::tempdir().unwrap();
    is_repaired_after(&dir.path().join("cache"), remove).await;
}

async fn is_repaired_after(dir: &Path, clear: impl Fn(&Path)) {
    let store = open(dir).await;
    let lost = [
        put(&store, &content(1, 1000)).await,
        put(&store, &content(2, 500_000)).await,
    ];
    common::put_result(&store, "main", &lost[0], 1).await;
    scanned(&store).await;
    clear(dir);
    let broken = breaks_off(&store, "u", &content(3, 2_000_000), 1_000_000).await;
    tokio::time::sleep(Duration::from_secs(10)).await;

    assert!(*store.health().borrow());
    assert_eq!(store.find_missing(&lost).await.unwrap(), lost);
    assert_eq!(common::get_result(&store, "main", &lost[0]).await, None);
    let usage = store.usage();
    assert_eq!((usage.used - usage.idle_uploads, usage.folders), (0, 0));
    let second = LocalStore::open(options(dir)).await;
    let error = second.unwrap_err();
    assert!(matches!(error.why, OpenFailure::InUse(_)), "{error}");

    drop(store);
    let store = open(dir).await;
    let kept = store.committed(&broken, &UploadId::new("u")).await;
    assert_eq!(kept.unwrap(), 1_000_000);
}

#[tokio::test(start_paused = true)]
async fn blobs_whose_folders_were_removed_are_all_missing_once_one_was_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    scanned(&store).await;
    let mut lost = Vec::new();
    for seed in 0..10 {
        lost.push(put(&store, &content(seed, 1000)).await);
    }
    empty(&dir.path().join("cas"));
    read(&store, &lost[3]).await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(store.find_missing(&lost).await.unwrap(), lost);
    assert_eq!(store.usage().used, 0);
}

#[tokio::test(start_paused = true)]
async fn a_data_directory_that_cannot_be_written_is_unhealthy_until_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let mut health = store.health();
    assert!(*health.borrow_and_update());
    let tmp = dir.path().join("tmp");
    // The store may be making it anew at this moment.
    until(|| {
        let _ = fs::remove_dir_all(&tmp);
        fs::write(&tmp, "in the way").is_ok()
    })
    .await;
    health.changed().await.unwrap();
    assert!(!*health.borrow_and_update());
    fs::remove_file(&tmp).unwrap();
    health.changed().await.unwrap();
    assert!(*health.borrow_and_update());
}

#[tokio::test(flavor = "multi_thread")]
async fn anything_in_the_place_of_a_blob_is_quarantined_by_one_read() {
    for (what, stand) in STANDS {
        for len in [1000, 2_000_000] {
            let dir = tempfile::tempdir().unwrap();
            let store = open(dir.path()).await;
            scanned(&store).await;
            let blob = content(1, len);
            let digest = put(&store, &blob).await;
            let file = path(dir.path(), &digest);
            fs::remove_file(&file).unwrap();
            stand(&file);
            let found = tokio::time::timeout(LONG, read(&store, &digest)).await;
            let found = found.expect("an answer");
            assert!(
                matches!(found, Err(Error::NotFound(_))),
                "{what}: {found:?}"
            );
            assert_eq!(store.find_missing(&[digest]).await.unwrap(), [digest]);
            assert_eq!(quarantined(dir.path()), 1, "{what}");
            assert_eq!(store.counters().corrupt.load(Relaxed), 1);
            put(&store, &blob).await;
            assert_eq!(read(&store, &digest).await.unwrap(), blob, "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn anything_in_the_place_of_a_result_is_a_miss_and_the_next_result_is_stored() {
    for (what, stand) in STANDS {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).await;
        scanned(&store).await;
        let action = DigestFunction::Sha256.digest(b"action");
        common::put_result(&store, "main", &action, 1).await;
        let file = common::find_file(&dir.path().join("ac")).unwrap();
        fs::remove_file(&file).unwrap();
        stand(&file);
        let found = tokio::time::timeout(LONG, common::get_result(&store, "main", &action)).await;
        assert_eq!(found.expect("an answer"), None, "{what}");
        assert_eq!(quarantined(dir.path()), 1, "{what}");
        common::put_result(&store, "main", &action, 2).await;
        assert_eq!(common::get_result(&store, "main", &action).await, Some(2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn anything_in_the_place_of_a_partial_upload_does_not_stop_the_next_attempt() {
    for (what, stand) in STANDS {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).await;
        let blob = content(1, 2_000_000);
        breaks_off(&store, "u", &blob, 1_000_000).await;
        let file = only_file_in(&dir.path().join("uploads"));
        fs::remove_file(&file).unwrap();
        stand(&file);
        let attempt = tokio::time::timeout(LONG, upload(&store, "u", 0, &blob)).await;
        let digest = attempt.expect("an end");
        assert_eq!(read(&store, &digest).await.unwrap(), blob, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_quarantines_obstacles_on_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    scanned(&store).await;
    let blob = content(1, 1000);
    let file = path(dir.path(), &DigestFunction::Sha256.digest(&blob));
    fs::create_dir_all(&file).unwrap();
    put(&store, &blob).await;
    assert_eq!(fs::read(&file).unwrap(), blob);
    assert_eq!(quarantined(dir.path()), 1);

    let blob = content(2, 1000);
    let file = path(dir.path(), &DigestFunction::Sha256.digest(&blob));
    let folder = file.parent().unwrap();
    fs::create_dir_all(folder.parent().unwrap()).unwrap();
    fs::write(folder, "not a folder").unwrap();
    put(&store, &blob).await;
    assert_eq!(fs::read(&file).unwrap(), blob);
    assert_eq!(quarantined(dir.path()), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_blob_is_quarantined() {
    if rustix::process::geteuid().is_root() {
        // Who may read everything.
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    scanned(&store).await;
    let blob = content(1, 1000);
    let digest = put(&store, &blob).await;
    let file = path(dir.path(), &digest);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o0)).unwrap();
    let found = read(&store, &digest).await;
    assert!(matches!(found, Err(Error::NotFound(_))), "{found:?}");
    assert_eq!(quarantined(dir.path()), 1);
    put(&store, &blob).await;
    assert_eq!(read(&store, &digest).await.unwrap(), blob);
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_in_tmp_are_left_alone_and_stop_neither_the_start_nor_uploads() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).await);
    let folders: Vec<_> = (0..40).map(|n| format!("tmp/{n:x}")).collect();
    for folder in &folders {
        fs::create_dir(dir.path().join(folder)).unwrap();
        fs::write(dir.path().join(folder).join("notes.txt"), "mine").unwrap();
    }
    let store = open(dir.path()).await;
    put(&store, &content(1, 1000)).await;
    let blob = content(2, 2_000_000);
    breaks_off(&store, "u", &blob, 1_000_000).await;
    let removed = store.remove_idle_uploads(Duration::ZERO).unwrap();
    assert_eq!(removed.count, 1);
    for folder in &folders {
        assert!(dir.path().join(folder).join("notes.txt").exists());
    }
}
