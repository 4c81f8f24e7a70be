//! The memory for trees, however many results name them.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use crate::common::{
    GIB, Proxy, content,
    outage::{action, degrading, down, left, put},
    sha256,
};
use bytes::Bytes;
use futures::future::{join, join_all};
use gorego_storage::{ActionCache, ActionCacheExt as _, Blob, BlobStore, Digest};
use reapi::v2::{ActionResult, Directory, OutputDirectory, SymlinkNode, Tree};
use tokio::time::sleep;
use tonic::Code;

/// The size of a tree, more than the 1 MiB in memory of one at a time.
const LARGE: usize = 2 << 20;
const MANY: u8 = 10;
/// The numbers of trees that fit into the memory for uploads of results, and into that for lookups.
const TRANSFER_TREES: u64 = 4;
const LOOKUP_TREES: u64 = 8;

fn tree(letter: &str) -> Bytes {
    let link = SymlinkNode {
        target: letter.repeat(LARGE),
        ..SymlinkNode::default()
    };
    let tree = Tree {
        root: Some(Directory {
            symlinks: vec![link],
            ..Directory::default()
        }),
        children: Vec::new(),
    };
    Bytes::from(prost::Message::encode_to_vec(&tree))
}

fn result(tree: &Digest) -> ActionResult {
    let directory = OutputDirectory {
        tree_digest: Some(tree.to_proto()),
        ..OutputDirectory::default()
    };
    ActionResult {
        output_directories: vec![directory],
        ..ActionResult::default()
    }
}

fn name(number: u8) -> Digest {
    sha256(&content(number, 20))
}

/// Waits until all gets are withheld, and releases them. Returns their number.
async fn held(proxy: &Proxy) -> u64 {
    // Less than the time that a call waits for memory.
    sleep(Duration::from_secs(20)).await;
    let gets = proxy.backing.gets.load(SeqCst);
    proxy.backing.release();
    gets
}

#[tokio::test(start_paused = true)]
async fn new_results_behind_pending_blobs_read_few_trees_at_once() {
    let proxy = down().await;
    let waits = put(&proxy, &content(1, 10)).await;
    let tree = proxy.backing.has(&tree("a")).await;
    proxy.backing.script(|script| {
        script.refused = vec![(waits, Code::ResourceExhausted)];
        script.down = false;
    });
    proxy.backing.hold_at(0);
    let actions = proxy.actions();
    let puts = (0..MANY).map(|number| {
        let (actions, name) = (actions.clone(), name(number));
        async move { actions.put("", &name, result(&tree)).await }
    });
    let (puts, gets) = join(join_all(puts), held(&proxy)).await;
    assert_eq!(gets, TRANSFER_TREES);
    for put in puts {
        put.unwrap();
    }
    assert_eq!(proxy.backing.gets.load(SeqCst), MANY.into());
}

#[tokio::test(start_paused = true)]
async fn a_drain_reads_few_trees_at_once_and_delays_no_lookup() {
    let proxy = down().await;
    let there = proxy.backing.has(&tree("a")).await;
    let actions = proxy.actions();
    for number in 0..MANY {
        actions
            .put("", &name(number), result(&there))
            .await
            .unwrap();
    }
    let tree = tree("b");
    let here = sha256(&tree);
    BlobStore::put(&*proxy.local, &here, Blob::Bytes(tree))
        .await
        .unwrap();
    ActionCache::put(&*proxy.local, "", &action(), result(&here))
        .await
        .unwrap();
    let before = proxy.backing.gets.load(SeqCst);
    proxy.backing.hold_at(0);
    proxy.backing.script(|script| script.down = false);
    sleep(Duration::from_mins(1)).await;
    assert_eq!(proxy.backing.gets.load(SeqCst), before + TRANSFER_TREES);
    let got = actions.find("", &action()).await.unwrap();
    assert!(got.is_some());
    proxy.backing.release();
    left(&proxy, 0).await;
}

#[tokio::test(start_paused = true)]
async fn lookups_of_local_and_remote_results_share_one_budget() {
    let proxy = Proxy::with(degrading(), GIB).await;
    for number in 0..MANY {
        let tree = proxy
            .backing
            .has(&tree(&char::from(b'a' + number).to_string()))
            .await;
        let results: &dyn ActionCache = if number % 2 == 0 {
            &*proxy.local
        } else {
            &proxy.backing.memory
        };
        results.put("", &name(number), result(&tree)).await.unwrap();
    }
    proxy.backing.hold_at(0);
    let actions = proxy.actions();
    let gets = (0..MANY).map(|number| {
        let (actions, name) = (actions.clone(), name(number));
        async move { actions.find("", &name).await }
    });
    let (found, gets) = join(join_all(gets), held(&proxy)).await;
    // Half of the actions also fetch their result.
    assert_eq!(gets, LOOKUP_TREES + u64::from(MANY / 2));
    assert!(found.into_iter().all(|found| found.unwrap().is_some()));
}
