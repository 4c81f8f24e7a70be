//! What is accepted during an outage is kept, what is refused leaves no trace, and neither grows beyond
//! its bounds.

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

fn journal() -> usize {
    usize::try_from(common::JOURNAL).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_was_refused_is_not_here() {
    let proxy = down().await;
    let content = content(1, journal() + 1);
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
async fn a_result_that_was_refused_is_not_served() {
    let proxy = down().await;
    let output = put(&proxy, &content(1, journal() - 4200)).await;
    let actions = proxy.actions();
    let put = actions.put("", &action(), result(&output, 0, None)).await;
    assert!(matches!(put, Err(Error::Unavailable(_))), "{put:?}");
    assert_eq!(actions.find("", &action()).await.unwrap(), None);
}

#[tokio::test]
async fn a_write_that_is_given_up_is_accepted_as_a_whole_or_not_at_all() {
    for micros in (0..4000).step_by(100) {
        let proxy = down().await;
        let content = content(1, CHUNK * 4);
        let digest = sha256(&content);
        let put = proxy.store.put(&digest, Blob::Bytes(content));
        let _ = timeout(Duration::from_micros(micros), put).await;
        let settled = async {
            let here = proxy.local.contains(&digest).await.unwrap();
            here == (proxy.outbox.depth().borrow().entries == 1)
        };
        proxy.store.close().await;
        assert!(settled.await, "after {micros} microseconds");
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_already_takes_no_more_room() {
    let proxy = down().await;
    for _ in 0..4 {
        put(&proxy, &content(1, journal() / 3)).await;
    }
    assert_eq!(proxy.outbox.depth().borrow().entries, 1);
}

#[tokio::test]
async fn what_waits_is_not_evicted() {
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
async fn the_outputs_of_a_result_that_waits_are_not_evicted_and_go_up_with_it() {
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
async fn nor_are_outputs_beside_a_directory_that_only_the_backing_cache_has() {
    let proxy = Proxy::with(degrading(), common::GIB).await;
    let (beside, below) = (content(1, 10), content(2, 10));
    let there = encoded(&[&content(3, 10)], &[]);
    let here = encoded(&[&below], &[]);
    // The one that is not here comes first.
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

/// A directory of these files, and of these directories.
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
async fn a_look_at_the_outbox_of_another_process_changes_nothing() {
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
async fn writes_at_once_share_the_room_and_a_refused_one_leaves_no_file() {
    let proxy = down().await;
    let contents: Vec<Bytes> = (0..8).map(|seed| content(seed, journal() / 3)).collect();
    let puts = contents.iter().map(|content| {
        let blob = Blob::Bytes(content.clone());
        let (store, digest) = (&proxy.store, sha256(content));
        async move { store.put(&digest, blob).await }
    });
    let puts = join_all(puts).await;
    assert_eq!(puts.iter().filter(|put| put.is_ok()).count(), 2);
    assert_eq!(files(&proxy).len(), 2);
    let large = ActionResult {
        stdout_raw: content(9, journal() / 2),
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
async fn a_blob_that_rotted_holds_up_neither_the_start_nor_the_others() {
    let proxy = down().await;
    let rotten = put(&proxy, &content(1, CHUNK * 2)).await;
    let good = put(&proxy, &content(2, 10)).await;
    let proxy = rotted(proxy, &rotten).await;
    replayed(&proxy).await;
    assert!(proxy.backing.memory.contains(&good).await.unwrap());
    assert!(!proxy.backing.memory.contains(&rotten).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn what_is_uploaded_anew_since_it_was_lost_here_is_kept_and_goes_up() {
    for is_removed in [false, true] {
        let proxy = down().await;
        let content = content(1, CHUNK * 2);
        let lost = put(&proxy, &content).await;
        let proxy = if is_removed {
            fs::remove_file(find(proxy.dir.path(), &lost.hex()).unwrap()).unwrap();
            assert!(proxy.read(&lost).await.is_err());
            proxy
        } else {
            rotted(proxy, &lost).await
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

/// The machine stops, and the blob's content is another then.
async fn rotted(proxy: Proxy, digest: &Digest) -> Proxy {
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
    // One that stays, in front of those that come and go.
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
    // The same action again and again is pending once.
    proxy.backing.script(|script| script.down = true);
    for _ in 0..100 {
        actions.put("", &action(), result.clone()).await.unwrap();
    }
    assert_eq!(proxy.outbox.depth().borrow().entries, 2);
    assert_eq!(files(&proxy).len(), 2);
}
