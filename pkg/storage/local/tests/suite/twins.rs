//! Inputs that are not executable: links to twins of their blobs.

use std::{
    fs::{self, File, FileTimes, Permissions},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::common::{self, candidates, content, open, open_with, options, path, put, read};
use gorego_storage::{BlobStore as _, Digest, Evictable as _, LinkedAs, Links};
use gorego_storage_conformance::Tree;
use gorego_storage_local::LocalOptions;

fn link(store: &dyn Links, tree: &Tree, digest: &Digest, name: &str) -> LinkedAs {
    tree.link(store, digest, name, false).unwrap()
}

fn inode(path: PathBuf) -> u64 {
    fs::metadata(path).unwrap().ino()
}

fn twins(dir: &Path) -> usize {
    fs::read_dir(dir.join("twins")).unwrap().count()
}

/// Opens an input for writing, as an action of the same user can.
fn writable(path: &Path) -> File {
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o444)).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_that_are_not_executable_are_one_file_other_than_the_blob() {
    let (dir, tree) = (tempfile::tempdir().unwrap(), Tree::new());
    let store = open(dir.path()).await;
    let content = content(1, 5000);
    let digest = put(&store, &content).await;
    for name in ["one", "two"] {
        let _pins = store.pin(&[digest]).await.unwrap();
        assert_eq!(link(&*store, &tree, &digest, name), LinkedAs::Link);
        tree.expect_file(name, &content, 0o444);
        assert_eq!(store.altered(&[digest]), []);
    }
    let blob = path(dir.path(), &digest);
    assert_eq!(inode(tree.path("one")), inode(tree.path("two")));
    assert_ne!(inode(tree.path("one")), inode(blob.clone()));
    assert_eq!(fs::metadata(blob).unwrap().mode() & 0o7777, 0o555);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_twin_takes_room_until_its_blob_is_evicted() {
    let (dir, tree) = (tempfile::tempdir().unwrap(), Tree::new());
    let store = open(dir.path()).await;
    common::scanned(&store).await;
    let digest = put(&store, &content(1, 5000)).await;
    let before = store.usage();
    let pins = store.pin(&[digest]).await.unwrap();
    link(&*store, &tree, &digest, "input");
    drop(pins);
    let after = store.usage();
    assert_eq!(after.used, before.used + 8192);
    assert_eq!(after.files, before.files + 1);
    store.evict(&candidates(&store), true);
    assert_eq!((store.usage().used, twins(dir.path())), (0, 0));
    // A running action keeps its file.
    tree.expect_file("input", &content(1, 5000), 0o444);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_twin_goes_with_a_blob_that_is_corrupt_or_removed() {
    for remove in [true, false] {
        let (dir, tree) = (tempfile::tempdir().unwrap(), Tree::new());
        let store = open(dir.path()).await;
        common::scanned(&store).await;
        let digest = put(&store, &content(1, 5000)).await;
        let pins = store.pin(&[digest]).await.unwrap();
        link(&*store, &tree, &digest, "input");
        let blob = path(dir.path(), &digest);
        if remove {
            fs::remove_file(&blob).unwrap();
        } else {
            writable(&blob).write_all(b"poison").unwrap();
        }
        assert_eq!(store.altered(&[digest]), [digest]);
        assert_eq!(twins(dir.path()), 0);
        drop(pins);
        assert_eq!(store.find_missing(&[digest]).await.unwrap(), [digest]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twins_of_an_earlier_run_are_removed() {
    let (dir, tree) = (tempfile::tempdir().unwrap(), Tree::new());
    let store = open(dir.path()).await;
    let digest = put(&store, &content(1, 5000)).await;
    let pins = store.pin(&[digest]).await.unwrap();
    link(&*store, &tree, &digest, "input");
    writable(&tree.path("input")).write_all(b"poison").unwrap();
    drop((pins, store));
    let store = open(dir.path()).await;
    assert_eq!(twins(dir.path()), 0);
    let _pins = store.pin(&[digest]).await.unwrap();
    link(&*store, &tree, &digest, "again");
    tree.expect_file("again", &content(1, 5000), 0o444);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_twin_is_reported_and_made_anew_and_its_blob_stays() {
    let (dir, tree) = (tempfile::tempdir().unwrap(), Tree::new());
    let store = open(dir.path()).await;
    let (old, content) = (SystemTime::UNIX_EPOCH, content(1, 5000));
    let digest = put(&store, &content).await;
    let poisons: [&dyn Fn(File); 3] = [
        &|mut file| file.write_all(b"poison").unwrap(),
        &|file| file.set_len(10).unwrap(),
        &|mut file| {
            file.write_all(b"poison").unwrap();
            file.set_times(FileTimes::new().set_modified(old)).unwrap();
        },
    ];
    for (number, poison) in poisons.into_iter().enumerate() {
        let first = store.pin(&[digest]).await.unwrap();
        let second = store.pin(&[digest]).await.unwrap();
        let name = |name: &str| format!("{number}-{name}");
        link(&*store, &tree, &digest, &name("first"));
        link(&*store, &tree, &digest, &name("second"));
        poison(writable(&tree.path(&name("first"))));
        // Until the check, others get a copy.
        let third = link(&*store, &tree, &digest, &name("third"));
        assert_eq!(third, LinkedAs::Copy);
        tree.expect_file(&name("third"), &content, 0o444);
        assert_eq!(store.altered(&[digest]), [digest]);
        drop(first);
        assert_eq!(store.altered(&[digest]), [digest], "others linked it, too");
        drop(second);
        let _pins = store.pin(&[digest]).await.unwrap();
        let next = link(&*store, &tree, &digest, &name("next"));
        assert_eq!(next, LinkedAs::Link);
        tree.expect_file(&name("next"), &content, 0o444);
        assert_eq!(store.altered(&[digest]), []);
    }
    assert_eq!(read(&store, &digest).await.unwrap(), content);
    assert_eq!(
        fs::read_dir(dir.path().join("quarantine")).unwrap().count(),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_twin_with_its_content_gets_its_mode_and_time_back() {
    let (dir, tree) = (tempfile::tempdir().unwrap(), Tree::new());
    let store = open(dir.path()).await;
    let digest = put(&store, &content(1, 5000)).await;
    let _pins = store.pin(&[digest]).await.unwrap();
    link(&*store, &tree, &digest, "input");
    let input = tree.path("input");
    let modified = || fs::metadata(&input).unwrap().modified().unwrap();
    let before = modified();
    let old = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_mins(1));
    writable(&input).set_times(old).unwrap();
    fs::set_permissions(&input, Permissions::from_mode(0o777)).unwrap();
    assert_eq!(store.altered(&[digest]), []);
    tree.expect_file("input", &content(1, 5000), 0o444);
    assert_eq!(modified(), before);
    assert_eq!(link(&*store, &tree, &digest, "again"), LinkedAs::Link);
}

#[tokio::test(flavor = "multi_thread")]
async fn twins_take_a_tenth_of_the_cache_and_the_newest_stay() {
    let (dir, tree) = (tempfile::tempdir().unwrap(), Tree::new());
    let store = open_with(LocalOptions {
        max_bytes: 100 * 4096,
        wake_bytes: 100 * 4096,
        ..options(dir.path())
    });
    let store = store.await;
    common::scanned(&store).await;
    let digests: Vec<_> = futures::future::join_all((0..4).map(|seed| {
        let store = &store;
        async move { put(store, &content(seed, 4 * 4096)).await }
    }))
    .await;
    for (number, digest) in digests.iter().enumerate() {
        let _pins = store.pin(&[*digest]).await.unwrap();
        let linked = link(&*store, &tree, digest, &format!("{number}"));
        assert_eq!(linked, LinkedAs::Link);
        assert_eq!(store.altered(&[*digest]), []);
    }
    assert_eq!(twins(dir.path()), 2);
    // Those of running actions are not replaced.
    let pins = store.pin(&digests).await.unwrap();
    let forms: Vec<_> = (0..4)
        .map(|number| link(&*store, &tree, &digests[number], &format!("again-{number}")))
        .collect();
    assert_eq!(
        forms.iter().filter(|form| **form == LinkedAs::Link).count(),
        2
    );
    assert_eq!(store.altered(&digests), []);
    drop(pins);
    // One that is too large is a copy.
    let large = put(&store, &content(9, 11 * 4096)).await;
    let _pins = store.pin(&[large]).await.unwrap();
    assert_eq!(link(&*store, &tree, &large, "large"), LinkedAs::Copy);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_twin_that_an_action_links_is_not_replaced_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    // Two twins have room.
    let store = open_with(LocalOptions {
        max_bytes: 100 * 4096,
        wake_bytes: 100 * 4096,
        ..options(dir.path())
    });
    let store = store.await;
    common::scanned(&store).await;
    let mut digests = Vec::new();
    for seed in 0..4 {
        digests.push(put(&store, &content(seed, 4 * 4096)).await);
    }
    let before = store.usage().used;
    let link_some = |first: usize| {
        let (store, digests) = (Arc::clone(&store), digests.clone());
        async move {
            let tree = Tree::new();
            for number in 0..500 {
                let digest = digests[(first + number) % digests.len()];
                let pins = store.pin(&[digest]).await.unwrap();
                let name = number.to_string();
                tree.link(&*store, &digest, &name, false).unwrap();
                assert_eq!(store.altered(&[digest]), []);
                fs::remove_file(tree.path(&name)).unwrap();
                drop(pins);
            }
        }
    };
    let mut actions = tokio::task::JoinSet::new();
    for first in 0..4 {
        actions.spawn(link_some(first));
    }
    actions.join_all().await;
    // Each twin is accounted, and nothing else.
    let twins = twins(dir.path()) as u64;
    assert!(twins <= 2);
    assert_eq!(store.usage().used, before + twins * 4 * 4096);
}
