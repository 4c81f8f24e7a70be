//! Two tiers as the store of an executor.

use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, sync::atomic::Ordering::SeqCst};

use crate::common::{self, Proxy, content, options, outage::degrading, sha256};
use bytes::Bytes;
use gorego_proxy::{OnOutage, Options};
use gorego_storage::{
    Adopt, Blob, BlobStore as _, Digest, DigestFunction, Error, Evictable as _, LinkedAs,
    Links as _, PinError, Put, Result,
};
use gorego_storage_conformance::Tree;

const MIB: u64 = 1 << 20;

async fn adopt(proxy: &Proxy, tree: &Tree, name: &str) -> Result<Digest> {
    let files = vec![tree.moved(name)];
    proxy
        .store
        .adopt(DigestFunction::Sha256, files)
        .await
        .remove(0)
}

async fn put_local(proxy: &Proxy, content: &Bytes) -> Digest {
    let digest = sha256(content);
    let put = proxy.local.put(&digest, Blob::Bytes(content.clone())).await;
    assert_eq!(put.unwrap(), Put::Stored);
    digest
}

fn candidates(proxy: &Proxy) -> Vec<gorego_storage::Candidate> {
    let mut seen = Vec::new();
    proxy.local.visit(&mut |candidate| seen.push(candidate));
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_blobs_are_fetched_and_protected() {
    let (proxy, tree) = (Proxy::new().await, Tree::new());
    let (mut contents, mut digests) = (Vec::new(), Vec::new());
    for (seed, len) in [(1, 10), (2, 5000), (3, 1_000_000), (4, 3_000_000)] {
        contents.push(content(seed, len));
        digests.push(proxy.backing.has(&content(seed, len)).await);
    }
    let local = content(5, 1000);
    digests.push(put_local(&proxy, &local).await);
    contents.push(local);

    let pins = proxy.store.pin(&digests).await.unwrap();
    assert_eq!(proxy.local.evict(&candidates(&proxy), true).count, 0);
    for (digest, content) in digests.iter().zip(&contents) {
        let name = digest.hex();
        let linked = tree.link(&proxy.store, digest, &name, true).unwrap();
        assert_eq!(linked, LinkedAs::Link);
        tree.expect_file(&name, content, 0o555);
    }
    assert_eq!(proxy.store.altered(&digests), []);
    drop(pins);
    assert_eq!(proxy.local.evict(&candidates(&proxy), true).count, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_blobs_missing_in_both_tiers_are_listed_before_any_is_fetched() {
    let proxy = Proxy::new().await;
    let there = proxy.backing.has(&content(1, 1000)).await;
    let missing = [2, 3].map(|seed| sha256(&content(seed, 1000)));
    let pinned = proxy.store.pin(&[missing[0], there, missing[1]]).await;
    let Err(PinError::Missing(listed)) = pinned else {
        panic!("{pinned:?}");
    };
    assert_eq!(listed, missing);
    assert_eq!(proxy.backing.gets.load(SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_blobs_that_the_backing_cache_lost_are_listed() {
    let proxy = Proxy::new().await;
    let there = proxy.backing.has(&content(1, 1000)).await;
    let lost = [
        proxy.backing.has(&content(2, 1000)).await,
        proxy.backing.has(&content(3, 1_000_000)).await,
    ];
    // Its answer is remembered.
    assert_eq!(proxy.store.find_missing(&lost).await.unwrap(), []);
    for digest in &lost {
        proxy.backing.memory.remove(digest);
    }
    let pinned = proxy.store.pin(&[lost[0], there, lost[1]]).await;
    let Err(PinError::Missing(listed)) = pinned else {
        panic!("{pinned:?}");
    };
    assert_eq!(listed.len(), 2);
    assert!(lost.iter().all(|digest| listed.contains(digest)));
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_beyond_the_local_tier_fail_before_anything_is_fetched() {
    let proxy = Proxy::with(options(), 10 * MIB).await;
    let mut digests = Vec::new();
    for seed in 0..3 {
        digests.push(proxy.backing.has(&content(seed, 3 << 20)).await);
    }
    let pinned = proxy.store.pin(&digests).await;
    assert!(matches!(pinned, Err(PinError::Full { .. })), "{pinned:?}");
    assert_eq!(proxy.backing.gets.load(SeqCst), 0);
    assert_eq!(proxy.backing.finds.load(SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_fails_if_fetched_blobs_find_no_room() {
    let proxy = Proxy::with(options(), 10 * MIB).await;
    let taken = content(1, 5 << 20);
    let taken = put_local(&proxy, &taken).await;
    let _read = proxy.local.pin_one(&taken).await.unwrap();
    let digest = proxy.backing.has(&content(2, 7 << 20)).await;
    let digests = [digest];
    let pinned = proxy.store.pin(&digests);
    tokio::pin!(pinned);
    let pinned = loop {
        tokio::select! {
            biased;
            pinned = &mut pinned => break pinned,
            () = tokio::task::yield_now() => {}
        }
        if proxy.local.usage().wanted > 0 {
            proxy.local.room_made(true);
        }
    };
    let Err(PinError::Store(Error::Full { bytes, .. })) = pinned else {
        panic!("{pinned:?}");
    };
    assert_eq!(bytes, 7 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_blob_is_fetched_again() {
    let (proxy, tree) = (Proxy::new().await, Tree::new());
    let digest = proxy.backing.has(&content(1, 1000)).await;
    let pins = proxy.store.pin(&[digest]).await.unwrap();
    tree.link(&proxy.store, &digest, "input", true).unwrap();
    let input = tree.path("input");
    fs::set_permissions(&input, fs::Permissions::from_mode(0o755)).unwrap();
    let mut file = fs::File::options().write(true).open(&input).unwrap();
    file.write_all(b"poison").unwrap();
    assert_eq!(proxy.store.altered(&[digest]), [digest]);
    drop(pins);
    let _pins = proxy.store.pin(&[digest]).await.unwrap();
    tree.link(&proxy.store, &digest, "again", true).unwrap();
    tree.expect_file("again", &content(1, 1000), 0o555);
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_are_in_the_backing_cache_when_they_are_adopted() {
    let (proxy, tree) = (Proxy::new().await, Tree::new());
    let mut files = Vec::<Adopt>::new();
    let there = proxy.backing.has(&content(1, 1000)).await;
    for (seed, len) in [(0, 0), (1, 1000), (2, 1000), (3, 1_000_000)] {
        let name = seed.to_string();
        fs::write(tree.path(&name), content(seed, len)).unwrap();
        files.push(tree.moved(&name));
    }
    let before = proxy.backing.puts.load(SeqCst);
    let adopted = proxy.store.adopt(DigestFunction::Sha256, files).await;
    let adopted: Vec<Digest> = adopted.into_iter().map(Result::unwrap).collect();
    assert_eq!(adopted[1], there);
    let puts = proxy.backing.puts.load(SeqCst) - before;
    assert_eq!(puts, 2, "of those that it lacked");
    for tier in [
        &proxy.backing.memory as &dyn gorego_storage::BlobStore,
        &*proxy.local,
    ] {
        assert_eq!(tier.find_missing(&adopted).await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_stay_in_the_local_tier_if_the_backing_cache_is_read_only() {
    let read_only = Options {
        read_only: true,
        ..options()
    };
    let (proxy, tree) = (Proxy::with(read_only, common::GIB).await, Tree::new());
    fs::write(tree.path("output"), content(1, 1000)).unwrap();
    let digest = adopt(&proxy, &tree, "output").await.unwrap();
    assert_eq!(proxy.backing.puts.load(SeqCst), 0);
    assert_eq!(proxy.read(&digest).await.unwrap(), content(1, 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_of_an_outage_fail_or_are_pending() {
    for options in [options(), degrading()] {
        let degrades = options.on_outage == OnOutage::Degrade;
        let (proxy, tree) = (Proxy::with(options, common::GIB).await, Tree::new());
        proxy.backing.script(|script| script.down = true);
        fs::write(tree.path("output"), content(1, 1000)).unwrap();
        let adopted = adopt(&proxy, &tree, "output").await;
        assert_eq!(adopted.is_ok(), degrades, "{adopted:?}");
        if degrades {
            let names = proxy.local.outbox_names().await.unwrap();
            assert_eq!(names.len(), 1, "{names:?}");
        } else {
            assert!(matches!(adopted, Err(Error::Unavailable(_))));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_of_local_blobs_succeed_in_an_outage() {
    for options in [options(), degrading()] {
        let proxy = Proxy::with(options, common::GIB).await;
        let local = put_local(&proxy, &content(1, 1000)).await;
        let remote = proxy.backing.has(&content(2, 1000)).await;
        proxy.backing.script(|script| script.down = true);
        drop(proxy.store.pin(&[local]).await.unwrap());
        let pinned = proxy.store.pin(&[local, remote]).await;
        let is_outage = matches!(
            pinned,
            Err(PinError::Store(
                Error::Unavailable(_) | Error::Outage { .. }
            ))
        );
        assert!(is_outage, "{pinned:?}");
    }
}
