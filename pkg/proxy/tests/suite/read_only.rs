//! `Options::read_only`: writes of clients stay in the local tier.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use crate::common::{
    self, CHUNK, Proxy, content,
    outage::{action, backing_put, degrading, result},
    sha256,
};
use futures::stream;
use gorego_proxy::Options;
use gorego_storage::{ActionCache, ActionCacheExt as _, Blob, BlobStore, BlobStoreExt as _};
use tokio::time::sleep;

async fn read_only(options: Options) -> Proxy {
    let options = Options {
        read_only: true,
        ..options
    };
    Proxy::with(options, common::GIB).await
}

#[tokio::test]
async fn writes_stay_in_the_local_tier_when_read_only() {
    let proxy = read_only(common::options()).await;
    let content = content(1, CHUNK * 20);
    let digest = sha256(&content);
    let halves = [content.slice(..CHUNK), content.slice(CHUNK..)].map(Ok);
    let blob = Blob::stream(stream::iter(halves));
    proxy.store.put(&digest, blob).await.unwrap();
    assert!(proxy.local.contains(&digest).await.unwrap());
    assert_eq!(proxy.backing.puts.load(SeqCst), 0);
    assert!(proxy.store.contains(&digest).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn only_local_blobs_are_present_in_an_outage_when_read_only() {
    let proxy = read_only(degrading()).await;
    proxy.backing.script(|script| script.down = true);
    let digest = sha256(&content(1, 10));
    let missing = proxy.store.find_missing(&[digest]).await.unwrap();
    assert_eq!(missing, [digest]);
}

#[tokio::test(start_paused = true)]
async fn a_blob_known_to_be_present_is_not_looked_up_again() {
    let proxy = read_only(common::options()).await;
    let digest = proxy.backing.has(&content(1, 10)).await;
    for _ in 0..3 {
        assert_eq!(proxy.store.find_missing(&[digest]).await.unwrap(), []);
    }
    assert_eq!(proxy.backing.finds.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_fetched_result_is_revalidated_and_a_written_one_stays_when_read_only() {
    let proxy = read_only(common::options()).await;
    let output = proxy.backing.has(&content(1, 10)).await;
    backing_put(&proxy, &result(&output, 1, None)).await;
    let actions = proxy.actions();
    let code = async || {
        sleep(Duration::from_secs(301)).await;
        actions.find("", &action()).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        let got = actions.find("", &action()).await.unwrap();
        got.unwrap().exit_code
    };
    assert_eq!(code().await, 1);
    backing_put(&proxy, &result(&output, 2, None)).await;
    assert_eq!(code().await, 2);
    let put = actions.put("", &action(), result(&output, 3, None)).await;
    put.unwrap();
    assert_eq!(code().await, 3);
}
