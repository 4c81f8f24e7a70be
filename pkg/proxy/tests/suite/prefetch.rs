//! Prefetching of outputs.

use std::time::Duration;

use crate::common::{self, CHUNK, Proxy, content, sha256};
use gorego_proxy::Options;
use gorego_storage::{ActionCache, ActionCacheExt, BlobStore, BlobStoreExt as _, Digest};
use reapi::v2::{self, ActionResult, Directory, FileNode, OutputDirectory, OutputFile, Tree};
use tokio::{task, time};

async fn proxy(max_bytes: u64) -> Proxy {
    let options = Options {
        prefetch: true,
        existence_ttl: Duration::ZERO,
        ..common::options()
    };
    Proxy::with(options, max_bytes).await
}

fn action(number: u8) -> Digest {
    sha256(&content(100 + number, 10))
}

fn result(outputs: &[Digest]) -> ActionResult {
    let files = outputs.iter().map(|digest| OutputFile {
        path: digest.hex(),
        digest: Some(digest.to_proto()),
        ..OutputFile::default()
    });
    ActionResult {
        output_files: files.collect(),
        ..ActionResult::default()
    }
}

async fn backing_has(proxy: &Proxy, number: u8, result: &ActionResult) {
    let put = ActionCache::put(&*proxy.backing, "", &action(number), result.clone()).await;
    put.unwrap();
}

async fn until(holds: impl AsyncFn() -> bool) {
    let waited = time::timeout(Duration::from_mins(1), async {
        while !holds().await {
            task::yield_now().await;
        }
    });
    waited.await.unwrap();
}

/// Waits until all of these are in the local tier.
async fn here(proxy: &Proxy, digests: &[Digest]) {
    let here = async || proxy.local.find_missing(digests).await.unwrap().is_empty();
    until(here).await;
}

/// Waits until earlier prefetches have ended: those of later hits, one after the other, have.
async fn all_fetched(proxy: &Proxy) {
    for number in 50..55 {
        let mark = proxy.backing.has(&content(number, 10)).await;
        backing_has(proxy, number, &result(&[mark])).await;
        let hit = proxy.actions().find("", &action(number)).await.unwrap();
        assert!(hit.is_some());
        here(proxy, &[mark]).await;
    }
}

#[tokio::test]
async fn outputs_of_a_hit_are_prefetched() {
    let proxy = proxy(common::GIB).await;
    let actions = proxy.actions();
    let mut outputs = Vec::new();
    for (seed, len) in [(1, 10), (2, 1000), (3, CHUNK * 20), (4, 20)] {
        outputs.push(proxy.backing.has(&content(seed, len)).await);
    }
    let inside = outputs.pop().unwrap();
    let root = Directory {
        files: vec![FileNode {
            name: "inside".to_owned(),
            digest: Some(inside.to_proto()),
            ..FileNode::default()
        }],
        ..Directory::default()
    };
    let tree = Tree {
        root: Some(root),
        children: Vec::new(),
    };
    let tree = prost::Message::encode_to_vec(&tree).into();
    let mut result = result(&outputs);
    result.output_directories = vec![OutputDirectory {
        path: "dir".to_owned(),
        tree_digest: Some(proxy.backing.has(&tree).await.to_proto()),
        ..v2::OutputDirectory::default()
    }];
    backing_has(&proxy, 0, &result).await;
    assert_eq!(actions.find("", &action(0)).await.unwrap(), Some(result));
    outputs.push(inside);
    here(&proxy, &outputs).await;
    assert!(proxy.local.contains(&sha256(&tree)).await.unwrap());
}

#[tokio::test]
async fn outputs_of_a_miss_are_not_prefetched() {
    let proxy = proxy(common::GIB).await;
    let there = proxy.backing.has(&content(1, 10)).await;
    let gone = sha256(&content(2, 10));
    backing_has(&proxy, 0, &result(&[there, gone])).await;
    let got = proxy.actions().find("", &action(0)).await.unwrap();
    assert_eq!(got, None);
    all_fetched(&proxy).await;
    assert!(!proxy.local.contains(&there).await.unwrap());
}

#[tokio::test]
async fn outputs_of_a_revalidated_result_are_not_prefetched_before_a_hit() {
    let proxy = proxy(common::GIB).await;
    let actions = proxy.actions();
    let old = proxy.backing.has(&content(1, 10)).await;
    let new = proxy.backing.has(&content(2, 10)).await;
    let put = ActionCache::put(&*proxy.local, "", &action(0), result(&[old])).await;
    put.unwrap();
    backing_has(&proxy, 0, &result(&[new])).await;
    let got = actions.find("", &action(0)).await.unwrap();
    assert_eq!(got, Some(result(&[old])));
    // It is revalidated in the background.
    let is_new = async || {
        let kept = ActionCacheExt::find(&*proxy.local, "", &action(0)).await;
        kept.unwrap() == Some(result(&[new]))
    };
    until(is_new).await;
    all_fetched(&proxy).await;
    assert!(!proxy.local.contains(&new).await.unwrap());
    actions.find("", &action(0)).await.unwrap();
    here(&proxy, &[new]).await;
}

#[tokio::test]
async fn an_output_too_large_for_the_local_tier_is_not_prefetched() {
    let proxy = proxy(16 << 20).await;
    let mut outputs = Vec::new();
    for (seed, len) in [(1, CHUNK), (2, (1 << 20) + 1), (3, CHUNK)] {
        outputs.push(proxy.backing.has(&content(seed, len)).await);
    }
    backing_has(&proxy, 0, &result(&outputs)).await;
    let hit = proxy.actions().find("", &action(0)).await.unwrap();
    assert!(hit.is_some());
    here(&proxy, &[outputs[0], outputs[2]]).await;
    all_fetched(&proxy).await;
    let missing = proxy.local.find_missing(&outputs).await.unwrap();
    assert_eq!(missing, [outputs[1]]);
}
