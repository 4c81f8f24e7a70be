//! Outages with `OnOutage::Degrade`: builds continue, and no accepted write is lost.

use std::fmt;

use crate::common::{
    self, CHUNK, Proxy, content,
    outage::{action, backing_put, backing_result, degrading, down, replayed, result},
    sha256,
};
use futures::stream;
use gorego_limits::Budget;
use gorego_proxy::Depth;
use gorego_storage::{
    ActionCache, ActionCacheExt as _, Blob, BlobStore, BlobStoreExt as _, CachedResult, Error,
    Result,
};

/// Returns the miss of the local tier in an outage.
fn miss_in_outage<T: fmt::Debug>(found: Result<T>) -> Error {
    let missed = found.unwrap_err();
    let Error::Outage { miss, why } = missed else {
        panic!("{missed}");
    };
    assert_eq!(why, "the backing cache is down");
    *miss
}

async fn look_up(proxy: &Proxy) -> Result<CachedResult> {
    let memory = Budget::memory("result", u64::MAX);
    proxy.actions().get("", &action(), &memory).await
}

#[tokio::test(start_paused = true)]
async fn misses_in_an_outage_are_no_failures_and_name_it() {
    let proxy = down().await;
    for len in [10, CHUNK * 20] {
        let digest = sha256(&content(1, len));
        let missed = miss_in_outage(proxy.read(&digest).await);
        assert!(matches!(missed, Error::NotFound(missing) if missing == digest));
        let missing = proxy.store.find_missing(&[digest]).await.unwrap();
        assert_eq!(missing, [digest]);
    }
    let missed = miss_in_outage(look_up(&proxy).await);
    assert!(matches!(missed, Error::NoResult(missing) if missing == action()));
    proxy.backing.script(|script| script.down = false);
    let missed = look_up(&proxy).await.unwrap_err();
    assert!(matches!(missed, Error::NoResult(_)), "{missed}");
}

#[tokio::test(start_paused = true)]
async fn a_result_with_remote_outputs_is_a_miss_in_an_outage() {
    let proxy = Proxy::with(degrading(), common::GIB).await;
    let output = proxy.backing.has(&content(1, 10)).await;
    backing_put(&proxy, &result(&output, 0, Some(1))).await;
    let actions = proxy.actions();
    assert!(actions.find("", &action()).await.unwrap().is_some());
    proxy.backing.script(|script| script.down = true);
    let missed = miss_in_outage(look_up(&proxy).await);
    let Error::Incomplete { missing, .. } = missed else {
        panic!("{missed}");
    };
    assert_eq!(missing.as_deref(), Some(&output));
}

#[tokio::test(start_paused = true)]
async fn degraded_writes_are_uploaded_after_the_outage() {
    let proxy = down().await;
    let contents = [content(1, 10), content(2, CHUNK * 20), content(3, 1000)];
    let [small, large, batched] = contents.clone().map(|content| (sha256(&content), content));
    let put = proxy.store.put(&small.0, Blob::Bytes(small.1)).await;
    put.unwrap();
    let chunks = stream::iter([Ok(large.1.slice(..CHUNK)), Ok(large.1.slice(CHUNK..))]);
    let put = proxy.store.put(&large.0, Blob::stream(chunks)).await;
    put.unwrap();
    for put in proxy.store.put_batch(vec![batched.clone()]).await {
        put.unwrap();
    }
    let actions = proxy.actions();
    let put = actions
        .put("", &action(), result(&large.0, 0, Some(1)))
        .await;
    put.unwrap();
    let digests = [small.0, large.0, batched.0];
    assert_eq!(proxy.store.find_missing(&digests).await.unwrap(), []);
    assert!(actions.find("", &action()).await.unwrap().is_some());
    let depth = *proxy.outbox.depth().borrow();
    assert_eq!((depth.entries, depth.results), (4, 1));

    replayed(&proxy).await;
    assert_eq!(*proxy.outbox.depth().borrow(), Depth::default());
    for digest in &digests {
        assert!(proxy.backing.memory.contains(digest).await.unwrap());
    }
    assert_eq!(
        backing_result(&proxy).await,
        Some(result(&large.0, 0, Some(1)))
    );
}

#[tokio::test(start_paused = true)]
async fn outputs_reported_in_an_outage_are_uploaded_with_their_result() {
    let proxy = down().await;
    let content = content(1, 10);
    let output = sha256(&content);
    let put = BlobStore::put(&*proxy.local, &output, Blob::Bytes(content)).await;
    put.unwrap();
    assert_eq!(proxy.store.find_missing(&[output]).await.unwrap(), []);
    // The outage is over before the action is.
    proxy.backing.script(|script| script.down = false);
    let ours = result(&output, 0, None);
    proxy.actions().put("", &action(), ours).await.unwrap();
    assert!(backing_result(&proxy).await.is_some());
    assert!(proxy.backing.memory.contains(&output).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_result_that_names_a_remote_output_twice_becomes_pending() {
    let proxy = Proxy::with(degrading(), common::GIB).await;
    let output = proxy.backing.has(&content(1, 10)).await;
    proxy.backing.script(|script| script.down = true);
    let mut ours = result(&output, 0, None);
    ours.output_files.extend(ours.output_files.clone());
    proxy.actions().put("", &action(), ours).await.unwrap();
    assert_eq!(proxy.outbox.depth().borrow().results, 1);
}

#[tokio::test(start_paused = true)]
async fn pending_writes_survive_a_restart_with_either_outage_policy() {
    for options in [degrading(), common::options()] {
        let proxy = down().await;
        let content = content(1, CHUNK * 20);
        let digest = sha256(&content);
        let put = proxy.store.put(&digest, Blob::Bytes(content)).await;
        put.unwrap();
        let put = proxy
            .actions()
            .put("", &action(), result(&digest, 0, Some(1)))
            .await;
        put.unwrap();
        let proxy = proxy.restart(options).await;
        assert_eq!(proxy.outbox.depth().borrow().entries, 2);
        replayed(&proxy).await;
        assert!(proxy.backing.memory.contains(&digest).await.unwrap());
        assert_eq!(
            backing_result(&proxy).await,
            Some(result(&digest, 0, Some(1)))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_newer_complete_result_of_the_backing_cache_stays() {
    for (theirs, stays) in [(1, false), (2, true), (3, true)] {
        let proxy = down().await;
        let ours = content(1, 10);
        let digest = sha256(&ours);
        let put = proxy.store.put(&digest, Blob::Bytes(ours)).await;
        put.unwrap();
        let put = proxy
            .actions()
            .put("", &action(), result(&digest, 0, Some(2)))
            .await;
        put.unwrap();
        let other = proxy.backing.has(&content(2, 10)).await;
        backing_put(&proxy, &result(&other, 0, Some(theirs))).await;
        replayed(&proxy).await;
        let expected = if stays {
            result(&other, 0, Some(theirs))
        } else {
            result(&digest, 0, Some(2))
        };
        assert_eq!(backing_result(&proxy).await, Some(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn a_newer_incomplete_result_of_the_backing_cache_is_replaced() {
    let proxy = down().await;
    let ours = content(1, 10);
    let digest = sha256(&ours);
    let put = proxy.store.put(&digest, Blob::Bytes(ours)).await;
    put.unwrap();
    let put = proxy
        .actions()
        .put("", &action(), result(&digest, 0, Some(2)))
        .await;
    put.unwrap();
    let gone = sha256(&content(2, 10));
    backing_put(&proxy, &result(&gone, 0, Some(3))).await;
    replayed(&proxy).await;
    assert_eq!(
        backing_result(&proxy).await,
        Some(result(&digest, 0, Some(2)))
    );
}

#[tokio::test(start_paused = true)]
async fn pending_writes_do_not_exceed_their_limit() {
    let proxy = down().await;
    let len = usize::try_from(common::JOURNAL).unwrap() / 3;
    let mut accepted = 0;
    for seed in 0..4 {
        let content = content(seed, len);
        let put = proxy
            .store
            .put(&sha256(&content), Blob::Bytes(content))
            .await;
        match put {
            Ok(_) => accepted += 1,
            Err(error) => assert!(matches!(error, Error::Unavailable(_)), "{error}"),
        }
    }
    assert_eq!(accepted, 2);
    replayed(&proxy).await;
    let content = content(9, len);
    let put = proxy
        .store
        .put(&sha256(&content), Blob::Bytes(content))
        .await;
    put.unwrap();
}

/// Simulates a noticed outage in which the backing cache loses all blobs.
async fn lose_all_in_an_outage(proxy: &Proxy) {
    proxy.backing.script(|script| script.down = true);
    let seen = proxy.store.find_missing(&[sha256(&content(50, 10))]).await;
    seen.unwrap_err();
    proxy.backing.script(|script| {
        script.down = false;
        script.has_all = false;
    });
}

#[tokio::test(start_paused = true)]
async fn presence_recorded_before_an_outage_is_not_trusted_after_it() {
    let proxy = Proxy::new().await;
    let actions = proxy.actions();
    proxy.backing.script(|script| script.has_all = true);
    let contents = [content(1, 10), content(2, 10)];
    let [again, looked_for] = contents.clone().map(|content| sha256(&content));
    for content in &contents {
        common::outage::put(&proxy, content).await;
    }
    let only_there = sha256(&content(3, 10));
    let missing = proxy.store.find_missing(&[only_there]).await.unwrap();
    assert_eq!(missing, []);
    backing_put(&proxy, &result(&only_there, 0, None)).await;
    assert!(actions.find("", &action()).await.unwrap().is_some());

    lose_all_in_an_outage(&proxy).await;
    common::outage::put(&proxy, &contents[0]).await;
    let missing = proxy.store.find_missing(&[looked_for, only_there]).await;
    assert_eq!(missing.unwrap(), [only_there]);
    for digest in [again, looked_for] {
        assert!(proxy.backing.memory.contains(&digest).await.unwrap());
    }
    assert_eq!(actions.find("", &action()).await.unwrap(), None);
}
