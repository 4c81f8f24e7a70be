mod large;

use std::collections::HashSet;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message as _;
use reapi::v2::{Directory, DirectoryNode, FileNode, OutputDirectory, OutputFile, Tree};

use super::*;
use crate::{ActionCacheExt as _, Blob, DigestFunction, Error, MemoryStore, Put, outputs::BATCH};

const SHA256: DigestFunction = DigestFunction::Sha256;

/// A store in memory that records lookups, and may be unreachable.
#[derive(Debug, Default)]
struct Recording {
    inner: MemoryStore,
    lookups: Mutex<Vec<Vec<Digest>>>,
    down: bool,
    /// A blob that is evicted right after it was reported present.
    evicted: Option<Digest>,
}

impl Recording {
    fn lookups(&self) -> Vec<Vec<Digest>> {
        self.lookups.lock().clone()
    }

    async fn add(&self, function: DigestFunction, content: impl Into<Bytes>) -> Digest {
        let content = content.into();
        let digest = function.digest(&content);
        BlobStore::put(self, &digest, Blob::Bytes(content))
            .await
            .unwrap();
        digest
    }
}

#[async_trait]
impl BlobStore for Recording {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        if self.down {
            return Err(Error::Unavailable("down".to_owned()));
        }
        self.lookups.lock().push(digests.to_vec());
        self.inner.find_missing(digests).await
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        if self.evicted.as_ref() == Some(digest) {
            return Err(Error::NotFound(*digest));
        }
        BlobStore::get(&self.inner, digest, offset).await
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        BlobStore::put(&self.inner, digest, blob).await
    }
}

fn memory() -> Budget {
    Budget::memory("memory for the test", 1 << 20)
}

/// Reports whether `result` is a hit while its outputs are in `store`.
async fn is_hit(store: &Arc<Recording>, function: DigestFunction, result: &ActionResult) -> bool {
    let results = Arc::new(MemoryStore::default());
    let action = function.digest(b"action");
    let cache = CompletenessChecking::new(results, Arc::clone(store) as _, memory());
    cache.put("main", &action, result.clone()).await.unwrap();
    let found = cache.find("main", &action).await.unwrap();
    assert!(found.is_none() || found.as_ref() == Some(result));
    found.is_some()
}

fn file(digest: &Digest) -> FileNode {
    FileNode {
        name: digest.hex(),
        digest: Some(digest.to_proto()),
        ..FileNode::default()
    }
}

fn output_file(digest: &Digest) -> OutputFile {
    OutputFile {
        path: "out".to_owned(),
        digest: Some(digest.to_proto()),
        ..OutputFile::default()
    }
}

fn output_directory(tree: Option<&Digest>, root: Option<&Digest>) -> OutputDirectory {
    OutputDirectory {
        path: "dir".to_owned(),
        tree_digest: tree.map(Digest::to_proto),
        root_directory_digest: root.map(Digest::to_proto),
        ..OutputDirectory::default()
    }
}

/// Creates a result with an output of every kind, and returns its blobs.
async fn full_result(
    store: &Recording,
    function: DigestFunction,
) -> (ActionResult, Vec<(&'static str, Digest)>) {
    let add = async |content: &'static str| store.add(function, content).await;
    let (plain, stdout, stderr) = (add("plain").await, add("stdout").await, add("stderr").await);
    let (in_root, in_child) = (add("file in root").await, add("file in child").await);
    let (below_root, below_child) = (add("file below root").await, add("file below child").await);

    let tree = Tree {
        root: Some(Directory {
            files: vec![file(&in_root)],
            ..Directory::default()
        }),
        children: vec![Directory {
            files: vec![file(&in_child)],
            ..Directory::default()
        }],
    };
    let tree = store.add(function, tree.encode_to_vec()).await;
    let child = Directory {
        files: vec![file(&below_child)],
        ..Directory::default()
    };
    let child = store.add(function, child.encode_to_vec()).await;
    let root = Directory {
        files: vec![file(&below_root)],
        directories: vec![DirectoryNode {
            name: "child".to_owned(),
            digest: Some(child.to_proto()),
        }],
        ..Directory::default()
    };
    let root = store.add(function, root.encode_to_vec()).await;

    let result = ActionResult {
        output_files: vec![output_file(&plain)],
        output_directories: vec![
            output_directory(Some(&tree), None),
            output_directory(None, Some(&root)),
            output_directory(Some(&tree), Some(&root)),
        ],
        stdout_digest: Some(stdout.to_proto()),
        stderr_digest: Some(stderr.to_proto()),
        ..ActionResult::default()
    };
    let needed = vec![
        ("output file", plain),
        ("stdout", stdout),
        ("stderr", stderr),
        ("tree", tree),
        ("file in a tree's root", in_root),
        ("file in a tree's child", in_child),
        ("root directory", root),
        ("directory below a root directory", child),
        ("file in a root directory", below_root),
        ("file below a root directory", below_child),
    ];
    (result, needed)
}

#[tokio::test]
async fn a_result_is_a_hit_only_while_every_output_is_present() {
    for function in DigestFunction::ALL {
        let store = Arc::new(Recording::default());
        let (result, needed) = full_result(&store, function).await;
        assert!(
            is_hit(&store, function, &result).await,
            "{function}: all are present"
        );
        for (what, digest) in needed {
            let content = store
                .get(&digest, 0)
                .await
                .unwrap()
                .into_bytes()
                .await
                .unwrap();
            store.inner.remove(&digest);
            assert!(
                !is_hit(&store, function, &result).await,
                "{function}: {what} is missing"
            );
            store.add(function, content).await;
        }
        assert!(
            is_hit(&store, function, &result).await,
            "{function}: all are present again"
        );
    }
}

#[tokio::test]
async fn a_hit_looks_up_and_leases_every_output() {
    let store = Arc::new(Recording::default());
    let (result, needed) = full_result(&store, SHA256).await;
    assert!(is_hit(&store, SHA256, &result).await);
    let lookups: HashSet<_> = store.lookups().into_iter().flatten().collect();
    assert_eq!(
        lookups,
        needed.into_iter().map(|(_, digest)| digest).collect()
    );
}

#[tokio::test]
async fn a_result_without_blobs_is_a_hit() {
    let store = Arc::new(Recording::default());
    assert!(is_hit(&store, SHA256, &ActionResult::default()).await);
    let inline = ActionResult {
        stdout_raw: "text".into(),
        ..ActionResult::default()
    };
    assert!(is_hit(&store, SHA256, &inline).await);
    let empty = ActionResult {
        output_files: vec![output_file(&SHA256.empty())],
        ..ActionResult::default()
    };
    assert!(is_hit(&store, SHA256, &empty).await);
    assert!(
        store.lookups().len() < 3,
        "results without blobs cause no lookup"
    );
}

#[tokio::test]
async fn inlined_content_does_not_replace_a_missing_output() {
    let store = Arc::new(Recording::default());
    let digest = SHA256.digest(b"text");
    let mut output = output_file(&digest);
    output.contents = "text".into();
    let result = ActionResult {
        output_files: vec![output],
        ..ActionResult::default()
    };
    assert!(!is_hit(&store, SHA256, &result).await);
    let result = ActionResult {
        stdout_raw: "text".into(),
        stdout_digest: Some(digest.to_proto()),
        ..ActionResult::default()
    };
    assert!(!is_hit(&store, SHA256, &result).await);
    store.add(SHA256, "text").await;
    assert!(is_hit(&store, SHA256, &result).await);
}

#[tokio::test]
async fn a_malformed_result_is_a_miss() {
    let store = Arc::new(Recording::default());
    let garbage = store.add(SHA256, "neither a tree nor a directory").await;
    let sha1 = store.add(DigestFunction::Sha1, "content").await;
    let nameless = Directory {
        files: vec![FileNode::default()],
        ..Directory::default()
    };
    let tree = Tree {
        root: Some(nameless.clone()),
        children: Vec::new(),
    };
    let tree = store.add(SHA256, tree.encode_to_vec()).await;
    let nameless = store.add(SHA256, nameless.encode_to_vec()).await;

    let directory = |tree, root| ActionResult {
        output_directories: vec![output_directory(tree, root)],
        ..ActionResult::default()
    };
    let files = |file: OutputFile| ActionResult {
        output_files: vec![file],
        ..ActionResult::default()
    };
    let results = [
        ("a file without digest", files(OutputFile::default())),
        (
            "a file with a digest of another function",
            files(output_file(&sha1)),
        ),
        (
            "an unset stdout digest",
            ActionResult {
                stdout_digest: Some(reapi::v2::Digest::default()),
                ..ActionResult::default()
            },
        ),
        ("a directory without digests", directory(None, None)),
        ("a blob that is not a tree", directory(Some(&garbage), None)),
        (
            "a blob that is not a directory",
            directory(None, Some(&garbage)),
        ),
        (
            "a tree with a file without digest",
            directory(Some(&tree), None),
        ),
        (
            "a directory with a file without digest",
            directory(None, Some(&nameless)),
        ),
    ];
    for (what, result) in results {
        assert!(!is_hit(&store, SHA256, &result).await, "{what}");
    }
}

#[tokio::test]
async fn the_outputs_before_a_missing_or_malformed_one_are_leased() {
    let store = Arc::new(Recording::default());
    let found = store.add(SHA256, "found").await;
    let missing = DirectoryNode {
        name: "missing".to_owned(),
        digest: Some(SHA256.digest(b"missing").to_proto()),
    };
    let root = Directory {
        files: vec![file(&found)],
        directories: vec![missing],
        ..Directory::default()
    };
    let tree = Tree {
        root: Some(Directory {
            directories: Vec::new(),
            ..root.clone()
        }),
        children: Vec::new(),
    };
    let tree = [tree.encode_to_vec(), vec![0xff]].concat();
    let (root, tree) = (
        store.add(SHA256, root.encode_to_vec()).await,
        store.add(SHA256, tree).await,
    );
    for (tree, root) in [(None, Some(&root)), (Some(&tree), None)] {
        store.lookups.lock().clear();
        let result = ActionResult {
            output_directories: vec![output_directory(tree, root)],
            ..ActionResult::default()
        };
        assert!(!is_hit(&store, SHA256, &result).await);
        let lookups = store.lookups().concat();
        assert!(lookups.contains(&found), "{lookups:?}");
    }
}

#[tokio::test]
async fn the_files_of_a_large_tree_are_looked_up_in_batches() {
    let store = Arc::new(Recording::default());
    let mut files = Vec::new();
    for number in 0..2500 {
        files.push(file(&store.add(SHA256, number.to_string()).await));
    }
    let last = SHA256.digest(b"2499");
    let tree = Tree {
        root: None,
        children: files
            .chunks(30)
            .map(|files| Directory {
                files: files.to_vec(),
                ..Directory::default()
            })
            .collect(),
    };
    let tree = store.add(SHA256, tree.encode_to_vec()).await;
    let result = ActionResult {
        output_directories: vec![output_directory(Some(&tree), None)],
        ..ActionResult::default()
    };
    assert!(is_hit(&store, SHA256, &result).await);
    let sizes: Vec<_> = store.lookups().iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, BATCH, BATCH, 500]);
    store.inner.remove(&last);
    assert!(!is_hit(&store, SHA256, &result).await);
}

#[tokio::test]
async fn a_put_leases_the_outputs_only_if_configured() {
    for leases in [false, true] {
        let store = Arc::new(Recording::default());
        let (result, needed) = full_result(&store, SHA256).await;
        let results = Arc::new(MemoryStore::default());
        let cache = CompletenessChecking::new(results, Arc::clone(&store) as _, memory());
        let cache = if leases { cache.leasing_puts() } else { cache };
        let action = SHA256.digest(b"action");
        cache.put("main", &action, result).await.unwrap();
        let lookups = store.lookups().concat();
        let leased = needed.iter().filter(|(_, digest)| lookups.contains(digest));
        assert_eq!(leased.count(), if leases { needed.len() } else { 0 });
    }
}

#[tokio::test]
async fn a_result_whose_tree_is_evicted_during_the_lookup_is_a_miss() {
    let mut store = Recording::default();
    let (result, needed) = full_result(&store, SHA256).await;
    for (what, digest) in needed {
        if ["tree", "root directory"].contains(&what) {
            store.evicted = Some(digest);
            let shared = Arc::new(store);
            assert!(!is_hit(&shared, SHA256, &result).await, "{what}");
            store = Arc::into_inner(shared).unwrap();
        }
    }
}

#[tokio::test]
async fn a_lookup_fails_while_the_store_is_unavailable() {
    let results = Arc::new(MemoryStore::default());
    let action = SHA256.digest(b"action");
    let store = Recording {
        down: true,
        ..Recording::default()
    };
    let cache = CompletenessChecking::new(results, Arc::new(store), memory());
    assert!(cache.find("main", &action).await.unwrap().is_none());
    let result = ActionResult {
        stdout_digest: Some(SHA256.empty().to_proto()),
        ..ActionResult::default()
    };
    cache.put("main", &action, result).await.unwrap();
    let error = cache.find("main", &action).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
}
