//! Pending writes and corrupt content, in transfer from the backing cache or in the outbox.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::common::{
    CHUNK, Proxy, content,
    outage::{
        action, backing_has, backing_put, backing_result, degrading, down, evict_all, files, left,
        name, put, put_result, replayed, result,
    },
    sha256,
};
use bytes::Bytes;
use gorego_storage::{ActionCacheExt as _, BlobStoreExt as _, Digest};
use reapi::v2::{ActionResult, Directory, FileNode, OutputDirectory, Tree};
use tokio::time::sleep;

/// The lengths of a tree in one chunk, and in several.
const LENGTHS: [usize; 2] = [10, CHUNK * 3];

/// Encodes a tree of more than `len` bytes that contains the file.
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

/// Adds a tree that only the backing cache has to a result.
async fn with_tree(proxy: &Proxy, mut result: ActionResult, tree: &Bytes) -> ActionResult {
    let tree = proxy.backing.has(tree).await;
    result.output_directories.push(OutputDirectory {
        tree_digest: Some(tree.to_proto()),
        ..OutputDirectory::default()
    });
    result
}

/// Ends the outage, and corrupts for a while all content that the backing cache returns.
async fn corrupt_for_a_while(proxy: &Proxy) {
    proxy.backing.script(|script| {
        script.corrupt = true;
        script.down = false;
    });
    sleep(Duration::from_mins(5)).await;
    assert_eq!(proxy.outbox.depth().borrow().entries, 1);
}

async fn intact_again(proxy: &Proxy) {
    proxy.backing.script(|script| script.corrupt = false);
    left(proxy, 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_newer_result_whose_tree_is_corrupted_in_transfer_stays() {
    for len in LENGTHS {
        let proxy = down().await;
        let output = put(&proxy, &content(1, 10)).await;
        put_result(&proxy, &action(), result(&output, 1, Some(1))).await;
        let file = proxy.backing.has(&content(2, 10)).await;
        let theirs = result(&file, 2, Some(2));
        let theirs = with_tree(&proxy, theirs, &tree(&file, len)).await;
        backing_put(&proxy, &theirs).await;
        corrupt_for_a_while(&proxy).await;
        assert_eq!(backing_result(&proxy).await.unwrap().exit_code, 2);
        intact_again(&proxy).await;
        assert_eq!(backing_result(&proxy).await.unwrap().exit_code, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_stays_pending_until_the_other_one_is_known_to_be_incomplete() {
    for len in LENGTHS {
        let proxy = down().await;
        let output = put(&proxy, &content(1, 10)).await;
        put_result(&proxy, &action(), result(&output, 1, None)).await;
        let gone = sha256(&content(2, 10));
        let output = proxy.backing.has(&content(1, 10)).await;
        let theirs = result(&output, 2, None);
        let theirs = with_tree(&proxy, theirs, &tree(&gone, len)).await;
        backing_put(&proxy, &theirs).await;
        corrupt_for_a_while(&proxy).await;
        assert_eq!(backing_result(&proxy).await.unwrap().exit_code, 2);
        intact_again(&proxy).await;
        assert_eq!(backing_result(&proxy).await.unwrap().exit_code, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_stays_pending_while_its_tree_is_corrupted_in_transfer() {
    for len in LENGTHS {
        let proxy = down().await;
        let output = put(&proxy, &content(1, 10)).await;
        let ours = result(&output, 1, None);
        let ours = with_tree(&proxy, ours, &tree(&output, len)).await;
        put_result(&proxy, &action(), ours).await;
        corrupt_for_a_while(&proxy).await;
        intact_again(&proxy).await;
        assert!(backing_result(&proxy).await.is_some());
    }
}

/// Returns the path of the pending write at a place in the order.
fn entry(proxy: &Proxy, place: usize) -> PathBuf {
    let dir = proxy.dir.path().join("outbox");
    dir.join(&files(proxy)[place])
}

/// Replaces the content of a file in the outbox.
fn overwrite(path: &Path, content: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, content).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_corrupt_pending_result_affects_no_other() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [Damage; 4] = [
        |file| file[3] ^= 1,
        |file| *file.last_mut().unwrap() ^= 1,
        |file| file.truncate(file.len() / 2),
        Vec::clear,
    ];
    for damage in damages {
        for is_running in [false, true] {
            let proxy = down().await;
            let output = put(&proxy, &content(1, 10)).await;
            put_result(&proxy, &name(1), result(&output, 1, None)).await;
            put_result(&proxy, &action(), result(&output, 2, None)).await;
            let corrupt = entry(&proxy, 1);
            let mut file = fs::read(&corrupt).unwrap();
            damage(&mut file);
            overwrite(&corrupt, &file);
            let proxy = if is_running {
                proxy
            } else {
                let proxy = proxy.restart(degrading()).await;
                assert_eq!(proxy.outbox.depth().borrow().entries, 2);
                proxy
            };
            replayed(&proxy).await;
            assert!(backing_has(&proxy, &output).await);
            assert_eq!(backing_result(&proxy).await.unwrap().exit_code, 2);
            let lost = proxy.backing.memory.find("", &name(1)).await;
            assert_eq!(lost.unwrap(), None);
            assert_eq!(files(&proxy), [""; 0]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_file_in_the_outbox_is_ignored() {
    let proxy = down().await;
    put(&proxy, &content(1, 10)).await;
    let foreign = proxy.dir.path().join("outbox/zz-notes-of-the-operator");
    fs::write(&foreign, "notes").unwrap();
    let proxy = proxy.restart(degrading()).await;
    assert_eq!(proxy.outbox.depth().borrow().entries, 1);
    replayed(&proxy).await;
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "notes");
}

#[tokio::test(start_paused = true)]
async fn a_blob_removed_from_the_local_tier_is_uploaded_from_the_outbox() {
    for is_restarted in [false, true] {
        let proxy = down().await;
        let content = content(1, CHUNK * 3);
        let digest = put(&proxy, &content).await;
        put_result(&proxy, &action(), result(&digest, 1, None)).await;
        let hash = digest.hex();
        let folder = proxy.dir.path().join("cas").join(&hash[..2]);
        fs::remove_dir_all(folder).unwrap();
        let proxy = if is_restarted {
            proxy.crash(degrading(), || {}).await
        } else {
            proxy
        };
        replayed(&proxy).await;
        assert!(backing_has(&proxy, &digest).await);
        assert!(backing_result(&proxy).await.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_corrupt_entry_of_a_removed_blob_affects_no_other() {
    let proxy = down().await;
    let bad = put(&proxy, &content(1, CHUNK)).await;
    let good = put(&proxy, &content(2, 10)).await;
    overwrite(&entry(&proxy, 0), &content(3, CHUNK));
    fs::remove_dir_all(proxy.dir.path().join("cas").join(&bad.hex()[..2])).unwrap();
    replayed(&proxy).await;
    assert!(!backing_has(&proxy, &bad).await);
    assert!(backing_has(&proxy, &good).await);
}

#[tokio::test(start_paused = true)]
async fn an_empty_entry_pins_its_blob_until_the_upload() {
    let proxy = down().await;
    let digest = put(&proxy, &content(1, CHUNK)).await;
    overwrite(&entry(&proxy, 0), &[]);
    let proxy = proxy.restart(degrading()).await;
    evict_all(&proxy);
    assert!(proxy.local.contains(&digest).await.unwrap());
    replayed(&proxy).await;
    assert!(backing_has(&proxy, &digest).await);
    evict_all(&proxy);
    assert!(!proxy.local.contains(&digest).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_removed_outbox_accepts_writes_again() {
    let proxy = down().await;
    let before = put(&proxy, &content(1, 10)).await;
    put_result(&proxy, &name(1), ActionResult::default()).await;
    fs::remove_dir_all(proxy.dir.path().join("outbox")).unwrap();
    let after = put(&proxy, &content(2, 10)).await;
    assert_eq!(files(&proxy).len(), 1);
    put_result(&proxy, &action(), result(&after, 2, None)).await;
    replayed(&proxy).await;
    for digest in [before, after] {
        assert!(backing_has(&proxy, &digest).await);
    }
    assert!(backing_result(&proxy).await.is_some());
}
