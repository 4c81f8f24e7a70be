//! Clients whose calls wait for a slow backing cache, beside others whose calls do not.

use std::{future::pending, sync::Arc};

use crate::common::*;
use async_trait::async_trait;
use bytes::Bytes;
use gorego_limits::Budget;
use gorego_server::{Options, Stores};
use gorego_storage::{
    ActionCache, Blob, BlobStore, CachedResult, Digest, DigestFunction, MemoryStore, Put, Result,
};
use reapi::v2::{
    ActionResult, BatchReadBlobsRequest, GetActionResultRequest, UpdateActionResultRequest,
};
use tokio::{sync::watch, task::JoinSet, time::timeout};

const SIZE: u64 = 2_000_000;

/// A store whose backing cache has blobs of [`SIZE`] bytes, takes results, and never answers.
#[derive(Debug, Default)]
struct Waiting {
    local: MemoryStore,
    /// The number of calls that wait for the backing cache.
    calls: watch::Sender<usize>,
}

impl Waiting {
    async fn wait<T>(&self) -> T {
        self.calls.send_modify(|calls| *calls += 1);
        pending().await
    }

    async fn wait_for_any(&self, digests: &[Digest]) {
        if !self.local.find_missing(digests).await.unwrap().is_empty() {
            self.wait::<()>().await;
        }
    }
}

#[async_trait]
impl BlobStore for Waiting {
    async fn find_missing(&self, _: &[Digest]) -> Result<Vec<Digest>> {
        Ok(Vec::new())
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        BlobStore::get(&self.local, digest, offset).await
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        BlobStore::put(&self.local, digest, blob).await
    }

    async fn fetch_batch(&self, digests: &[Digest]) -> Vec<Result<Digest>> {
        self.wait_for_any(digests).await;
        digests.iter().copied().map(Ok).collect()
    }

    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        self.wait_for_any(digests).await;
        self.local.get_batch(digests).await
    }
}

#[async_trait]
impl ActionCache for Waiting {
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        ActionCache::get(&self.local, instance, action, memory).await
    }

    async fn put(&self, _: &str, _: &Digest, _: ActionResult) -> Result<()> {
        self.wait().await
    }
}

fn batch(digest: &Digest) -> BatchReadBlobsRequest {
    BatchReadBlobsRequest {
        digests: vec![digest.to_proto()],
        ..BatchReadBlobsRequest::default()
    }
}

/// Starts calls on connections of their own that wait for the backing cache: one of each method.
async fn wait_for_backing(server: &Server, store: &Waiting) -> JoinSet<()> {
    let mut calls = JoinSet::new();
    let absent = Digest::from_hash(DigestFunction::Sha256, &[1; 32], SIZE).unwrap();
    let mut cas = server.cas().await;
    calls.spawn(async move { drop(cas.batch_read_blobs(batch(&absent)).await) });
    let action = sha256(b"action");
    let stored = ActionResult {
        stdout_digest: Some(absent.to_proto()),
        ..ActionResult::default()
    };
    ActionCache::put(&store.local, "", &action, stored)
        .await
        .unwrap();
    let mut actions = server.actions().await;
    calls.spawn(async move {
        let request = GetActionResultRequest {
            action_digest: Some(action.to_proto()),
            inline_stdout: true,
            ..GetActionResultRequest::default()
        };
        drop(actions.get_action_result(request).await);
    });
    let mut actions = server.actions().await;
    calls.spawn(async move {
        let request = UpdateActionResultRequest {
            action_digest: Some(action.to_proto()),
            action_result: Some(ActionResult {
                stdout_raw: noise(2_000_000, 2),
                ..ActionResult::default()
            }),
            ..UpdateActionResultRequest::default()
        };
        drop(actions.update_action_result(request).await);
    });
    calls
}

#[tokio::test]
async fn calls_that_wait_for_the_backing_cache_hold_no_memory_that_hits_need() {
    let store = Arc::new(Waiting::default());
    let stores = Stores {
        blobs: Arc::<Waiting>::clone(&store),
        uploads: Arc::<MemoryStore>::default(),
        actions: Arc::<Waiting>::clone(&store),
    };
    let mut options = Options::default();
    let responses = Budget::memory("responses", SIZE);
    options.transport.memory.responses = responses.clone();
    let server = Server::over(stores, options).await;
    let hit = noise(1_500_000, 1);
    let digest = sha256(&hit);
    let blob = Blob::Bytes(hit.clone());
    BlobStore::put(&store.local, &digest, blob).await.unwrap();

    let _calls = wait_for_backing(&server, &store).await;
    let mut waiting = store.calls.subscribe();
    let all = timeout(LONG, waiting.wait_for(|calls| *calls == 3)).await;
    all.expect("all wait for the backing cache").unwrap();
    assert!(responses.try_reserve(SIZE).is_some(), "some is reserved");
    let mut cas = server.cas().await;
    let read = cas.batch_read_blobs(batch(&digest)).await.unwrap();
    assert_eq!(read.into_inner().responses[0].data, hit);
}
