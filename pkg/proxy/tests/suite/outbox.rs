//! The outbox: pending writes are protected, refused ones leave no trace, and both are bounded.

use std::{fs, os::unix::fs::MetadataExt as _, time::Duration};

use crate::common::{
    self, CHUNK, Proxy, content,
    outage::{
        action, backing_result, degrading, down, evict_all, files, left, name, put, replayed,
        result,
    },
    sha256,
};
use bytes::Bytes;
use futures::{future::join_all, stream};
use gorego_proxy::Outbox;
use gorego_storage::{
    ActionCache, ActionCacheExt as _, Blob, BlobStore, BlobStoreExt as _, Digest, Error,
    Evictable as _,
};
use reapi::v2::{ActionResult, Directory, DirectoryNode, FileNode, OutputDirectory, Tree};
use tokio::time::timeout;

fn limit() -> usize {
    usize::try_from(common::JOURNAL).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_refused_blob_is_not_stored_locally() {
    let proxy = down().await;
    let content = content(1, limit() + 1);
    let digest = sha256(&content);
    let halves = [content.slice(..CHUNK), content.slice(CHUNK..)].map(Ok);
    let blobs = [
        Blob::Bytes(content.clone()),
        Blob::stream(stream::iter(halves)),
    ];
    for blob in blobs {
        let put = proxy.store.put(&digest, blob).await;
        let named = |why: &str| why.contains(&digest.hex()) && !why.contains("down");
        assert!(
            matches!(&put, Err(Error::Unavailable(why)) if named(why)),
            "{put:?}"
        );
        let missing = proxy.store.find_missing(&[digest]).await.unwrap();
        assert_eq!(missing, [digest]);
    }
    let batch = proxy.store.put_batch(vec![(digest, content)]).await;
    assert!(matches!(batch[0], Err(Error::Unavailable(_))));
    assert!(!proxy.local.contains(&digest).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_refused_result_is_not_served() {
    let proxy = down().await;
    let output = put(&proxy, &content(1, limit() - 4200)).await;
    let actions = proxy.actions();
    let put = actions.put("", &action(), result(&output, 0, None)).await;
    assert!(matches!(put, Err(Error::Unavailable(_))), "{put:?}");
    assert_eq!(actions.find("", &action()).await.unwrap(), None);
}

#[tokio::test]
async fn a_cancelled_write_is_pending_and_stored_or_neither() {
    for micros in (0..4000).step_by(100) {
        let proxy = down().await;
        let content = content(1, CHUNK * 4);
        let digest = sha256(&content);
        let put = proxy.store.put(&digest, Blob::Bytes(content));
        let _ = timeout(Duration::from_micros(micros), put).await;
        let agree = async {
            let here = proxy.local.contains(&digest).await.unwrap();
            here == (proxy.outbox.depth().borrow().entries == 1)
        };
        proxy.store.close().await;
        assert!(agree.await, "after {micros} microseconds");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pending_blob_written_again_takes_no_more_room() {
    let proxy = down().await;
    for _ in 0..4 {
        put(&proxy, &content(1, limit() / 3)).await;
    }
    assert_eq!(proxy.outbox.depth().borrow().entries, 1);
}

#[tokio::test]
async fn pending_blobs_are_not_evicted() {
    let proxy = down().await;
    let digest = put(&proxy, &content(1, 10)).await;
    evict_all(&proxy);
    assert!(proxy.local.contains(&digest).await.unwrap());
    let proxy = proxy.restart(degrading()).await;
    evict_all(&proxy);
    assert!(proxy.local.contains(&digest).await.unwrap());
    replayed(&proxy).await;
    evict_all(&proxy);
    assert!(!proxy.local.contains(&digest).await.unwrap());
}

#[tokio::test]
async fn outputs_of_a_pending_result_are_not_evicted_and_are_uploaded() {
    let proxy = Proxy::with(degrading(), common::GIB).await;
    let (file, inside) = (content(1, 10), content(2, 10));
    let node = FileNode {
        name: "inside".to_owned(),
        digest: Some(sha256(&inside).to_proto()),
        ..FileNode::default()
    };
    let tree = Tree {
        root: Some(Directory {
            files: vec![node],
            ..Directory::default()
        }),
        children: Vec::new(),
    };
    let tree = Bytes::from(prost::Message::encode_to_vec(&tree));
    let blobs = [file, inside, tree].map(|content| (sha256(&content), content));
    for put in BlobStore::put_batch(&*proxy.local, blobs.to_vec()).await {
        put.unwrap();
    }
    let digests = blobs.map(|(digest, _)| digest);
    proxy.backing.script(|script| script.down = true);
    assert_eq!(proxy.store.find_missing(&digests).await.unwrap(), []);
    let mut result = result(&digests[0], 0, None);
    for tree in [sha256(&content(9, 10)), digests[2]] {
        result.output_directories.push(OutputDirectory {
            tree_digest: Some(tree.to_proto()),
            ..OutputDirectory::default()
        });
    }
    proxy.actions().put("", &action(), result).await.unwrap();
    evict_all(&proxy);
    assert_eq!(proxy.local.find_missing(&digests).await.unwrap(), []);
    let proxy = proxy.restart(degrading()).await;
    evict_all(&proxy);
    assert_eq!(proxy.local.find_missing(&digests).await.unwrap(), []);
    replayed(&proxy).await;
    let missing = proxy.backing.memory.find_missing(&digests).await.unwrap();
    assert_eq!(missing, []);
}

#[tokio::test]
async fn outputs_beside_a_remote_directory_are_not_evicted_and_are_uploaded() {
    let proxy = Proxy::with(degrading(), common::GIB).await;
    let (beside, below) = (content(1, 10), content(2, 10));
    let there = encoded(&[&content(3, 10)], &[]);
    let here = encoded(&[&below], &[]);
    // The remote one comes first.
    let root = encoded(&[&beside], &[&there, &here]);
    let named = directory(&root);
    proxy.backing.has(&content(3, 10)).await;
    proxy.backing.has(&there).await;
    let blobs = [beside, below, here, root].map(|content| (sha256(&content), content));
    for put in BlobStore::put_batch(&*proxy.local, blobs.to_vec()).await {
        put.unwrap();
    }
    let digests = blobs.map(|(digest, _)| digest);
    proxy.backing.script(|script| script.down = true);
    assert_eq!(proxy.store.find_missing(&digests).await.unwrap(), []);
    proxy.actions().put("", &action(), named).await.unwrap();
    evict_all(&proxy);
    assert_eq!(proxy.local.find_missing(&digests).await.unwrap(), []);
    replayed(&proxy).await;
    let missing = proxy.backing.memory.find_missing(&digests).await.unwrap();
    assert_eq!(missing, []);
    assert!(backing_result(&proxy).await.is_some());
}

/// Encodes a directory of these files and directories.
fn encoded(files: &[&Bytes], directories: &[&Bytes]) -> Bytes {
    let files = files.iter().map(|content| FileNode {
        name: sha256(content).hex(),
        digest: Some(sha256(content).to_proto()),
        ..FileNode::default()
    });
    let directories = directories.iter().map(|content| DirectoryNode {
        name: sha256(content).hex(),
        digest: Some(sha256(content).to_proto()),
    });
    let directory = Directory {
        files: files.collect(),
        directories: directories.collect(),
        ..Directory::default()
    };
    Bytes::from(prost::Message::encode_to_vec(&directory))
}

/// A result that names a directory.
fn directory(root: &Bytes) -> ActionResult {
    let directory = OutputDirectory {
        root_directory_digest: Some(sha256(root).to_proto()),
        ..OutputDirectory::default()
    };
    ActionResult {
        output_directories: vec![directory],
        ..ActionResult::default()
    }
}

#[tokio::test(start_paused = true)]
async fn counting_the_outbox_of_another_process_changes_nothing() {
    let proxy = down().await;
    put(&proxy, &content(1, 10)).await;
    let result = ActionResult::default();
    proxy.actions().put("", &action(), result).await.unwrap();
    let before = files(&proxy);
    let depth = *proxy.outbox.depth().borrow();
    let pending = Outbox::pending_in(proxy.dir.path()).unwrap();
    assert_eq!(
        (pending.entries, pending.bytes),
        (depth.entries, depth.bytes)
    );
    assert_eq!(files(&proxy), before);
}

#[tokio::test(start_paused = true)]
async fn a_pending_blob_is_a_hard_link_and_takes_the_room_of_one_blob() {
    let proxy = down().await;
    let before = proxy.local.usage().used;
    let digest = put(&proxy, &content(1, CHUNK)).await;
    let [entry] = files(&proxy).try_into().unwrap();
    let entry = fs::metadata(proxy.dir.path().join("outbox").join(entry)).unwrap();
    let blob = fs::metadata(find(&proxy.dir.path().join("cas"), &digest.hex()).unwrap()).unwrap();
    assert_eq!((entry.dev(), entry.ino()), (blob.dev(), blob.ino()));
    let used = proxy.local.usage().used - before;
    assert!((CHUNK as u64..2 * CHUNK as u64).contains(&used), "{used}");
    replayed(&proxy).await;
    assert_eq!(files(&proxy), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn concurrent_writes_share_the_limit_and_a_refused_one_leaves_no_file() {
    let proxy = down().await;
    let contents: Vec<Bytes> = (0..8).map(|seed| content(seed, limit() / 3)).collect();
    let puts = contents.iter().map(|content| {
        let blob = Blob::Bytes(content.clone());
        let (store, digest) = (&proxy.store, sha256(content));
        async move { store.put(&digest, blob).await }
    });
    let puts = join_all(puts).await;
    assert_eq!(puts.iter().filter(|put| put.is_ok()).count(), 2);
    assert_eq!(files(&proxy).len(), 2);
    let large = ActionResult {
        stdout_raw: content(9, limit() / 2),
        ..ActionResult::default()
    };
    let put = proxy.actions().put("", &action(), large).await;
    assert!(matches!(put, Err(Error::Unavailable(_))), "{put:?}");
    assert_eq!(files(&proxy).len(), 2);
    assert_eq!(
        fs::read_dir(proxy.dir.path().join("tmp")).unwrap().count(),
        0
    );
}

#[tokio::test(start_paused = true)]
async fn a_corrupt_pending_blob_delays_neither_the_start_nor_other_uploads() {
    let proxy = down().await;
    let rotten = put(&proxy, &content(1, CHUNK * 2)).await;
    let good = put(&proxy, &content(2, 10)).await;
    let proxy = restart_with_corrupt(proxy, &rotten).await;
    replayed(&proxy).await;
    assert!(proxy.backing.memory.contains(&good).await.unwrap());
    assert!(!proxy.backing.memory.contains(&rotten).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_lost_pending_blob_written_again_is_pinned_and_uploaded() {
    for is_removed in [false, true] {
        let proxy = down().await;
        let content = content(1, CHUNK * 2);
        let lost = put(&proxy, &content).await;
        let proxy = if is_removed {
            fs::remove_file(find(proxy.dir.path(), &lost.hex()).unwrap()).unwrap();
            assert!(proxy.read(&lost).await.is_err());
            proxy
        } else {
            restart_with_corrupt(proxy, &lost).await
        };
        assert_eq!(proxy.store.find_missing(&[lost]).await.unwrap(), [lost]);
        put(&proxy, &content).await;
        evict_all(&proxy);
        assert!(proxy.local.contains(&lost).await.unwrap());
        assert_eq!(proxy.outbox.depth().borrow().entries, 1);
        replayed(&proxy).await;
        assert!(proxy.backing.memory.contains(&lost).await.unwrap());
        evict_all(&proxy);
        assert!(!proxy.local.contains(&lost).await.unwrap());
    }
}

/// Restarts after a crash in which the blob's content changed.
async fn restart_with_corrupt(proxy: Proxy, digest: &Digest) -> Proxy {
    let found = find(proxy.dir.path(), &digest.hex()).unwrap();
    proxy
        .crash(degrading(), || {
            fs::set_permissions(&found, std::os::unix::fs::PermissionsExt::from_mode(0o644))
                .unwrap();
            fs::write(&found, content(3, CHUNK * 2)).unwrap();
        })
        .await
}

fn find(dir: &std::path::Path, name: &str) -> Option<std::path::PathBuf> {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if let Some(found) = find(&path, name) {
                return Some(found);
            }
        } else if path
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with(name)
        {
            return Some(path);
        }
    }
    None
}

#[tokio::test(start_paused = true)]
async fn the_outbox_holds_one_file_for_each_pending_write() {
    let proxy = down().await;
    let result = ActionResult {
        stdout_raw: content(1, 100_000),
        ..ActionResult::default()
    };
    let actions = proxy.actions();
    // One write stays pending in front of the others.
    put(&proxy, &content(2, 10)).await;
    let stays = vec![(sha256(&content(2, 10)), tonic::Code::ResourceExhausted)];
    proxy.backing.script(|script| script.refused = stays);
    for round in 0..20 {
        proxy.backing.script(|script| script.down = true);
        for number in 0..5 {
            let name = name(round * 5 + number);
            actions.put("", &name, result.clone()).await.unwrap();
        }
        proxy.backing.script(|script| script.down = false);
        left(&proxy, 1).await;
        assert_eq!(files(&proxy).len(), 1);
    }
    // An action with many results is pending once.
    proxy.backing.script(|script| script.down = true);
    for _ in 0..100 {
        actions.put("", &action(), result.clone()).await.unwrap();
    }
    assert_eq!(proxy.outbox.depth().borrow().entries, 2);
    assert_eq!(files(&proxy).len(), 2);
}
