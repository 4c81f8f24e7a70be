//! Blobs as inputs of actions, and inputs that actions altered.

use std::{
    fs::{self, File, FileTimes, Permissions},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::common::{self, content, open, path, put, read};
use gorego_storage::{BlobStore as _, Error, LinkedAs, Links as _};
use gorego_storage_conformance::Tree;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Opens a linked blob for writing, as an action of the same user can.
fn writable(path: &Path) -> File {
    set_mode(path, 0o755);
    let file = File::options().write(true).open(path).unwrap();
    set_mode(path, 0o555);
    file
}

fn quarantined(dir: &Path) -> usize {
    fs::read_dir(dir.join("quarantine")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executable_input_is_the_file_of_its_blob() {
    let (dir, tree) = (tempfile::tempdir().unwrap(), Tree::new());
    let store = open(dir.path()).await;
    let digest = put(&store, &content(1, 1000)).await;
    let _pins = store.pin(&[digest]).await.unwrap();
    for name in ["one", "two"] {
        let linked = tree.link(&*store, &digest, name, true).unwrap();
        assert_eq!(linked, LinkedAs::Link);
    }
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(tree.path("two")), inode(path(dir.path(), &digest)));
    tree.copy(&*store, &digest, "copy", true).unwrap();
    assert_ne!(inode(tree.path("copy")), inode(path(dir.path(), &digest)));
    fs::remove_file(tree.path("one")).unwrap();
    assert_eq!(store.altered(&[digest]), [], "unlinking alters nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_with_all_links_that_the_file_system_permits_is_copied() {
    /// More than ext4 permits.
    const LINKS: usize = 65_001;
    let (dir, tree) = (tempfile::tempdir().unwrap(), Tree::new());
    let store = open(dir.path()).await;
    let content = content(1, 1000);
    let digest = put(&store, &content).await;
    let _pins = store.pin(&[digest]).await.unwrap();
    let blob = path(dir.path(), &digest);
    let link = |number| fs::hard_link(&blob, tree.path(&format!("{number}")));
    let is_exhausted = (0..LINKS).any(|number| link(number).is_err());
    let linked = tree.link(&*store, &digest, "input", true).unwrap();
    assert_eq!(linked == LinkedAs::Copy, is_exhausted);
    tree.expect_file("input", &content, 0o555);
    assert_eq!(store.altered(&[digest]), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_on_another_file_system_is_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let content = content(1, 1000);
    let digest = put(&store, &content).await;
    let _pins = store.pin(&[digest]).await.unwrap();
    // Where none is another one, it is a link.
    for place in [Path::new("/dev/shm"), Path::new("/tmp"), Path::new(".")] {
        let Ok(there) = tempfile::tempdir_in(place) else {
            continue;
        };
        let tree = Tree::of(there);
        let is_other = fs::hard_link(path(dir.path(), &digest), tree.path("probe")).is_err();
        let linked = tree.link(&*store, &digest, "input", true).unwrap();
        assert_eq!(linked == LinkedAs::Copy, is_other, "{place:?}");
        tree.expect_file("input", &content, 0o555);
        let linked = tree.link(&*store, &digest, "readable", false).unwrap();
        assert_eq!(linked == LinkedAs::Copy, is_other, "{place:?}");
        tree.expect_file("readable", &content, 0o444);
        // No twin was made in vain, which would be another copy.
        let twins = fs::read_dir(dir.path().join("twins")).unwrap().count();
        assert_eq!(twins == 0, is_other, "{place:?}");
        if !is_other {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_removed_by_another_program_is_missing_to_a_link_and_from_then_on() {
    let (dir, tree) = (tempfile::tempdir().unwrap(), Tree::new());
    let store = open(dir.path()).await;
    for (seed, executable) in [(1, true), (2, false)] {
        let digest = put(&store, &content(seed, 1000)).await;
        let pins = store.pin(&[digest]).await.unwrap();
        fs::remove_file(path(dir.path(), &digest)).unwrap();
        let linked = tree.link(&*store, &digest, "input", executable);
        assert!(matches!(linked, Err(Error::NotFound(missing)) if missing == digest));
        assert!(!tree.path("input").exists());
        assert_eq!(store.find_missing(&[digest]).await.unwrap(), [digest]);
        assert_eq!(store.altered(&[digest]), [digest]);
        drop(pins);
        // It can be stored again.
        put(&store, &content(seed, 1000)).await;
        let _pins = store.pin(&[digest]).await.unwrap();
        tree.link(&*store, &digest, "again", executable).unwrap();
        fs::remove_file(tree.path("again")).unwrap();
    }
}

/// A name, and a change of the content of a file.
type Poison = (&'static str, fn(&Path));

const POISON: [Poison; 6] = [
    ("append", |path| {
        set_mode(path, 0o755);
        let mut file = File::options().append(true).open(path).unwrap();
        file.write_all(b"poison").unwrap();
    }),
    ("write", |path| writable(path).write_all(b"poison").unwrap()),
    ("truncate", |path| writable(path).set_len(10).unwrap()),
    ("empty", |path| writable(path).set_len(0).unwrap()),
    ("write and set the time", |path| {
        let mut file = writable(path);
        file.write_all(b"poison").unwrap();
        let old = SystemTime::now() - Duration::from_hours(1);
        file.set_times(FileTimes::new().set_modified(old)).unwrap();
    }),
    ("write and make unreadable", |path| {
        writable(path).write_all(b"poison").unwrap();
        set_mode(path, 0);
    }),
];

#[tokio::test(flavor = "multi_thread")]
async fn altered_content_is_reported_and_quarantined() {
    for (kind, poison) in POISON {
        let (dir, tree) = (tempfile::tempdir().unwrap(), Tree::new());
        let store = open(dir.path()).await;
        let good = put(&store, &content(1, 1000)).await;
        let digest = put(&store, &content(2, 1000)).await;
        let _pins = store.pin(&[good, digest]).await.unwrap();
        tree.link(&*store, &good, "good", true).unwrap();
        tree.link(&*store, &digest, "input", true).unwrap();
        poison(&tree.path("input"));
        assert_eq!(store.altered(&[good, digest]), [digest], "{kind}");
        assert_eq!(quarantined(dir.path()), 1, "{kind}");
        let missing = read(&store, &digest).await;
        assert!(matches!(missing, Err(Error::NotFound(_))), "{kind}");
        put(&store, &content(2, 1000)).await;
        assert_eq!(
            store.altered(&[digest]),
            [digest],
            "{kind}: others linked the corrupt file"
        );
        assert_eq!(read(&store, &digest).await.unwrap(), content(2, 1000));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_with_its_content_gets_its_mode_and_time_back() {
    let (dir, tree) = (tempfile::tempdir().unwrap(), Tree::new());
    let store = open(dir.path()).await;
    let digest = put(&store, &content(1, 1000)).await;
    let _pins = store.pin(&[digest]).await.unwrap();
    tree.link(&*store, &digest, "input", true).unwrap();
    let blob = path(dir.path(), &digest);
    let modified = || fs::metadata(&blob).unwrap().modified().unwrap();
    let before = modified();
    let old = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_mins(1));
    let changes: [&dyn Fn(); 2] = [&|| set_mode(&blob, 0o644), &|| {
        writable(&blob).set_times(old).unwrap();
    }];
    for (number, change) in changes.into_iter().enumerate() {
        change();
        // Until then others get a copy, which is verified.
        let name = format!("{number}");
        let linked = tree.link(&*store, &digest, &name, true).unwrap();
        assert_eq!(linked, LinkedAs::Copy);
        tree.expect_file(&name, &content(1, 1000), 0o555);
        assert_eq!(store.altered(&[digest]), []);
        assert_eq!(fs::metadata(&blob).unwrap().mode() & 0o7777, 0o555);
        assert_eq!(modified(), before);
        let linked = tree.link(&*store, &digest, &format!("{name}-again"), true);
        assert_eq!(linked.unwrap(), LinkedAs::Link);
    }
    assert_eq!(quarantined(dir.path()), 0);
    assert_eq!(read(&store, &digest).await.unwrap(), content(1, 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn content_altered_by_a_running_action_is_not_linked_by_another() {
    let (dir, tree) = (tempfile::tempdir().unwrap(), Tree::new());
    let store = open(dir.path()).await;
    let digest = put(&store, &content(1, 1000)).await;
    let first = store.pin(&[digest]).await.unwrap();
    tree.link(&*store, &digest, "input", true).unwrap();
    writable(&tree.path("input")).write_all(b"poison").unwrap();
    let second = store.pin(&[digest]).await.unwrap();
    let linked = tree.link(&*store, &digest, "other", true);
    assert!(matches!(linked, Err(Error::NotFound(_))), "{linked:?}");
    assert_eq!(quarantined(dir.path()), 1);
    assert_eq!(store.altered(&[digest]), [digest]);
    drop((first, second));

    // The record of the linked file ends with the pins.
    put(&store, &content(1, 1000)).await;
    let _pins = store.pin(&[digest]).await.unwrap();
    let linked = tree.link(&*store, &digest, "other", true).unwrap();
    assert_eq!(linked, LinkedAs::Link);
    assert_eq!(store.altered(&[digest]), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_file_is_reported_even_if_it_is_right() {
    let (dir, tree) = (tempfile::tempdir().unwrap(), Tree::new());
    let store = open(dir.path()).await;
    let digest = put(&store, &content(1, 1000)).await;
    let _pins = store.pin(&[digest]).await.unwrap();
    tree.link(&*store, &digest, "input", true).unwrap();
    let blob = path(dir.path(), &digest);
    common::damage(&blob);
    common::damage(&blob);
    assert_eq!(store.altered(&[digest]), [digest]);
    assert_eq!(read(&store, &digest).await.unwrap(), content(1, 1000));
}
