//! Uploads of blobs of the local tier, one at a time of each.

use std::{slice, sync::atomic::Ordering::SeqCst, time::Duration};

use crate::common::{self, CHUNK, Proxy, content, outage::left, sha256};
use bytes::Bytes;
use futures::{StreamExt as _, future::join_all, stream};
use gorego_proxy::{OnOutage, Options};
use gorego_storage::{
    Blob, BlobStore, BlobStoreExt as _, BlobStream, Digest, Error, Resume, UploadId, Uploads,
};
use tokio::time::{sleep, timeout};

/// Resumes an upload where it ended.
async fn resume(proxy: &Proxy, digest: &Digest, content: &Bytes) -> Result<(), Error> {
    let upload = UploadId::new("upload");
    let offset = proxy.store.committed(digest, &upload).await.unwrap();
    let rest = content.slice(usize::try_from(offset).unwrap()..);
    let pieces = if rest.is_empty() {
        vec![]
    } else {
        vec![Ok(rest)]
    };
    let blob = Blob::Stream(BlobStream {
        chunks: stream::iter(pieces).boxed(),
        resume: Some(Resume { upload, offset }),
        verified: None,
    });
    proxy.store.put(digest, blob).await.map(drop)
}

#[tokio::test(start_paused = true)]
async fn an_upload_continues_after_its_client_gave_up() {
    let proxy = Proxy::new().await;
    let latency = Duration::from_secs(70);
    proxy.backing.script(|script| script.latency = latency);
    let content = content(1, CHUNK * 20);
    let digest = sha256(&content);
    for _ in 0..4 {
        let attempt = resume(&proxy, &digest, &content);
        if let Ok(done) = timeout(Duration::from_mins(1), attempt).await {
            done.unwrap();
            return;
        }
        sleep(Duration::from_secs(1)).await;
    }
    panic!("after {} puts", proxy.backing.puts.load(SeqCst));
}

#[tokio::test(start_paused = true)]
async fn concurrent_lookups_upload_a_local_blob_once() {
    let options = Options {
        existence_ttl: Duration::ZERO,
        ..common::options()
    };
    for len in [10, CHUNK * 20] {
        let proxy = Proxy::with(options.clone(), common::GIB).await;
        let content = content(1, len);
        let digest = sha256(&content);
        let put = BlobStore::put(&*proxy.local, &digest, Blob::Bytes(content)).await;
        put.unwrap();
        let latency = Duration::from_millis(50);
        proxy.backing.script(|script| script.latency = latency);
        let five = (0..5).map(|_| proxy.store.find_missing(slice::from_ref(&digest)));
        // One of the callers goes away.
        let gone = proxy.store.find_missing(slice::from_ref(&digest));
        let (found, _) = tokio::join!(join_all(five), timeout(latency * 3 / 2, gone));
        for missing in found {
            assert_eq!(missing.unwrap(), []);
        }
        assert_eq!(proxy.backing.puts.load(SeqCst), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn concurrent_lookups_upload_few_batches_at_once() {
    const MANY: u8 = 200;
    let proxy = Proxy::new().await;
    let mut digests = Vec::new();
    for seed in 0..MANY {
        let content = content(seed, 10);
        let digest = sha256(&content);
        let put = BlobStore::put(&*proxy.local, &digest, Blob::Bytes(content)).await;
        put.unwrap();
        digests.push(digest);
    }
    let latency = Duration::from_millis(50);
    proxy.backing.script(|script| script.latency = latency);
    let each = digests.chunks(1);
    let asked = each.map(|digest| proxy.store.find_missing(digest));
    for missing in join_all(asked).await {
        assert_eq!(missing.unwrap(), []);
    }
    let most = proxy.backing.most_putting.load(SeqCst);
    assert!((2..=32).contains(&most), "{most}");
    assert_eq!(proxy.backing.puts.load(SeqCst), u64::from(MANY));
}

#[tokio::test(start_paused = true)]
async fn closing_the_proxy_cancels_uploads() {
    let proxy = Proxy::new().await;
    let content = content(1, CHUNK * 20);
    let digest = sha256(&content);
    let put = BlobStore::put(&*proxy.local, &digest, Blob::Bytes(content)).await;
    put.unwrap();
    let latency = Duration::from_hours(1);
    proxy
        .backing
        .script(|script| script.latency = Duration::from_secs(1));
    let asked = [digest];
    let find = proxy.store.find_missing(&asked);
    let close = async {
        sleep(Duration::from_millis(1500)).await;
        proxy.store.close().await;
    };
    let (missing, closed) = tokio::join!(find, timeout(latency, close));
    closed.unwrap();
    assert_eq!(missing.unwrap(), asked);
}

#[tokio::test(start_paused = true)]
async fn an_upload_cancelled_by_closing_is_named_in_the_error() {
    let proxy = Proxy::new().await;
    let content = content(1, CHUNK * 20);
    let digest = sha256(&content);
    // The proxy closes during the retry from the staged file.
    proxy.backing.script(|script| {
        script.failing_puts = 1;
        script.latency = Duration::from_secs(1);
    });
    let put = proxy
        .store
        .put(&digest, Blob::stream(stream::iter([Ok(content)])));
    let close = async {
        sleep(Duration::from_millis(1500)).await;
        proxy.store.close().await;
    };
    let (put, ()) = tokio::join!(put, close);
    let error = put.unwrap_err().to_string();
    assert!(
        error.contains("cut off") && error.contains(&digest.hex()),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_pending_blob_is_not_reported_as_uploaded() {
    let options = Options {
        on_outage: OnOutage::Degrade,
        ..common::options()
    };
    let proxy = Proxy::with(options, common::GIB).await;
    let content = content(1, CHUNK * 20);
    let digest = sha256(&content);
    proxy.backing.script(|script| {
        script.down = true;
        script.latency = Duration::from_secs(1);
    });
    let whole = proxy.store.put(&digest, Blob::Bytes(content.clone()));
    // The staged blob of this put is retried after the other put was accepted, during the drain.
    let streamed = async {
        sleep(Duration::from_millis(500)).await;
        let chunks = stream::iter([Ok(content.clone())]);
        proxy.store.put(&digest, Blob::stream(chunks)).await
    };
    let back = async {
        sleep(Duration::from_millis(1200)).await;
        proxy.backing.script(|script| {
            script.down = false;
            script.failing_puts = u32::MAX;
        });
    };
    let (whole, streamed, ()) = tokio::join!(whole, streamed, back);
    whole.unwrap();
    streamed.unwrap();
    sleep(Duration::from_mins(1)).await;
    assert_eq!(proxy.outbox.depth().borrow().entries, 1);
    proxy.backing.script(|script| script.failing_puts = 0);
    left(&proxy, 0).await;
    assert!(proxy.backing.memory.contains(&digest).await.unwrap());
}
