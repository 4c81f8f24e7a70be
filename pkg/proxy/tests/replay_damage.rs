//! Content of the backing cache that is damaged on its way decides nothing about what waits.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{
    CHUNK, Proxy, content,
    outage::{action, backing_put, backing_result, down, left, put, put_result, result},
    sha256,
};
use gorego_storage::Digest;
use reapi::v2::{ActionResult, Directory, FileNode, OutputDirectory, Tree};
use tokio::time::sleep;

/// In one piece, and in several.
const LENGTHS: [usize; 2] = [10, CHUNK * 3];

/// An encoded tree of more than `len` bytes that holds that file.
fn tree(file: &Digest, len: usize) -> Bytes {
    let node = FileNode {
        name: "x".repeat(len),
        digest: Some(file.to_proto()),
        ..FileNode::default()
    };
    let root = Directory {
        files: vec![node],
        ..Directory::default()
    };
    let tree = Tree {
        root: Some(root),
        ..Tree::default()
    };
    Bytes::from(prost::Message::encode_to_vec(&tree))
}

/// A result with such a tree, which only the backing cache has.
async fn with_tree(proxy: &Proxy, mut result: ActionResult, tree: &Bytes) -> ActionResult {
    let tree = proxy.backing.has(tree).await;
    result.output_directories.push(OutputDirectory {
        tree_digest: Some(tree.to_proto()),
        ..OutputDirectory::default()
    });
    result
}

/// The backing cache is back, and for a while all that it gives is damaged on its way.
async fn damaged_for_a_while(proxy: &Proxy) {
    proxy.backing.script(|script| {
        script.corrupt = true;
        script.down = false;
    });
    sleep(Duration::from_mins(5)).await;
    assert_eq!(proxy.outbox.depth().borrow().entries, 1);
}

async fn whole_again(proxy: &Proxy) {
    proxy.backing.script(|script| script.corrupt = false);
    left(proxy, 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_newer_result_that_cannot_be_looked_at_stays() {
    for len in LENGTHS {
        let proxy = down().await;
        let output = put(&proxy, &content(1, 10)).await;
        put_result(&proxy, &action(), result(&output, 1, Some(1))).await;
        let file = proxy.backing.has(&content(2, 10)).await;
        let theirs = result(&file, 2, Some(2));
        let theirs = with_tree(&proxy, theirs, &tree(&file, len)).await;
        backing_put(&proxy, &theirs).await;
        damaged_for_a_while(&proxy).await;
        assert_eq!(backing_result(&proxy).await.unwrap().exit_code, 2);
        whole_again(&proxy).await;
        assert_eq!(backing_result(&proxy).await.unwrap().exit_code, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_waits_until_it_is_known_that_theirs_is_useless() {
    for len in LENGTHS {
        let proxy = down().await;
        let output = put(&proxy, &content(1, 10)).await;
        put_result(&proxy, &action(), result(&output, 1, None)).await;
        let gone = sha256(&content(2, 10));
        let output = proxy.backing.has(&content(1, 10)).await;
        let theirs = result(&output, 2, None);
        let theirs = with_tree(&proxy, theirs, &tree(&gone, len)).await;
        backing_put(&proxy, &theirs).await;
        damaged_for_a_while(&proxy).await;
        assert_eq!(backing_result(&proxy).await.unwrap().exit_code, 2);
        whole_again(&proxy).await;
        assert_eq!(backing_result(&proxy).await.unwrap().exit_code, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_waits_until_what_it_names_can_be_looked_at() {
    for len in LENGTHS {
        let proxy = down().await;
        let output = put(&proxy, &content(1, 10)).await;
        let ours = result(&output, 1, None);
        let ours = with_tree(&proxy, ours, &tree(&output, len)).await;
        put_result(&proxy, &action(), ours).await;
        damaged_for_a_while(&proxy).await;
        whole_again(&proxy).await;
        assert!(backing_result(&proxy).await.is_some());
    }
}
