//! Reads of blobs for which the local tier has no room.

use std::time::Duration;

use crate::common::{self, CHUNK, Proxy, content};
use futures::{FutureExt as _, StreamExt as _, future};
use gorego_storage::{BlobStore as _, Error};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

/// Creates a proxy whose local tier is smaller than the blobs of these tests.
async fn proxy() -> Proxy {
    Proxy::with(common::options(), 2 << 20).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_an_unwritten_blob_can_be_read() {
    let proxy = proxy().await;
    let content = content(1, (40 << 20) + 1000);
    let digest = proxy.backing.has(&content).await;
    for offset in [0, 5] {
        let part = proxy.store.get(&digest, offset).await.unwrap();
        let part = part.truncate(CHUNK as u64).into_bytes().await.unwrap();
        let offset = usize::try_from(offset).unwrap();
        assert_eq!(part, content.slice(offset..offset + CHUNK));
    }
}

#[tokio::test]
async fn a_batch_keeps_the_fetch_of_an_unwritten_blob_going() {
    let proxy = proxy().await;
    let content = content(1, 17 << 20);
    let digest = proxy.backing.has(&content).await;
    proxy.backing.hold_at(CHUNK as u64);
    let mut reader = proxy.store.get(&digest, 0).await.unwrap().into_chunks();
    reader.next().await.unwrap().unwrap();
    let wanted = [digest];
    let mut fetched = proxy.store.fetch_batch(&wanted);
    assert!((&mut fetched).now_or_never().is_none(), "it has joined");
    drop(reader);
    proxy.backing.release();
    fetched.await.remove(0).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_of_an_unwritten_blob_does_not_set_the_pace() {
    let proxy = proxy().await;
    let content = content(1, 40 << 20);
    let digest = proxy.backing.has(&content).await;
    let mut slow = proxy.store.get(&digest, 0).await.unwrap().into_chunks();
    let fast = proxy.store.get(&digest, 0).await.unwrap();
    let slow = async {
        while let Some(Ok(_)) = slow.next().await {
            sleep(Duration::from_secs(1)).await;
        }
    };
    let read = timeout(Duration::from_secs(30), fast.into_bytes());
    let (read, ()) = future::join(read, slow).await;
    assert!(read.unwrap().unwrap() == content);
}

#[tokio::test(start_paused = true)]
async fn slow_readers_of_unwritten_blobs_do_not_block_other_blobs() {
    let proxy = proxy().await;
    let mut slow = JoinSet::new();
    for seed in 0..10 {
        let digest = proxy.backing.has(&content(seed, 17 << 20)).await;
        let mut chunks = proxy.store.get(&digest, 0).await.unwrap().into_chunks();
        slow.spawn(async move {
            while let Some(Ok(_)) = chunks.next().await {
                sleep(Duration::from_secs(3)).await;
            }
        });
        // Until all of them hold all memory that they can get.
        sleep(Duration::from_millis(100)).await;
    }
    for size in [10, 300_000, 3 << 20] {
        let content = content(50, size);
        let digest = proxy.backing.has(&content).await;
        let read = timeout(Duration::from_secs(1), proxy.read(&digest)).await;
        assert!(read.expect("no waiting").unwrap() == content, "{size}");
    }
    assert!(slow.try_join_next().is_none(), "all go on");
}

#[tokio::test(start_paused = true)]
async fn a_reader_stalled_after_the_end_releases_the_memory() {
    let proxy = proxy().await;
    let content = content(1, 10 << 20);
    let digest = proxy.backing.has(&content).await;
    let mut stalled = proxy.store.get(&digest, 0).await.unwrap().into_chunks();
    assert!(proxy.read(&digest).await.unwrap() == content);
    sleep(Duration::from_secs(10)).await;
    while let Some(chunk) = stalled.next().await {
        if let Err(error) = chunk {
            assert!(matches!(error, Error::Unavailable(_)), "{error}");
            return;
        }
    }
    panic!("still in memory");
}
