use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use async_trait::async_trait;
use bytes::Bytes;
use gorego_limits::Budget;
use gorego_storage::{Blob, BlobStore, DigestFunction, Error, MemoryStore, Put};
use prost::Message as _;
use reapi::v2::{Directory, DirectoryNode, FileNode, SymlinkNode};

use super::*;
use crate::Failure;

const SHA256: DigestFunction = DigestFunction::Sha256;

fn file(name: &str, content: &str) -> FileNode {
    FileNode {
        name: name.to_owned(),
        digest: Some(SHA256.digest(content.as_bytes()).to_proto()),
        ..FileNode::default()
    }
}

fn child(name: &str, digest: &Digest) -> DirectoryNode {
    DirectoryNode {
        name: name.to_owned(),
        digest: Some(digest.to_proto()),
    }
}

fn symlink(name: &str, target: &str) -> SymlinkNode {
    SymlinkNode {
        name: name.to_owned(),
        target: target.to_owned(),
        ..SymlinkNode::default()
    }
}

fn directory(files: Vec<FileNode>, directories: Vec<DirectoryNode>) -> Directory {
    Directory {
        files,
        directories,
        ..Directory::default()
    }
}

async fn put(store: &MemoryStore, directory: &Directory) -> Digest {
    let encoded = directory.encode_to_vec();
    let digest = SHA256.digest(&encoded);
    store
        .put(&digest, Blob::Bytes(encoded.into()))
        .await
        .unwrap();
    digest
}

async fn loaded(store: &MemoryStore, root: Digest) -> Result<(Inputs, Vec<Digest>), Failure> {
    let resident = Resident::within(512 << 20);
    let loaded = load(store, &resident, root).await?;
    Ok((loaded.inputs, loaded.missing))
}

/// Asserts that the tree is refused, in little time whatever it claims to be.
async fn refuse(store: &MemoryStore, root: Digest, text: &str) {
    match loaded(store, root).await {
        Err(Failure::Invalid { field, why }) => {
            let message = format!("{field}: {why}");
            assert!(message.contains(text), "{message}");
        }
        other => panic!("{text}: {other:?}"),
    }
}

#[tokio::test]
async fn a_tree_is_loaded_with_each_directory_once() {
    let store = MemoryStore::default();
    let leaf = put(&store, &directory(vec![file("f", "12345")], vec![])).await;
    let mut top = directory(
        vec![file("z", "1"), file("a", "12345")],
        vec![child("y", &leaf), child("x", &leaf)],
    );
    top.symlinks = vec![symlink("l", "/nowhere"), symlink("m", "../..")];
    let root = put(&store, &top).await;
    let (inputs, missing) = loaded(&store, root).await.unwrap();
    assert!(missing.is_empty());
    assert_eq!(inputs.root, root);
    assert_eq!(inputs.directories.len(), 2);
    assert_eq!(inputs.directories.get(&root), Some(&top));
    assert_eq!(inputs.blobs().len(), 2);
    assert_eq!(inputs.entries, 1 + 4 + 2 * 2);
    assert_eq!(inputs.bytes, 1 + 3 * 5);
}

#[tokio::test]
async fn all_missing_directories_are_reported() {
    let store = MemoryStore::default();
    let absent = [1, 2].map(|number| SHA256.digest(&[number]));
    let [one, two] = &absent;
    let below = put(&store, &directory(vec![], vec![child("d", two)])).await;
    let children = vec![child("a", one), child("b", &below), child("c", one)];
    let root = put(&store, &directory(vec![file("f", "1")], children)).await;
    let (inputs, missing) = loaded(&store, root).await.unwrap();
    assert_eq!(missing, absent);
    assert_eq!(inputs.blobs().len(), 1);
    let (_, missing) = loaded(&store, *one).await.unwrap();
    assert_eq!(missing, [*one]);
}

#[tokio::test]
async fn invalid_nodes_are_refused_with_their_path() {
    let store = MemoryStore::default();
    let bad = "x".repeat(256);
    let with = |nodes: &dyn Fn(&mut Directory)| {
        let mut directory = directory(vec![file("f", "1")], vec![]);
        nodes(&mut directory);
        directory
    };
    let mut cases = vec![];
    for name in ["", ".", "..", "a/b", "a\0", &bad, "f"] {
        let name = name.to_owned();
        cases.push(("files[1].name", with(&|d| d.files.push(file(&name, "1")))));
        let leaf = SHA256.digest(b"");
        let nodes: &dyn Fn(&mut Directory) = &|d| d.directories.push(child(&name, &leaf));
        cases.push(("directories[0].name", with(nodes)));
        cases.push((
            "symlinks[0].name",
            with(&|d| d.symlinks.push(symlink(&name, "t"))),
        ));
    }
    for target in ["", "a\0", &"x".repeat(4096)] {
        cases.push((
            "symlinks[0].target",
            with(&|d| d.symlinks.push(symlink("l", target))),
        ));
    }
    cases.push(("files[0].digest", with(&|d| d.files[0].digest = None)));
    let no_digest: &dyn Fn(&mut Directory) = &|d| {
        d.directories.push(DirectoryNode {
            name: "d".to_owned(),
            digest: None,
        });
    };
    cases.push(("directories[0].digest", with(no_digest)));
    for (field, invalid) in cases {
        let invalid = put(&store, &invalid).await;
        let parent = put(&store, &directory(vec![], vec![child("b", &invalid)])).await;
        let root = put(&store, &directory(vec![], vec![child("a", &parent)])).await;
        refuse(
            &store,
            root,
            &format!("directory \"a/b\" of the inputs, {field}:"),
        )
        .await;
    }
    let text = SHA256.digest(b"\xff\xff");
    store
        .put(&text, Blob::Bytes(b"\xff\xff".as_slice().into()))
        .await
        .unwrap();
    refuse(&store, text, "is not a Directory").await;
}

#[tokio::test]
async fn a_tree_of_a_million_entries_is_refused() {
    let store = MemoryStore::default();
    let files = (0..1000).map(|number| file(&number.to_string(), ""));
    let leaf = put(&store, &directory(files.collect(), vec![])).await;
    for (leaves, fits) in [(998, true), (999, false)] {
        let leaves = (0..leaves).map(|number| child(&number.to_string(), &leaf));
        let root = put(&store, &directory(vec![], leaves.collect())).await;
        if fits {
            assert_eq!(
                loaded(&store, root).await.unwrap().0.entries,
                998 * 1001 + 1
            );
        } else {
            refuse(&store, root, "1000000 or more entries").await;
        }
    }
    let name = "x".repeat(200);
    let files = (0..300_000).map(|number| file(&format!("{number}{name}"), ""));
    let huge = put(&store, &directory(files.collect(), vec![])).await;
    refuse(&store, huge, "64 MiB").await;
}

#[tokio::test]
async fn a_directory_that_occurs_two_to_the_fortieth_times_is_refused() {
    let store = MemoryStore::default();
    let mut root = put(&store, &directory(vec![file("f", "1")], vec![])).await;
    for _ in 0..40 {
        let children = vec![child("a", &root), child("b", &root)];
        root = put(&store, &directory(vec![], children)).await;
    }
    refuse(&store, root, "1000000 or more entries").await;
}

#[tokio::test]
async fn a_tree_100_000_deep_is_refused() {
    let store = MemoryStore::default();
    let mut root = put(&store, &Directory::default()).await;
    let (mut middle, mut deepest) = (root, root);
    for depth in 2..=100_000 {
        root = put(&store, &directory(vec![], vec![child("d", &root)])).await;
        match depth {
            500 => middle = root,
            MAX_DEPTH => deepest = root,
            _ => {}
        }
    }
    assert_eq!(loaded(&store, deepest).await.unwrap().0.entries, 1000);
    refuse(&store, root, "more than 1000 directories").await;
    // A path that is not the first one to its end counts too.
    let shortcut = vec![child("a", &middle), child("b", &deepest)];
    let root = put(&store, &directory(vec![], shortcut)).await;
    refuse(&store, root, "more than 1000 directories").await;
}

#[tokio::test]
async fn too_many_different_directories_are_refused() {
    let store = MemoryStore::default();
    let names = (0..MAX_DIRECTORIES)
        .map(|number| child(&number.to_string(), &SHA256.digest(&number.to_le_bytes())));
    let root = put(&store, &directory(vec![], names.collect())).await;
    refuse(&store, root, "200000 different directories").await;
}

#[tokio::test]
async fn equal_directories_of_several_actions_are_in_memory_once() {
    let store = MemoryStore::default();
    let leaf = put(&store, &directory(vec![file("f", "1")], vec![])).await;
    let tops = [
        put(&store, &directory(vec![], vec![child("a", &leaf)])).await,
        put(&store, &directory(vec![], vec![child("b", &leaf)])).await,
    ];
    let resident = Resident::within(4096);
    let one = load(&store, &resident, tops[0]).await.unwrap().inputs;
    let two = load(&store, &resident, tops[1]).await.unwrap().inputs;
    let [one, two] = [&one, &two].map(|inputs| inputs.directories.get(&leaf).unwrap());
    assert!(std::ptr::eq(one, two));
    let small = Resident::within(100);
    let full = load(&store, &small, tops[0]).await;
    assert!(matches!(full, Err(Failure::QueueFull(_))), "{full:?}");
}

/// A store whose batches of blobs take a while. Each batch counts until it is returned.
#[derive(Debug, Default)]
struct SlowStore {
    inner: MemoryStore,
    reading: AtomicU64,
    most: AtomicU64,
}

#[async_trait]
impl BlobStore for SlowStore {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, Error> {
        self.inner.find_missing(digests).await
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob, Error> {
        self.inner.get(digest, offset).await
    }

    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes, Error>> {
        let bytes: u64 = digests.iter().map(Digest::size).sum();
        let reading = self.reading.fetch_add(bytes, Relaxed) + bytes;
        self.most.fetch_max(reading, Relaxed);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        self.reading.fetch_sub(bytes, Relaxed);
        self.inner.get_batch(digests).await
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put, Error> {
        self.inner.put(digest, blob).await
    }
}

#[tokio::test(start_paused = true)]
async fn the_encoded_directories_of_many_calls_stay_within_a_budget() {
    const CALLS: u64 = 200;
    let store = SlowStore::default();
    let mut roots = Vec::new();
    for number in 0..CALLS {
        let files = (0..1500).map(|file| (format!("{number}-{file}"), "content"));
        let files = files.map(|(name, content)| self::file(&name, content));
        roots.push(put(&store.inner, &directory(files.collect(), vec![])).await);
    }
    let most = roots.iter().map(Digest::size).max().unwrap() * 4;
    let mut resident = Resident::within(512 << 20);
    Arc::get_mut(&mut resident).unwrap().encoded = Budget::memory("tests", most);
    let loads = roots.iter().map(|root| load(&store, &resident, *root));
    for loaded in futures::future::join_all(loads).await {
        assert_eq!(loaded.unwrap().inputs.entries, 1501);
    }
    let reading = store.most.load(Relaxed);
    assert!((most / 2..=most).contains(&reading), "{reading} of {most}");
}
