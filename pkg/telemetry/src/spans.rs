//! A decorator of stores that gives each operation of a traced call a span.

use std::{slice::from_ref, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gorego_limits::Budget;
use gorego_storage::{
    ActionCache, Blob, BlobStore, CachedResult, Digest, DigestFunction, Put, Result,
    span::{Tier, traced},
};
use reapi::v2::ActionResult;

/// A store of a tier whose operations are traced.
#[derive(Debug)]
pub struct Traced<S: ?Sized> {
    tier: Tier,
    store: Arc<S>,
}

impl<S: ?Sized> Traced<S> {
    /// Wraps the store of a tier.
    pub const fn new(tier: Tier, store: Arc<S>) -> Self {
        Self { tier, store }
    }
}

#[async_trait]
impl<S: BlobStore + ?Sized> BlobStore for Traced<S> {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let missing = self.store.find_missing(digests);
        self.tier.traced("find_missing", digests, missing).await
    }

    /// The span of a stream ends with the stream.
    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        let span = self.tier.span("get", from_ref(digest));
        let blob = traced(&span, self.store.get(digest, offset)).await?;
        Ok(match blob {
            Blob::Stream(mut blob) if !span.is_none() => {
                let mut chunks = blob.chunks;
                blob.chunks = stream::poll_fn(move |context| {
                    let _entered = span.enter();
                    chunks.poll_next_unpin(context)
                })
                .boxed();
                Blob::Stream(blob)
            }
            blob => blob,
        })
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        let put = self.store.put(digest, blob);
        self.tier.traced("put", from_ref(digest), put).await
    }

    async fn digest_functions(&self) -> Vec<DigestFunction> {
        self.store.digest_functions().await
    }

    fn outages(&self) -> u64 {
        self.store.outages()
    }

    async fn fetch_batch(&self, digests: &[Digest]) -> Vec<Result<Digest>> {
        let fetched = self.store.fetch_batch(digests);
        self.tier.traced("fetch_batch", digests, fetched).await
    }

    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        let contents = self.store.get_batch(digests);
        self.tier.traced("get_batch", digests, contents).await
    }

    async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        let digests: Vec<Digest> = blobs.iter().map(|(digest, _)| *digest).collect();
        let puts = self.store.put_batch(blobs);
        self.tier.traced("put_batch", &digests, puts).await
    }
}

#[async_trait]
impl<S: ActionCache + ?Sized> ActionCache for Traced<S> {
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        let found = self.store.get(instance, action, memory);
        self.tier
            .traced("get_result", from_ref(action), found)
            .await
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        let put = self.store.put(instance, action, result);
        self.tier.traced("put_result", from_ref(action), put).await
    }
}
