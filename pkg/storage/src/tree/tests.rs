mod reading;

use std::{collections::HashSet, sync::Arc};

use async_trait::async_trait;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use proptest::prelude::*;
use prost::Message as _;
use reapi::v2::{self, Directory, DirectoryNode, FileNode, Tree};

use super::{queue::DigestQueue, walk::decode, *};
use crate::{Blob, BlobStore, Chunks, DigestFunction, MemoryStore, Put, Result};

const SHA256: DigestFunction = DigestFunction::Sha256;

fn block_on<F: Future>(future: F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.build().unwrap().block_on(future)
}

fn file(name: &str, digest: &Digest) -> FileNode {
    FileNode {
        name: name.to_owned(),
        digest: Some(digest.to_proto()),
        ..FileNode::default()
    }
}

fn child(name: &str, digest: &Digest) -> DirectoryNode {
    DirectoryNode {
        name: name.to_owned(),
        digest: Some(digest.to_proto()),
    }
}

/// Creates a directory with `directories` and a file of this name, which makes it unique.
fn directory(name: &str, directories: &[Digest]) -> Directory {
    directory_of(SHA256, name, directories)
}

fn directory_of(function: DigestFunction, name: &str, directories: &[Digest]) -> Directory {
    Directory {
        files: vec![file(name, &function.digest(name.as_bytes()))],
        directories: directories
            .iter()
            .enumerate()
            .map(|(index, digest)| child(&format!("d{index}"), digest))
            .collect(),
        ..Directory::default()
    }
}

fn digest_of(function: DigestFunction, directory: &Directory) -> Digest {
    function.digest(&directory.encode_to_vec())
}

async fn store(store: &MemoryStore, function: DigestFunction, directory: &Directory) -> Digest {
    let digest = digest_of(function, directory);
    let content = Blob::Bytes(directory.encode_to_vec().into());
    store.put(&digest, content).await.unwrap();
    digest
}

async fn walked(walk: &mut TreeWalk) -> Result<Vec<(Digest, Directory)>, TreeError> {
    let mut all = Vec::new();
    while let Some(found) = walk.next(usize::MAX).await? {
        all.push(found);
    }
    Ok(all)
}

async fn names(store: &Arc<MemoryStore>, root: Digest) -> Vec<String> {
    let mut walk = TreeWalk::new(Arc::clone(store) as _, root);
    let found = walked(&mut walk).await.unwrap();
    found
        .into_iter()
        .map(|(_, directory)| directory.files[0].name.clone())
        .collect()
}

#[tokio::test]
async fn a_walk_begins_with_the_root_and_visits_each_directory_once() {
    for function in DigestFunction::ALL {
        let memory = Arc::new(MemoryStore::default());
        let make = async |name, children: &[Digest]| {
            store(&memory, function, &directory_of(function, name, children)).await
        };
        let leaf = make("leaf", &[]).await;
        let left = make("left", &[leaf]).await;
        let right = make("right", &[leaf, left]).await;
        let root = make("root", &[right, left, leaf, right]).await;
        assert_eq!(
            names(&memory, root).await,
            ["root", "right", "left", "leaf"]
        );
    }
}

#[tokio::test]
async fn a_walk_skips_missing_directories() {
    let memory = Arc::new(MemoryStore::default());
    let leaf = store(&memory, SHA256, &directory("leaf", &[])).await;
    let gone = digest_of(SHA256, &directory("gone", &[leaf]));
    let large = Digest::from_hash(SHA256, &[1; 32], MAX_DIRECTORY_BYTES + 1).unwrap();
    let present = store(&memory, SHA256, &directory("present", &[])).await;
    let root = store(&memory, SHA256, &directory("root", &[gone, large, present])).await;
    assert_eq!(names(&memory, root).await, ["root", "present"]);
}

#[tokio::test]
async fn a_walk_from_a_missing_root_fails_with_not_found() {
    let root = digest_of(SHA256, &directory("root", &[]));
    let mut walk = TreeWalk::new(Arc::new(MemoryStore::default()), root);
    let error = walk.next(usize::MAX).await.unwrap_err();
    assert!(matches!(error, TreeError::Store(Error::NotFound(digest)) if digest == root));
}

#[tokio::test]
async fn the_empty_directory_is_a_tree() {
    let memory = Arc::new(MemoryStore::default());
    let mut walk = TreeWalk::new(memory, SHA256.empty());
    let found = walked(&mut walk).await.unwrap();
    assert_eq!(found, [(SHA256.empty(), Directory::default())]);
}

#[tokio::test]
async fn the_error_for_a_malformed_directory_names_the_blob() {
    let malformed = [
        b"not a directory".to_vec(),
        // A directory node without a digest.
        Directory {
            directories: vec![DirectoryNode::default()],
            ..Directory::default()
        }
        .encode_to_vec(),
        // A file node with a digest of another function.
        Directory {
            files: vec![FileNode {
                digest: Some(DigestFunction::Sha1.digest(b"").to_proto()),
                ..FileNode::default()
            }],
            ..Directory::default()
        }
        .encode_to_vec(),
        // A name that is not UTF-8.
        [
            b"\x1a\x04\x0a\x02\xff\xff".as_slice(),
            &directory("x", &[]).encode_to_vec(),
        ]
        .concat(),
    ];
    for content in malformed {
        let memory = Arc::new(MemoryStore::default());
        let bad = SHA256.digest(&content);
        memory.put(&bad, Blob::Bytes(content.into())).await.unwrap();
        let root = store(&memory, SHA256, &directory("root", &[bad])).await;
        let mut walk = TreeWalk::new(memory, root);
        let error = walked(&mut walk).await.unwrap_err();
        assert!(
            matches!(&error, TreeError::Malformed { blob, .. } if *blob == bad),
            "{error}"
        );
        assert!(error.to_string().contains(&bad.to_string()), "{error}");
    }
}

#[tokio::test]
async fn a_directory_too_large_for_a_message_is_refused() {
    let memory = Arc::new(MemoryStore::default());
    let size = usize::try_from(MAX_DIRECTORY_BYTES).unwrap() + 1;
    let content = Bytes::from(vec![0; size]);
    let root = SHA256.digest(&content);
    memory.put(&root, Blob::Bytes(content)).await.unwrap();
    let error = TreeWalk::new(memory, root).next(1).await.unwrap_err();
    assert!(
        matches!(error, TreeError::TooLarge(digest) if digest == root),
        "{error}"
    );
}

#[test]
fn a_directory_that_would_take_too_much_memory_is_refused_before_decoding() {
    // An empty node takes two bytes on the wire and over a hundred in memory.
    let nodes = Bytes::from([0x0a, 0x00].repeat(1 << 20));
    let why = decode(nodes).unwrap_err();
    assert!(why.contains("bytes of memory"), "{why}");

    // So do the properties of a single node, and those of the directory itself.
    let properties = [0x0a, 0x00].repeat(1_500_000);
    for (prefix, field) in [(vec![0x0a], 0x32), (vec![0x1a], 0x22), (Vec::new(), 0x2a)] {
        let mut node = BytesMut::from([field].as_slice());
        prost::encode_length_delimiter(properties.len(), &mut node).unwrap();
        node.put_slice(&properties);
        let mut content = BytesMut::from(prefix.as_slice());
        if !prefix.is_empty() {
            prost::encode_length_delimiter(node.len(), &mut content).unwrap();
        }
        content.put_slice(&node);
        let why = decode(content.freeze()).unwrap_err();
        assert!(why.contains("bytes of memory"), "{why}");
    }
}

#[test]
fn the_largest_real_directory_is_decoded() {
    let digest = SHA256.empty();
    let files = (0..300_000)
        .map(|n| file(&format!("some-object-file-{n:06}.o"), &digest))
        .collect();
    let expected = Directory {
        files,
        ..Directory::default()
    };
    let encoded = Bytes::from(expected.encode_to_vec());
    assert!(encoded.len() > 24 << 20);
    assert_eq!(decode(encoded), Ok(expected));
}

/// A store that must not be read.
#[derive(Debug)]
struct Unread;

#[async_trait]
impl BlobStore for Unread {
    async fn find_missing(&self, _: &[Digest]) -> Result<Vec<Digest>> {
        panic!("blobs were looked up")
    }

    async fn get(&self, _: &Digest, _: u64) -> Result<Blob> {
        panic!("a blob was read")
    }

    async fn get_batch(&self, _: &[Digest]) -> Vec<Result<Bytes>> {
        panic!("a batch was read")
    }

    async fn put(&self, _: &Digest, _: Blob) -> Result<Put> {
        panic!("a blob was stored")
    }
}

#[tokio::test]
async fn a_walk_without_directories_reads_nothing() {
    let mut walk = TreeWalk::below(Arc::new(Unread), SHA256, &[]);
    assert!(walk.next_nodes().await.unwrap().is_none());
}

#[test]
fn a_queued_digest_takes_at_most_64_bytes() {
    let mut queue = DigestQueue::new(SHA256);
    let mut last_table = 0;
    for number in 0_u64..120_000 {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_le_bytes());
        queue.push(&Digest::from_hash(SHA256, &hash, number).unwrap());
        let (records, table) = queue.memory();
        // While the table grows, both the old and the new one are allocated.
        let old_table = if table > last_table { last_table } else { 0 };
        last_table = table;
        let count = usize::try_from(number).unwrap() + 1;
        let peak = records + table + old_table;
        assert!(
            count < 2000 || peak <= 64 * count,
            "{peak} bytes for {count}"
        );
    }
    assert_eq!(queue.len(), 120_000);
}

/// Generates a tree of up to forty directories. Each has some of the earlier ones as children.
fn shape() -> impl Strategy<Value = Vec<(Vec<prop::sample::Index>, bool)>> {
    let children = prop::collection::vec(any::<prop::sample::Index>(), 0..5);
    prop::collection::vec((children, prop::bool::weighted(0.8)), 1..40)
}

/// Stores the tree without some directories below the root. Returns all directories.
async fn build(
    memory: &MemoryStore,
    shape: &[(Vec<prop::sample::Index>, bool)],
) -> Vec<(Digest, Directory, bool)> {
    let mut made: Vec<(Digest, Directory, bool)> = Vec::new();
    for (number, (children, present)) in shape.iter().enumerate() {
        let children: Vec<Digest> = children
            .iter()
            .filter(|_| number > 0)
            .map(|index| made[index.index(number)].0)
            .collect();
        let new = directory(&number.to_string(), &children);
        let present = *present || number == shape.len() - 1;
        let digest = digest_of(SHA256, &new);
        if present {
            store(memory, SHA256, &new).await;
        }
        made.push((digest, new, present));
    }
    made
}

/// Returns the expected order of a walk from the last directory.
fn expected(made: &[(Digest, Directory, bool)]) -> Vec<Digest> {
    let mut queue = vec![made.last().unwrap().0];
    let (mut seen, mut at) = (HashSet::from([queue[0]]), 0);
    let mut found = Vec::new();
    while at < queue.len() {
        let (digest, directory, present) = made.iter().find(|(d, ..)| *d == queue[at]).unwrap();
        at += 1;
        if *present {
            found.push(*digest);
            for node in &directory.directories {
                let child = Digest::from_field(Some(SHA256), node.digest.as_ref()).unwrap();
                if seen.insert(child) {
                    queue.push(child);
                }
            }
        }
    }
    found
}

proptest! {
    #[test]
    fn a_walk_visits_directories_in_the_order_of_a_breadth_first_search(shape in shape()) {
        let memory = Arc::new(MemoryStore::default());
        let made = block_on(build(&memory, &shape));
        let root = made.last().unwrap().0;
        let found = block_on(walked(&mut TreeWalk::new(memory, root))).unwrap();
        let digests: Vec<_> = found.iter().map(|(digest, _)| *digest).collect();
        prop_assert_eq!(digests, expected(&made));
        for (digest, directory) in found {
            prop_assert_eq!(digest_of(SHA256, &directory), digest);
        }
    }

    #[test]
    fn a_walk_resumes_at_any_position(
        shape in shape(),
        stop in any::<prop::sample::Index>(),
    ) {
        let memory = Arc::new(MemoryStore::default());
        let made = block_on(build(&memory, &shape));
        let root = made.last().unwrap().0;
        let mut whole = TreeWalk::new(Arc::clone(&memory) as _, root);
        for _ in 0..stop.index(shape.len() + 1) {
            block_on(whole.next(usize::MAX)).unwrap();
        }
        let position = whole.position();
        let mut resumed = TreeWalk::new(memory, root);
        block_on(resumed.skip_to(position)).unwrap();
        let rest = block_on(walked(&mut whole)).unwrap();
        prop_assert_eq!(&block_on(walked(&mut resumed)).unwrap(), &rest);
        // Also a walk that has passed the position returns to it.
        whole.return_to(position);
        prop_assert_eq!(block_on(walked(&mut whole)).unwrap(), rest);
    }
}
