//! Of large trees only so much is in memory at once, however many results name them.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use bytes::Bytes;
use common::{
    GIB, Proxy, content,
    outage::{action, degrading, down, left, put},
    sha256,
};
use futures::future::{join, join_all};
use gorego_storage::{ActionCache, Blob, BlobStore, Digest};
use reapi::v2::{ActionResult, Directory, OutputDirectory, SymlinkNode, Tree};
use tokio::time::sleep;
use tonic::Code;

/// More than half of what may be in memory.
const LARGE: usize = 17 << 20;
const MANY: u8 = 10;

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

/// Waits until nothing goes on any more; how many gets the backing cache had by then, of which it has
/// answered none.
async fn held(proxy: &Proxy) -> u64 {
    // Not for longer than a call waits for its turn.
    sleep(Duration::from_secs(20)).await;
    let gets = proxy.backing.gets.load(SeqCst);
    proxy.backing.let_go();
    gets
}

#[tokio::test(start_paused = true)]
async fn results_that_look_for_what_waits_read_large_trees_one_after_another() {
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
    assert_eq!(gets, 1);
    for put in puts {
        put.unwrap();
    }
    assert_eq!(proxy.backing.gets.load(SeqCst), MANY.into());
}

#[tokio::test(start_paused = true)]
async fn a_replay_does_so_too_and_no_client_waits_for_it() {
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
    assert_eq!(proxy.backing.gets.load(SeqCst), before + 1);
    let got = actions.get("", &action()).await.unwrap();
    assert!(got.is_some());
    proxy.backing.let_go();
    left(&proxy, 0).await;
}

#[tokio::test(start_paused = true)]
async fn results_from_here_and_from_there_share_what_they_may_hold() {
    let proxy = Proxy::with(degrading(), GIB).await;
    let trees = [
        proxy.backing.has(&tree("a")).await,
        proxy.backing.has(&tree("b")).await,
    ];
    let [here, there] = [name(0), name(1)];
    let [ours, theirs] = trees.map(|tree| result(&tree));
    ActionCache::put(&*proxy.local, "", &here, ours)
        .await
        .unwrap();
    ActionCache::put(&proxy.backing.memory, "", &there, theirs)
        .await
        .unwrap();
    proxy.backing.hold_at(0);
    let actions = proxy.actions();
    let gets = join(actions.get("", &here), actions.get("", &there));
    let ((here, there), gets) = join(gets, held(&proxy)).await;
    // One of a result, one of a tree.
    assert_eq!(gets, 2);
    assert!(here.unwrap().is_some() && there.unwrap().is_some());
}
