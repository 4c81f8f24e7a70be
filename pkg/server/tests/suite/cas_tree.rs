//! `GetTree`.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::common::*;
use async_trait::async_trait;
use gorego_server::{Options, Stores};
use gorego_storage::{Blob, BlobStore, Digest, MemoryStore, Put, Result as StoreResult};
use prost::Message as _;
use reapi::v2::{Directory, DirectoryNode, GetTreeRequest};
use tonic::{Code, Status};

fn directory(children: &[(&str, Digest)]) -> Directory {
    Directory {
        directories: children
            .iter()
            .map(|(name, digest)| DirectoryNode {
                name: (*name).to_owned(),
                digest: Some(digest.to_proto()),
            })
            .collect(),
        ..Directory::default()
    }
}

async fn store(server: &Server, children: &[(&str, Digest)]) -> Digest {
    server.has(&directory(children).encode_to_vec()).await
}

/// The directories of one call, and its token for the next one.
async fn get(
    server: &Server,
    root: &Digest,
    page_size: i32,
    page_token: &str,
) -> Result<(Vec<Directory>, String), Status> {
    let request = GetTreeRequest {
        root_digest: Some(root.to_proto()),
        page_size,
        page_token: page_token.to_owned(),
        ..GetTreeRequest::default()
    };
    let mut stream = server.cas().await.get_tree(request).await?.into_inner();
    let mut directories = Vec::new();
    let mut token = String::new();
    while let Some(message) = stream.message().await? {
        directories.extend(message.directories);
        token = message.next_page_token;
    }
    Ok((directories, token))
}

#[tokio::test]
async fn a_tree_is_returned_root_first_with_every_directory_once() {
    let server = Server::start().await;
    let leaf = store(&server, &[("nothing", sha256(b""))]).await;
    let left = store(&server, &[("leaf", leaf)]).await;
    let right = store(&server, &[("leaf", leaf), ("left", left)]).await;
    let root = store(&server, &[("l", left), ("r", right)]).await;
    let (found, token) = get(&server, &root, 0, "").await.unwrap();
    assert_eq!(token, "");
    assert_eq!(found[0], directory(&[("l", left), ("r", right)]));
    // The root, both sides, the leaf, and the empty directory below it.
    assert_eq!(found.len(), 5);
    for (at, one) in found.iter().enumerate() {
        assert!(!found[at + 1..].contains(one), "{one:?} comes twice");
    }
}

#[tokio::test]
async fn missing_children_of_a_tree_are_left_out() {
    let server = Server::start().await;
    let here = store(&server, &[("gone", sha256(b"gone, too"))]).await;
    let root = store(&server, &[("gone", sha256(b"gone")), ("here", here)]).await;
    let (found, _) = get(&server, &root, 0, "").await.unwrap();
    assert_eq!(found.len(), 2);
}

#[tokio::test]
async fn a_missing_root_is_not_found() {
    let server = Server::start().await;
    let root = sha256(b"absent");
    let outcome = get(&server, &root, 0, "").await;
    assert_refused(outcome, Code::NotFound, &root.hex());
}

#[tokio::test]
async fn a_blob_that_is_no_directory_is_refused_by_name() {
    let server = Server::start().await;
    let nonsense = server.has(b"\xff\xff\xff no directory").await;
    let outcome = get(&server, &nonsense, 0, "").await;
    assert_refused(outcome, Code::InvalidArgument, &nonsense.hex());
    let root = store(&server, &[("nonsense", nonsense)]).await;
    let outcome = get(&server, &root, 0, "").await;
    assert_refused(outcome, Code::InvalidArgument, &nonsense.hex());
}

#[tokio::test]
async fn the_pages_of_a_tree_add_up_to_the_tree() {
    let server = Server::start().await;
    let mut names = Vec::new();
    for number in 0_u32..25 {
        let child = store(&server, &[("x", sha256(&number.to_le_bytes()))]).await;
        names.push((format!("{number}"), child));
    }
    let children: Vec<_> = names
        .iter()
        .map(|(name, child)| (name.as_str(), *child))
        .collect();
    let root = store(&server, &children).await;
    let (whole, _) = get(&server, &root, 0, "").await.unwrap();
    assert_eq!(whole.len(), 26);
    for page_size in [1_i32, 7, 13, 26, 100] {
        let mut pages = Vec::new();
        let mut token = String::new();
        loop {
            let (page, next) = get(&server, &root, page_size, &token).await.unwrap();
            assert!(page.len() <= page_size.try_into().unwrap());
            pages.extend(page);
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!(pages, whole, "pages of {page_size}");
    }
}

/// A store that counts the reads of each blob.
#[derive(Debug, Default)]
struct Counting {
    store: Arc<MemoryStore>,
    reads: AtomicU64,
}

#[async_trait]
impl BlobStore for Counting {
    async fn find_missing(&self, digests: &[Digest]) -> StoreResult<Vec<Digest>> {
        self.store.find_missing(digests).await
    }

    async fn get(&self, digest: &Digest, offset: u64) -> StoreResult<Blob> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.store.get(digest, offset).await
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> StoreResult<Put> {
        self.store.put(digest, blob).await
    }
}

/// A root with this many children, different for each `seed`.
async fn store_wide(server: &Server, children: u32, seed: &str) -> Digest {
    let mut names = Vec::new();
    for number in 0..children {
        let name = format!("{seed}{number}");
        let child = store(server, &[(&name, sha256(b""))]).await;
        names.push((name, child));
    }
    let children: Vec<_> = names
        .iter()
        .map(|(name, child)| (name.as_str(), *child))
        .collect();
    store(server, &children).await
}

#[tokio::test]
async fn a_page_reads_its_own_directories_alone() {
    const CHILDREN: u32 = 100;
    let counting = Arc::new(Counting::default());
    let memory = Arc::clone(&counting.store);
    let stores = Stores {
        blobs: Arc::clone(&counting) as _,
        uploads: Arc::<MemoryStore>::clone(&memory),
        actions: Arc::<MemoryStore>::clone(&memory),
    };
    let mut server = Server::over(stores, Options::default()).await;
    server.store = memory;
    let root = store_wide(&server, CHILDREN, "").await;
    // Two clients at a time, on different pages.
    let mut tokens = [String::new(), String::new()];
    let mut found = [0, 0];
    for (size, client) in [(10, 1), (1, 0), (1, 0), (3, 1)]
        .into_iter()
        .chain([(1, 0); 200])
        .chain([(1, 1); 200])
    {
        if found[client] > 0 && tokens[client].is_empty() {
            continue;
        }
        let (page, token) = get(&server, &root, size, &tokens[client]).await.unwrap();
        found[client] += page.len();
        tokens[client] = token;
    }
    // The root, the children, and the empty directory below each.
    let directories = u64::from(CHILDREN) + 2;
    assert_eq!(found.map(|found| found as u64), [directories; 2]);
    // Each directory when it is sent, and once more when the page before it looks for a next one.
    let reads = counting.reads.load(Ordering::Relaxed);
    assert!(reads <= 2 * 2 * directories + 20, "{reads} reads");
}

#[tokio::test]
async fn a_page_token_works_twice_and_without_its_walk() {
    let server = Server::start().await;
    let root = store_wide(&server, 10, "").await;
    let (whole, _) = get(&server, &root, 0, "").await.unwrap();
    let (first, token) = get(&server, &root, 4, "").await.unwrap();
    assert_eq!(first, whole[..4]);
    for _ in 0..2 {
        let (second, _) = get(&server, &root, 3, &token).await.unwrap();
        assert_eq!(second, whole[4..7]);
    }
    for number in 0..100 {
        let other = store_wide(&server, 2, &format!("{number}-")).await;
        let (_, token) = get(&server, &other, 1, "").await.unwrap();
        assert_ne!(token, "");
    }
    let (rest, token) = get(&server, &root, 100, &token).await.unwrap();
    assert_eq!((rest.as_slice(), token.as_str()), (&whole[4..], ""));
}

#[tokio::test]
async fn a_large_tree_is_split_into_messages_that_clients_accept() {
    let server = Server::start().await;
    let mut names = Vec::new();
    for number in 0..60_u64 {
        let long = "x".repeat(100_000);
        let child = store(&server, &[(&long, sha256(&number.to_le_bytes()))]).await;
        names.push((format!("{number}"), child));
    }
    let children: Vec<_> = names
        .iter()
        .map(|(name, child)| (name.as_str(), *child))
        .collect();
    let root = store(&server, &children).await;
    let client = server.connect().await;
    let mut client =
        reapi::v2::content_addressable_storage_client::ContentAddressableStorageClient::new(client);
    let request = GetTreeRequest {
        root_digest: Some(root.to_proto()),
        ..GetTreeRequest::default()
    };
    let mut stream = client.get_tree(request).await.unwrap().into_inner();
    let mut found = 0;
    while let Some(message) = stream.message().await.unwrap() {
        found += message.directories.len();
    }
    assert_eq!(found, 61);
}

#[tokio::test]
async fn invalid_page_sizes_and_tokens_are_refused() {
    let server = Server::start().await;
    let child = store(&server, &[]).await;
    let root = store(&server, &[("child", child)]).await;
    let outcome = get(&server, &root, -1, "").await;
    assert_refused(outcome, Code::InvalidArgument, "page_size");
    // The only one that this server gives out for this tree.
    assert_eq!(get(&server, &root, 1, "").await.unwrap().1, "1");
    assert_eq!(get(&server, &root, 1, "1").await.unwrap().0.len(), 1);
    let nonsense = ["nonsense", "-1", "99999999999999999999", "1.5"];
    let spelled_otherwise = ["+1", "01", "0"];
    let past_the_end = ["2", "3", "4000000000"];
    for token in [&nonsense[..], &spelled_otherwise, &past_the_end].concat() {
        let outcome = get(&server, &root, 0, token).await;
        assert_refused(outcome, Code::InvalidArgument, "page_token");
    }
}
