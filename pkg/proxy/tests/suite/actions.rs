//! Action results of two tiers.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use crate::common::{self, Proxy, content, sha256};
use bytes::Bytes;
use gorego_limits::Budget;
use gorego_proxy::{OnOutage, Options};
use gorego_storage::{
    ActionCache, ActionCacheExt, Blob, BlobStore as _, Digest, Error, Evictable as _,
};
use reapi::v2::{ActionResult, Directory, FileNode, OutputDirectory, OutputFile, Tree};
use tokio::{task, time};

fn action() -> Digest {
    sha256(&content(99, 10))
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

/// A tree with one file.
fn tree_of(file: &Digest) -> Bytes {
    let file = FileNode {
        digest: Some(file.to_proto()),
        ..FileNode::default()
    };
    let root = Directory {
        files: vec![file],
        ..Directory::default()
    };
    let tree = Tree {
        root: Some(root),
        children: Vec::new(),
    };
    Bytes::from(prost::Message::encode_to_vec(&tree))
}

async fn backing_has(proxy: &Proxy, result: &ActionResult) {
    let put = ActionCache::put(&*proxy.backing, "", &action(), result.clone()).await;
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

#[tokio::test]
async fn results_of_one_action_do_not_wait_for_each_other() {
    let proxy = Proxy::new().await;
    let hour = Duration::from_hours(1);
    proxy.backing.script(|script| script.latency = hour);
    let actions = proxy.actions();
    let action = action();
    let put = || actions.put("", &action, result(&[]));
    let both_arrived = async {
        while proxy.backing.puts.load(SeqCst) < 2 {
            task::yield_now().await;
        }
    };
    let arrived = time::timeout(Duration::from_secs(30), both_arrived);
    tokio::select! {
        arrived = arrived => arrived.expect("one waits for the other"),
        _ = put() => panic!("an answer within an hour"),
        _ = put() => panic!("an answer within an hour"),
    }
}

#[tokio::test]
async fn a_fetched_result_is_served_during_an_outage() {
    let proxy = Proxy::new().await;
    let actions = proxy.actions();
    let digest = proxy.backing.has(&content(1, 10)).await;
    backing_has(&proxy, &result(&[digest])).await;
    let got = actions.find("", &action()).await.unwrap();
    assert_eq!(got, Some(result(&[digest])));
    proxy.read(&digest).await.unwrap();
    proxy.backing.script(|script| script.down = true);
    let got = actions.find("", &action()).await.unwrap();
    assert_eq!(got, Some(result(&[digest])));
}

#[tokio::test]
async fn outputs_are_leased_by_a_new_result_a_hit_and_a_lookup() {
    for (way, read_only) in [
        ("put", false),
        ("put", true),
        ("hit", false),
        ("lookup", false),
    ] {
        let options = Options {
            read_only,
            ..common::options()
        };
        let proxy = Proxy::with(options, common::GIB).await;
        let tree = tree_of(&sha256(&content(1, 1000)));
        for output in [&content(1, 1000), &content(2, 1000), &tree] {
            let digest = sha256(output);
            let put = proxy.store.put(&digest, Blob::Bytes(output.clone()));
            put.await.unwrap();
        }
        let directory = OutputDirectory {
            tree_digest: Some(sha256(&tree).to_proto()),
            ..OutputDirectory::default()
        };
        let result = ActionResult {
            output_directories: vec![directory],
            ..result(&[sha256(&content(2, 1000))])
        };
        let unleased = || {
            let mut count = 0;
            let local = &proxy.local;
            local.visit(&mut |candidate| count += usize::from(!candidate.leased));
            count
        };
        assert_eq!(unleased(), 3, "uploads alone have none here");
        match way {
            "put" => {
                let put = proxy.actions().put("", &action(), result).await;
                put.unwrap();
                until(async || unleased() == 0).await;
            }
            "hit" => {
                backing_has(&proxy, &result).await;
                let hit = proxy.actions().find("", &action()).await.unwrap();
                assert_eq!(hit, Some(result));
            }
            _ => {
                let outputs = [content(1, 1000), content(2, 1000), tree];
                let outputs = outputs.map(|output| sha256(&output));
                assert_eq!(proxy.store.find_missing(&outputs).await.unwrap(), []);
            }
        }
        assert_eq!(unleased(), 0, "{way}, read_only: {read_only}");
    }
}

#[tokio::test]
async fn a_new_result_is_stored_before_its_trees_are_read() {
    let options = common::options();
    let trees = options.memory.lookup_trees.clone();
    let proxy = Proxy::with(options, common::GIB).await;
    let file = content(1, 1000);
    let tree = Tree {
        root: Some(Directory {
            files: vec![FileNode {
                // Reading the tree takes memory that is counted.
                name: "x".repeat(100_000),
                digest: Some(sha256(&file).to_proto()),
                ..FileNode::default()
            }],
            ..Directory::default()
        }),
        children: Vec::new(),
    };
    let tree = Bytes::from(prost::Message::encode_to_vec(&tree));
    for output in [&file, &tree] {
        let digest = sha256(output);
        let put = proxy.store.put(&digest, Blob::Bytes(output.clone()));
        put.await.unwrap();
    }
    let directory = OutputDirectory {
        tree_digest: Some(sha256(&tree).to_proto()),
        ..OutputDirectory::default()
    };
    let result = ActionResult {
        output_directories: vec![directory],
        ..ActionResult::default()
    };
    let unleased = || {
        let mut count = 0;
        let local = &proxy.local;
        local.visit(&mut |candidate| count += usize::from(!candidate.leased));
        count
    };
    let used_up = trees.reserve(trees.total()).await.unwrap();
    let (actions, action) = (proxy.actions(), action());
    actions.put("", &action, result).await.unwrap();
    assert!(unleased() > 0, "the tree was not read yet");
    drop(used_up);
    until(async || unleased() == 0).await;
}

#[tokio::test]
async fn a_result_miss_looks_up_the_backing_cache_once() {
    let proxy = Proxy::new().await;
    let actions = proxy.actions();
    assert_eq!(actions.find("", &action()).await.unwrap(), None);
    assert_eq!(proxy.backing.gets.load(SeqCst), 1);
    let digest = proxy.backing.has(&content(1, 10)).await;
    backing_has(&proxy, &result(&[digest])).await;
    assert!(actions.find("", &action()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_first_hit_costs_one_lookup_of_the_result_and_one_of_each_level() {
    let default = common::options();
    let uncached = Options {
        existence_ttl: Duration::ZERO,
        ..default.clone()
    };
    let degrading = Options {
        on_outage: OnOutage::Degrade,
        ..default.clone()
    };
    for options in [default, uncached, degrading] {
        let proxy = Proxy::with(options.clone(), 1 << 30).await;
        let actions = proxy.actions();
        let file = proxy.backing.has(&content(1, 10)).await;
        let inside = proxy.backing.has(&content(2, 10)).await;
        let tree = proxy.backing.has(&tree_of(&inside)).await;
        let directory = OutputDirectory {
            tree_digest: Some(tree.to_proto()),
            ..OutputDirectory::default()
        };
        let result = ActionResult {
            output_directories: vec![directory],
            ..result(&[file])
        };
        backing_has(&proxy, &result).await;
        let found = actions.find("", &action()).await.unwrap();
        assert_eq!(found, Some(result));
        // Gets of the result and the tree; lookups of the outputs in the result, and of those in the tree.
        let gets = proxy.backing.gets.load(SeqCst);
        let finds = proxy.backing.finds.load(SeqCst);
        let (ttl, on_outage) = (options.existence_ttl, options.on_outage);
        assert_eq!((gets, finds), (2, 2), "{ttl:?}, {on_outage:?}");
    }
}

#[tokio::test]
async fn an_incomplete_result_names_the_missing_blob() {
    let proxy = Proxy::new().await;
    let actions = proxy.actions();
    let memory = Budget::memory("memory for the test", 1 << 20);
    let none = actions.get("", &action(), &memory).await.unwrap_err();
    assert_eq!(
        none.to_string(),
        format!("no result of action {}", action())
    );
    let absent = sha256(&Bytes::from_static(b"absent"));
    backing_has(&proxy, &result(&[absent])).await;
    let incomplete = actions.get("", &action(), &memory).await.unwrap_err();
    let expected = format!(
        "result of action {} is incomplete: blob {absent} is missing",
        action()
    );
    assert_eq!(incomplete.to_string(), expected);
}

#[tokio::test]
async fn a_newer_result_of_the_backing_cache_is_fetched_in_the_background() {
    let options = Options {
        existence_ttl: Duration::ZERO,
        ..common::options()
    };
    let proxy = Proxy::with(options, common::GIB).await;
    let actions = proxy.actions();
    let old = proxy.backing.has(&content(1, 10)).await;
    let new = proxy.backing.has(&content(2, 10)).await;
    backing_has(&proxy, &result(&[old])).await;
    let got = actions.find("", &action()).await.unwrap();
    assert_eq!(got, Some(result(&[old])));
    backing_has(&proxy, &result(&[new])).await;
    let is_new = async || actions.find("", &action()).await.unwrap() == Some(result(&[new]));
    until(is_new).await;
}

#[tokio::test]
async fn a_result_is_revalidated_after_an_outage() {
    let proxy = Proxy::new().await;
    let actions = proxy.actions();
    let [old, new] = [1, 2].map(|seed| content(seed, 10));
    let (old, new) = (proxy.backing.has(&old).await, proxy.backing.has(&new).await);
    backing_has(&proxy, &result(&[old])).await;
    let got = actions.find("", &action()).await.unwrap();
    assert_eq!(got, Some(result(&[old])));
    proxy.backing.script(|script| script.down = true);
    let seen = proxy.store.find_missing(&[sha256(&content(3, 10))]).await;
    seen.unwrap_err();
    proxy.backing.script(|script| script.down = false);
    backing_has(&proxy, &result(&[new])).await;
    let is_new = async || actions.find("", &action()).await.unwrap() == Some(result(&[new]));
    until(is_new).await;
}

#[tokio::test(start_paused = true)]
async fn a_result_read_before_a_write_does_not_replace_it() {
    for old_is_here in [true, false] {
        let options = Options {
            existence_ttl: Duration::ZERO,
            ..common::options()
        };
        let proxy = Proxy::with(options, common::GIB).await;
        let outputs = [1, 2, 3].map(|seed| content(seed, 10));
        let [old, theirs, new] = [
            result(&[proxy.backing.has(&outputs[0]).await]),
            result(&[proxy.backing.has(&outputs[1]).await]),
            result(&[proxy.backing.has(&outputs[2]).await]),
        ];
        if old_is_here {
            let put = ActionCache::put(&*proxy.local, "", &action(), old).await;
            put.unwrap();
        }
        backing_has(&proxy, &theirs).await;
        let latency = Duration::from_millis(100);
        proxy.backing.script(|script| script.latency = latency);
        let actions = proxy.actions();
        let written = async {
            time::sleep(latency * 3 / 2).await;
            let put = actions.put("", &action(), new.clone()).await;
            put.unwrap();
        };
        let name = action();
        let (got, ()) = tokio::join!(actions.find("", &name), written);
        assert!(got.unwrap().is_some());
        time::sleep(latency * 10).await;
        let here = ActionCacheExt::find(&*proxy.local, "", &action()).await;
        assert_eq!(here.unwrap(), Some(new));
    }
}

#[tokio::test]
async fn a_result_refused_by_the_backing_cache_is_not_stored_locally() {
    let proxy = Proxy::new().await;
    let actions = proxy.actions();
    proxy.backing.script(|script| script.down = true);
    let put = actions.put("", &action(), ActionResult::default()).await;
    assert!(matches!(put, Err(Error::Unavailable(_))));
    let got = ActionCacheExt::find(&*proxy.local, "", &action())
        .await
        .unwrap();
    assert_eq!(got, None);
}
