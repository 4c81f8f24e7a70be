//! Reads through both tiers.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use crate::common::{self, CHUNK, Proxy, content};
use futures::{FutureExt as _, StreamExt as _, future, stream};
use gorego_storage::{
    Blob, BlobStore, BlobStoreExt as _, DigestFunction, Error, Evictable as _, Put,
};
use tokio::{task::JoinSet, time::timeout};

#[tokio::test]
async fn a_fetched_blob_is_stored_locally() {
    for len in [10, CHUNK * 20] {
        let proxy = Proxy::new().await;
        let content = content(1, len);
        let digest = proxy.backing.has(&content).await;
        assert_eq!(proxy.read(&digest).await.unwrap(), content);
        proxy.backing.script(|script| script.down = true);
        assert_eq!(proxy.read(&digest).await.unwrap(), content);
        assert_eq!(proxy.backing.gets.load(SeqCst), 1);
    }
}

#[tokio::test]
async fn a_reader_gets_the_first_bytes_before_the_last_arrive() {
    let proxy = Proxy::new().await;
    let content = content(1, CHUNK * 20);
    let digest = proxy.backing.has(&content).await;
    proxy.backing.hold_at(CHUNK as u64);
    let mut chunks = proxy.store.get(&digest, 0).await.unwrap().into_chunks();
    let first = chunks.next().await.unwrap().unwrap();
    assert_eq!(first, content.slice(..first.len()));
    assert!(!first.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_share_one_fetch() {
    let proxy = Proxy::new().await;
    let content = content(1, CHUNK * 100);
    let digest = proxy.backing.has(&content).await;
    let readers = (0..50).map(|_| proxy.read(&digest));
    for read in future::join_all(readers).await {
        assert_eq!(read.unwrap(), content);
    }
    assert_eq!(proxy.backing.gets.load(SeqCst), 1);
}

#[tokio::test]
async fn a_fetch_continues_when_its_first_reader_leaves() {
    let proxy = Proxy::new().await;
    let content = content(1, CHUNK * 20);
    let digest = proxy.backing.has(&content).await;
    proxy.backing.hold_at(CHUNK as u64);
    let mut first = proxy.store.get(&digest, 0).await.unwrap().into_chunks();
    first.next().await.unwrap().unwrap();
    let second = proxy.store.get(&digest, 0).await.unwrap();
    drop(first);
    proxy.backing.release();
    assert_eq!(second.into_bytes().await.unwrap(), content);
    assert_eq!(proxy.backing.gets.load(SeqCst), 1);
}

#[tokio::test]
async fn a_stalled_reader_does_not_delay_others() {
    let proxy = Proxy::new().await;
    let content = content(1, CHUNK * 200);
    let digest = proxy.backing.has(&content).await;
    let mut stalled = proxy.store.get(&digest, 0).await.unwrap().into_chunks();
    stalled.next().await.unwrap().unwrap();
    assert_eq!(proxy.read(&digest).await.unwrap(), content);
    let rest: Vec<_> = stalled.map(Result::unwrap).collect().await;
    assert_eq!(
        rest.concat(),
        content[content.len() - rest.concat().len()..]
    );
}

#[tokio::test]
async fn a_blob_that_the_disk_lost_is_fetched_again_while_a_slow_reader_has_it() {
    let proxy = Proxy::new().await;
    let content = content(1, CHUNK * 20);
    let digest = proxy.backing.has(&content).await;
    let mut slow = proxy.store.get(&digest, 0).await.unwrap().into_chunks();
    slow.next().await.unwrap().unwrap();
    assert_eq!(proxy.read(&digest).await.unwrap(), content);
    let Blob::File(file) = proxy.local.get(&digest, 0).await.unwrap() else {
        panic!("a blob of this size is read from its file");
    };
    std::fs::remove_file(&file.path).unwrap();
    assert_eq!(proxy.read(&digest).await.unwrap(), content);
    assert_eq!(proxy.backing.gets.load(SeqCst), 2);
    proxy.backing.script(|script| script.down = true);
    assert_eq!(proxy.read(&digest).await.unwrap(), content);
    drop(slow);
}

#[tokio::test]
async fn corrupt_content_is_neither_served_to_its_end_nor_stored() {
    for len in [10, CHUNK * 20] {
        let proxy = Proxy::new().await;
        let content = content(1, len);
        let digest = proxy.backing.has(&content).await;
        proxy.backing.script(|script| script.corrupt = true);
        assert!(matches!(
            proxy.read(&digest).await,
            Err(Error::Mismatch { .. })
        ));
        let kept = proxy.local.get(&digest, 0).await;
        assert!(matches!(kept, Err(Error::NotFound(_))));
        proxy.backing.script(|script| script.corrupt = false);
        assert_eq!(proxy.read(&digest).await.unwrap(), content);
    }
}

#[tokio::test]
async fn a_range_ends_only_after_the_whole_blob_is_verified() {
    let proxy = Proxy::new().await;
    let content = content(1, CHUNK * 20);
    let digest = proxy.backing.has(&content).await;
    proxy.backing.hold_at(10 * CHUNK as u64);
    let range = proxy
        .store
        .get(&digest, 100)
        .await
        .unwrap()
        .truncate(CHUNK as u64);
    let mut read = Box::pin(range.into_bytes());
    assert!((&mut read).now_or_never().is_none());
    proxy.backing.release();
    assert_eq!(read.await.unwrap(), content.slice(100..100 + CHUNK));
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_get_a_blob_for_which_the_disk_has_no_room() {
    let proxy = Proxy::with(common::options(), 2 << 20).await;
    let content = content(1, (40 << 20) + 1000);
    let digest = proxy.backing.has(&content).await;
    let blobs: Vec<Blob> = future::try_join_all((0..50).map(|_| proxy.store.get(&digest, 0)))
        .await
        .unwrap();
    let mut reads = JoinSet::new();
    for blob in blobs {
        let content = content.clone();
        reads.spawn(async move {
            let mut chunks = blob.into_chunks();
            let mut at = 0;
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.unwrap();
                assert_eq!(chunk, content.slice(at..at + chunk.len()));
                at += chunk.len();
            }
            at
        });
    }
    for read in reads.join_all().await {
        assert_eq!(read, content.len());
    }
    assert!(proxy.backing.gets.load(SeqCst) <= 2);
}

#[tokio::test]
async fn a_miss_is_not_found_and_an_outage_is_unavailable() {
    let proxy = Proxy::new().await;
    let absent = common::sha256(&content(1, 10));
    assert!(matches!(proxy.read(&absent).await, Err(Error::NotFound(_))));
    proxy.backing.script(|script| script.down = true);
    assert!(matches!(
        proxy.read(&absent).await,
        Err(Error::Unavailable(_))
    ));
}

#[tokio::test]
async fn a_batch_read_fetches_what_the_local_tier_lacks() {
    let proxy = Proxy::new().await;
    let (here, there, nowhere) = (content(1, 10), content(2, 300_000), content(3, 10));
    let here_digest = proxy.backing.has(&here).await;
    proxy.read(&here_digest).await.unwrap();
    let digests = [
        here_digest,
        proxy.backing.has(&there).await,
        common::sha256(&nowhere),
    ];
    let batch = proxy.store.get_batch(&digests).await;
    assert_eq!(batch[0].as_ref().unwrap(), &here);
    assert_eq!(batch[1].as_ref().unwrap(), &there);
    assert!(matches!(batch[2], Err(Error::NotFound(_))));
    proxy.backing.script(|script| script.down = true);
    assert_eq!(proxy.read(&digests[1]).await.unwrap(), there);
}

#[tokio::test]
async fn an_offset_past_the_end_starts_no_fetch() {
    for len in [10, CHUNK * 20] {
        let proxy = Proxy::new().await;
        let digest = proxy.backing.has(&content(1, len)).await;
        let past = proxy.store.get(&digest, len as u64 + 1).await;
        assert!(matches!(past, Err(Error::OffsetPastEnd { .. })));
        assert_eq!(proxy.backing.gets.load(SeqCst), 0);
        let end = proxy.store.get(&digest, len as u64).await.unwrap();
        assert!(end.into_bytes().await.unwrap().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn readers_of_a_fetch_fail_when_the_proxy_closes() {
    let proxy = Proxy::new().await;
    let (small, large) = (content(1, 10), content(2, CHUNK * 20));
    let digests = [
        proxy.backing.has(&small).await,
        proxy.backing.has(&large).await,
    ];
    proxy.backing.hold_at(CHUNK as u64);
    let mut begun = proxy.store.get(&digests[1], 0).await.unwrap().into_chunks();
    begun.next().await.unwrap().unwrap();
    let part = proxy.store.get(&digests[1], 0).await.unwrap().truncate(10);
    proxy.backing.hold_at(0);
    let waiting = future::join4(
        begun.next(),
        part.into_bytes(),
        proxy.read(&digests[0]),
        proxy.store.get_batch(&digests),
    );
    let close = async {
        tokio::task::yield_now().await;
        proxy.store.close().await;
    };
    let both = timeout(Duration::from_secs(1), future::join(waiting, close));
    let ((begun, part, small, batch), ()) = both.await.expect("all are told");
    let cut_off = |error| matches!(error, Error::Unavailable(_));
    assert!(cut_off(begun.unwrap().unwrap_err()));
    assert!(cut_off(part.unwrap_err()));
    assert!(cut_off(small.unwrap_err()));
    assert!(batch.into_iter().all(|read| cut_off(read.unwrap_err())));
    assert!(cut_off(proxy.read(&digests[0]).await.unwrap_err()));
}

#[tokio::test(start_paused = true)]
async fn readers_continue_from_a_blob_that_another_client_stored() {
    for offset in [0, 5] {
        let proxy = Proxy::new().await;
        let content = content(1, 40 << 20);
        let digest = proxy.backing.has(&content).await;
        proxy.backing.hold_at(10 * CHUNK as u64);
        let mut stalled = proxy.store.get(&digest, 0).await.unwrap().into_chunks();
        stalled.next().await.unwrap().unwrap();
        let reader = proxy.store.get(&digest, offset).await.unwrap();
        let put = BlobStore::put(&*proxy.local, &digest, Blob::Bytes(content.clone())).await;
        put.unwrap();
        proxy.backing.release();
        // A blob in memory alone would wait for the other reader.
        let read = timeout(Duration::from_secs(4), reader.into_bytes()).await;
        let offset = usize::try_from(offset).unwrap();
        assert!(
            read.expect("no waiting for the stalled reader").unwrap() == content.slice(offset..)
        );
        assert_eq!(proxy.backing.gets.load(SeqCst), 1);
    }
}

#[tokio::test]
async fn a_reader_of_corrupt_content_fails_even_if_another_client_stores_the_blob() {
    let proxy = Proxy::new().await;
    let content = content(1, CHUNK * 40);
    let digest = proxy.backing.has(&content).await;
    proxy.backing.script(|script| script.corrupt = true);
    proxy.backing.hold_at(CHUNK as u64);
    let mut reader = proxy.store.get(&digest, 0).await.unwrap().into_chunks();
    reader.next().await.unwrap().unwrap();
    let put = BlobStore::put(&*proxy.local, &digest, Blob::Bytes(content.clone())).await;
    put.unwrap();
    proxy.backing.release();
    let last = reader.map(|chunk| chunk.is_ok()).collect::<Vec<_>>().await;
    assert_eq!(last.last(), Some(&false));
    assert!(proxy.read(&digest).await.unwrap() == content);
}

#[tokio::test]
async fn blobs_of_another_digest_function_are_read_and_written() {
    let proxy = Proxy::new().await;
    for len in [10, CHUNK * 20] {
        let (there, new) = (content(1, len), content(2, len));
        let digest = DigestFunction::Blake3.digest(&there);
        let blob = Blob::Bytes(there.clone());
        let put = BlobStore::put(&proxy.backing.memory, &digest, blob).await;
        put.unwrap();
        assert_eq!(proxy.read(&digest).await.unwrap(), there);
        assert!(proxy.local.contains(&digest).await.unwrap());
        let digest = DigestFunction::Blake3.digest(&new);
        let chunks = stream::iter([Ok(new.clone())]);
        let put = proxy.store.put(&digest, Blob::stream(chunks)).await;
        assert_eq!(put.unwrap(), Put::Stored);
        assert!(proxy.backing.memory.contains(&digest).await.unwrap());
        assert_eq!(proxy.read(&digest).await.unwrap(), new);
    }
}

#[tokio::test]
async fn a_fetched_batch_gets_no_lease() {
    let proxy = Proxy::new().await;
    let content = content(1, 10);
    let digest = DigestFunction::Sha256.digest(&content);
    let put = proxy.store.put(&digest, Blob::Bytes(content)).await;
    put.unwrap();
    proxy.store.fetch_batch(&[digest]).await.remove(0).unwrap();
    let mut leased = Vec::new();
    proxy
        .local
        .visit(&mut |candidate| leased.push(candidate.leased));
    assert_eq!(leased, [false]);
}

#[tokio::test]
async fn a_fetched_batch_is_read_without_the_backing_cache() {
    let proxy = Proxy::new().await;
    let contents = [content(1, 10), content(2, CHUNK)];
    let mut digests = Vec::new();
    for content in &contents {
        digests.push(proxy.backing.has(content).await);
    }
    let missing = DigestFunction::Sha256.digest(b"missing");
    let wanted = [digests[0], missing, digests[1]];
    let fetched = proxy.store.fetch_batch(&wanted).await;
    assert!(fetched[0].is_ok() && fetched[2].is_ok(), "{fetched:?}");
    assert!(matches!(&fetched[1], Err(Error::NotFound(digest)) if *digest == missing));
    proxy.backing.script(|script| script.down = true);
    let read = proxy.store.get_batch(&digests).await;
    assert_eq!(
        read.into_iter().map(Result::unwrap).collect::<Vec<_>>(),
        contents
    );
    assert!(matches!(
        &proxy.store.fetch_batch(&wanted).await[1],
        Err(Error::Unavailable(_))
    ));
}
