//! The order of uploads from the outbox, in which no write delays another.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use crate::common::{
    CHUNK, Proxy, content,
    outage::{
        action, backing_has, backing_result, degrading, down, files, left, name, put, put_result,
        replayed, result,
    },
};
use bytes::Bytes;
use gorego_storage::{BlobStore, Digest};
use reapi::v2::ActionResult;
use tokio::time::sleep;
use tonic::Code;

/// Puts small blobs, which become pending.
async fn put_many(proxy: &Proxy, count: u64) -> Vec<Digest> {
    let mut digests = Vec::new();
    for number in 0..count {
        let content = Bytes::copy_from_slice(&number.to_le_bytes());
        digests.push(put(proxy, &content).await);
    }
    digests
}

/// Ends the outage, and refuses these writes with a code.
fn refuse(proxy: &Proxy, refused: &[Digest], code: Code) {
    proxy.backing.script(|script| {
        script.refused = refused.iter().map(|digest| (*digest, code)).collect();
        script.down = false;
    });
}

#[tokio::test(start_paused = true)]
async fn a_long_outage_preserves_the_order_of_uploads() {
    let proxy = down().await;
    let digests = put_many(&proxy, 1500).await;
    sleep(Duration::from_mins(10)).await;
    proxy.backing.script(|script| {
        script.latency = Duration::from_secs(1);
        script.down = false;
    });
    left(&proxy, 500).await;
    let missing = proxy.backing.memory.find_missing(&digests).await;
    assert!(missing.unwrap() == digests[1000..]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_one_batch_does_not_stop_the_next() {
    let proxy = down().await;
    let digests = put_many(&proxy, 2000).await;
    proxy.backing.script(|script| {
        script.panics = Some(digests[0]);
        script.down = false;
    });
    left(&proxy, 1000).await;
    assert!(backing_has(&proxy, &digests[1999]).await);
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_stays_pending_delays_no_result() {
    let proxy = down().await;
    let bad = put(&proxy, &content(1, 10)).await;
    let good = put(&proxy, &content(2, 10)).await;
    put_result(&proxy, &action(), result(&good, 0, None)).await;
    refuse(&proxy, &[bad], Code::Unavailable);
    left(&proxy, 1).await;
    assert!(backing_has(&proxy, &good).await);
    assert!(backing_result(&proxy).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn results_of_a_pending_blob_delay_no_others() {
    let proxy = down().await;
    let bad = put(&proxy, &content(1, 10)).await;
    let good = put(&proxy, &content(2, 10)).await;
    for number in 0..600 {
        put_result(&proxy, &name(number), result(&bad, 0, None)).await;
    }
    put_result(&proxy, &action(), result(&good, 0, None)).await;
    refuse(&proxy, &[bad], Code::Unavailable);
    sleep(Duration::from_mins(1)).await;
    assert!(backing_result(&proxy).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn many_refused_blobs_delay_no_others() {
    let proxy = down().await;
    let bad = put_many(&proxy, 300).await;
    let good = put(&proxy, &content(2, 10)).await;
    put_result(&proxy, &action(), result(&good, 0, None)).await;
    let before = proxy.backing.puts.load(SeqCst);
    let latency = Duration::from_secs(1);
    proxy.backing.script(|script| script.latency = latency);
    refuse(&proxy, &bad, Code::ResourceExhausted);
    left(&proxy, 300).await;
    assert!(backing_result(&proxy).await.is_some());
    let puts = proxy.backing.puts.load(SeqCst) - before;
    assert!(puts < 400, "{puts} before others had their turn");
}

#[tokio::test(start_paused = true)]
async fn blobs_refused_together_are_retried_alone_after_the_others() {
    let proxy = down().await;
    let bad = put_many(&proxy, 20).await;
    put(&proxy, &content(2, 10)).await;
    let before = proxy.backing.puts.load(SeqCst);
    proxy
        .backing
        .script(|script| script.latency = Duration::from_secs(1));
    refuse(&proxy, &bad, Code::InvalidArgument);
    left(&proxy, 20).await;
    proxy.backing.most_putting.store(0, SeqCst);
    left(&proxy, 0).await;
    assert_eq!(proxy.backing.puts.load(SeqCst) - before, 41);
    assert_eq!(proxy.backing.most_putting.load(SeqCst), 8);
}

#[tokio::test(start_paused = true)]
async fn a_blob_refused_alone_is_uploaded_once() {
    let proxy = down().await;
    let bad = put(&proxy, &content(1, CHUNK * 20)).await;
    let before = proxy.backing.puts.load(SeqCst);
    refuse(&proxy, &[bad], Code::InvalidArgument);
    left(&proxy, 0).await;
    assert_eq!(proxy.backing.puts.load(SeqCst) - before, 1);
}

/// Returns the numbers and hashes in the names of the outbox's files, in order.
fn entries(proxy: &Proxy) -> Vec<(u64, String)> {
    let files = files(proxy).into_iter();
    let parts = files.map(|file| file.split('-').map(str::to_owned).collect::<Vec<_>>());
    let entries = parts.map(|parts| (parts[0].parse().unwrap(), parts[3].clone()));
    entries.collect()
}

#[tokio::test(start_paused = true)]
async fn numbers_of_pending_writes_never_restart() {
    let mut proxy = down().await;
    let (mut hashes, mut highest) = (Vec::new(), 0);
    for seed in 0..3 {
        hashes.push(put(&proxy, &content(seed, 10)).await.hex());
        put_result(&proxy, &name(u64::from(seed)), ActionResult::default()).await;
        hashes.push(name(u64::from(seed)).hex());
        proxy = proxy.restart(degrading()).await;
    }
    let pending = entries(&proxy);
    assert!(pending.is_sorted());
    assert!(pending.iter().map(|(_, hash)| hash).eq(&hashes));
    for seed in 3..6 {
        highest = highest.max(entries(&proxy).last().unwrap().0);
        replayed(&proxy).await;
        assert_eq!(entries(&proxy), []);
        proxy = proxy.restart(degrading()).await;
        proxy.backing.script(|script| script.down = true);
        put(&proxy, &content(seed, 10)).await;
        assert!(entries(&proxy)[0].0 > highest);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_preserves_the_order_of_uploads() {
    let proxy = down().await;
    let digests = put_many(&proxy, 1500).await;
    let proxy = proxy.restart(degrading()).await;
    proxy.backing.script(|script| {
        script.latency = Duration::from_secs(1);
        script.down = false;
    });
    left(&proxy, 500).await;
    let missing = proxy.backing.memory.find_missing(&digests).await;
    assert!(missing.unwrap() == digests[1000..]);
}
