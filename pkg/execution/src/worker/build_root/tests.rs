//! Tests of build roots.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
};

use super::*;

fn open(path: &Path) -> Result<Arc<BuildRoot>, BuildRootFailure> {
    BuildRoot::open(path).map_err(|error| error.why)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

async fn empty(root: &Arc<BuildRoot>) {
    let stop = tokio_util::sync::CancellationToken::new();
    Trash(Arc::clone(root)).empty(&stop).await;
}

#[test]
fn a_directory_that_holds_files_and_is_not_gorego_s_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "years of work").unwrap();
    for _ in 0..2 {
        let refused = open(dir.path());
        assert!(matches!(refused, Err(BuildRootFailure::Foreign(name)) if name == "thesis.tex"));
        assert_eq!(names(dir.path()), ["thesis.tex"]);
    }
}

#[test]
fn a_build_root_is_created_and_used_by_one_process() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("lost+found")).unwrap();
    let mount = open(dir.path()).unwrap();
    assert!(matches!(open(dir.path()), Err(BuildRootFailure::InUse)));
    drop(mount);
    drop(open(dir.path()).unwrap());
    assert_eq!(names(dir.path()), [MARKER, "lost+found", TRASH]);
    let new = dir.path().join("trash/a/b");
    drop(open(&new).unwrap());
    assert_eq!(names(&new), [MARKER, TRASH]);
}

#[test]
fn a_file_in_the_place_of_the_build_root_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(
        open(file.path()),
        Err(BuildRootFailure::Unusable(_))
    ));
}

#[tokio::test]
async fn the_next_start_deletes_what_a_killed_process_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("build");
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "outside").unwrap();
    let root = open(&path).unwrap();
    // As a process leaves it that is killed.
    let tree = path.join("action").join(ROOT);
    fs::create_dir_all(tree.join("a/b/c")).unwrap();
    fs::write(tree.join("a/b/c/file"), "file").unwrap();
    fs::set_permissions(tree.join("a/b"), fs::Permissions::from_mode(0o000)).unwrap();
    symlink(&outside, tree.join("a/link")).unwrap();
    symlink(&outside, path.join("link")).unwrap();
    drop(root);

    let root = open(&path).unwrap();
    assert_eq!(names(&path), [MARKER, TRASH]);
    assert_eq!(names(&path.join(TRASH)).len(), 2);
    empty(&root).await;
    assert_eq!(names(&path.join(TRASH)).len(), 0);
    assert_eq!(names(&outside), ["file"]);
}

#[tokio::test]
async fn an_action_s_directory_goes_to_the_trash_when_it_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let root = open(dir.path()).unwrap();
    let (first, second) = (
        root.create(None, false).unwrap(),
        root.create(None, false).unwrap(),
    );
    assert!(first.tmp().is_dir() && first.tmp() != second.tmp());
    let (trash, kept) = (dir.path().join(TRASH), second.name.clone());
    drop(first);
    assert_eq!(names(dir.path()), [MARKER, &kept, TRASH]);
    assert_eq!(names(&trash).len(), 1);
    empty(&root).await;
    assert_eq!(names(&trash).len(), 0);
    drop(second);
}

#[tokio::test]
async fn the_newest_ten_directories_that_are_kept_outlive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join(FAILED);
    let mut all = Vec::new();
    for _ in 0..2 {
        let root = open(dir.path()).unwrap();
        let failed = Arc::new(Failed::open(&root, u64::MAX).unwrap());
        for _ in 0..7 {
            let action = root.create(None, false).unwrap();
            all.push(failed.keep(&action, 1));
        }
        drop(root.create(None, false).unwrap());
        empty(&root).await;
    }
    let mut newest = all.split_off(4);
    newest.sort();
    assert_eq!(
        names(&kept)
            .iter()
            .map(|name| kept.join(name))
            .collect::<Vec<_>>(),
        newest
    );
    let root = open(dir.path()).unwrap();
    Failed::remove(&root).unwrap();
    Failed::remove(&root).unwrap();
    empty(&root).await;
    assert_eq!(names(dir.path()), [MARKER, TRASH]);
    assert_eq!(names(&dir.path().join(TRASH)).len(), 0);
}
