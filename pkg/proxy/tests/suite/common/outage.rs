//! Outages of the backing cache, and pending writes.

use std::time::Duration;

use bytes::Bytes;
use gorego_proxy::{OnOutage, Options};
use gorego_storage::{
    ActionCache, ActionCacheExt, Blob, BlobStore, BlobStoreExt as _, Digest, Evictable as _,
};
use prost_types::Timestamp;
use reapi::v2::{ActionResult, ExecutedActionMetadata, OutputFile};
use tokio::time::timeout;

use super::{GIB, Proxy, content, options, sha256};

pub(crate) fn degrading() -> Options {
    Options {
        on_outage: OnOutage::Degrade,
        ..options()
    }
}

/// A proxy whose backing cache is down.
pub(crate) async fn down() -> Proxy {
    let proxy = Proxy::with(degrading(), GIB).await;
    proxy.backing.script(|script| script.down = true);
    proxy
}

pub(crate) fn action() -> Digest {
    sha256(&content(99, 10))
}

/// Creates the result of an action with an exit code and, optionally, the second of its end.
pub(crate) fn result(output: &Digest, code: i32, ended: Option<i64>) -> ActionResult {
    let file = OutputFile {
        path: "out".to_owned(),
        digest: Some(output.to_proto()),
        ..OutputFile::default()
    };
    let metadata = |seconds| ExecutedActionMetadata {
        execution_completed_timestamp: Some(Timestamp { seconds, nanos: 0 }),
        ..ExecutedActionMetadata::default()
    };
    ActionResult {
        output_files: vec![file],
        exit_code: code,
        execution_metadata: ended.map(metadata),
        ..ActionResult::default()
    }
}

/// Puts content, and returns its digest.
pub(crate) async fn put(proxy: &Proxy, content: &Bytes) -> Digest {
    let digest = sha256(content);
    let put = proxy.store.put(&digest, Blob::Bytes(content.clone())).await;
    put.unwrap();
    digest
}

/// Returns the digest of a number.
pub(crate) fn name(number: u64) -> Digest {
    sha256(&Bytes::copy_from_slice(&number.to_le_bytes()))
}

pub(crate) async fn put_result(proxy: &Proxy, action: &Digest, result: ActionResult) {
    proxy.actions().put("", action, result).await.unwrap();
}

/// Ends the outage, and waits until no write is pending.
pub(crate) async fn replayed(proxy: &Proxy) {
    proxy.backing.script(|script| script.down = false);
    left(proxy, 0).await;
}

/// Waits until a number of writes is pending.
pub(crate) async fn left(proxy: &Proxy, entries: u64) {
    let mut depth = proxy.outbox.depth();
    let until = depth.wait_for(|depth| depth.entries == entries);
    timeout(Duration::from_hours(3), until)
        .await
        .unwrap()
        .unwrap();
}

pub(crate) async fn backing_has(proxy: &Proxy, digest: &Digest) -> bool {
    proxy.backing.memory.contains(digest).await.unwrap()
}

pub(crate) async fn backing_result(proxy: &Proxy) -> Option<ActionResult> {
    let got = ActionCacheExt::find(&proxy.backing.memory, "", &action()).await;
    got.unwrap()
}

pub(crate) async fn backing_put(proxy: &Proxy, result: &ActionResult) {
    let put = ActionCache::put(&proxy.backing.memory, "", &action(), result.clone()).await;
    put.unwrap();
}

/// Returns the names of the outbox's files, in order.
pub(crate) fn files(proxy: &Proxy) -> Vec<String> {
    let files = std::fs::read_dir(proxy.dir.path().join("outbox")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Evicts all blobs of the local tier that can be evicted.
pub(crate) fn evict_all(proxy: &Proxy) {
    let mut all = Vec::new();
    proxy.local.visit(&mut |candidate| all.push(candidate));
    all.retain(|candidate| !candidate.in_use);
    proxy.local.evict(&all, true);
}
