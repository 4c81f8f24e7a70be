//! The store of two tiers, composed of their reads, writes and lookups.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use gorego_storage::{Blob, BlobStore, Digest, DigestFunction, Put, Result, UploadId, Uploads};
use gorego_storage_local::LocalStore;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    backing::BackingBlobs,
    fetch::Fetches,
    options::{Backing, Options},
    outbox::Outbox,
    tiers::Tiers,
    uploads,
};

/// The blobs of two tiers. A blob that is read is fetched once and stored in the local tier. A write is acknowledged
/// once the backing cache has the blob, or once it is pending in the outbox; with a read-only backing cache, once the
/// local tier has it.
#[derive(Clone, Debug)]
pub struct ProxyStore {
    pub(crate) fetches: Arc<Fetches>,
    pub(crate) uploads: Arc<uploads::Uploads>,
}

impl ProxyStore {
    /// Puts `local` in front of `backing`, and uploads the writes that are pending in `outbox`. Call it within
    /// a Tokio runtime.
    pub fn new(
        local: Arc<LocalStore>,
        backing: Backing,
        outbox: Arc<Outbox>,
        options: Options,
    ) -> Self {
        let (ttl, accepted) = (options.existence_ttl, Arc::clone(&outbox));
        let tiers = Tiers {
            local,
            backing: Arc::new(BackingBlobs::new(backing.blobs, ttl, accepted)),
            backing_results: backing.actions,
            outbox,
            options,
            tracker: TaskTracker::new(),
            cancel: CancellationToken::new(),
        };
        let uploads = Arc::new(uploads::Uploads::new(tiers.clone()));
        if !tiers.options.read_only {
            tiers.spawn(Arc::clone(&uploads).drain());
        }
        let fetches = Arc::new(Fetches::new(tiers));
        Self { fetches, uploads }
    }

    pub(crate) fn tiers(&self) -> &Tiers {
        &self.uploads.tiers
    }

    /// Cancels background work. Fetches and uploads in progress fail.
    pub async fn close(&self) {
        self.tiers().close().await;
    }
}

#[async_trait]
impl BlobStore for ProxyStore {
    /// Returns the digest functions of the backing cache, to which every miss of the local tier goes.
    async fn digest_functions(&self) -> Vec<DigestFunction> {
        self.tiers().backing.store.digest_functions().await
    }

    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        self.uploads.find_missing(digests).await
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        self.fetches.get(digest, offset).await
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        if self.tiers().options.read_only || digest.is_empty_blob() {
            return BlobStore::put(&*self.tiers().local, digest, blob).await;
        }
        self.uploads.put(digest, blob).await
    }

    async fn fetch_batch(&self, digests: &[Digest]) -> Vec<Result<Digest>> {
        self.fetches.fetch_batch(digests).await
    }

    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        self.fetches.get_batch(digests).await
    }

    async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        if self.tiers().options.read_only {
            return self.tiers().local.put_batch(blobs).await;
        }
        self.uploads.put_batch(blobs).await
    }
}

#[async_trait]
impl Uploads for ProxyStore {
    async fn committed(&self, digest: &Digest, upload: &UploadId) -> Result<u64> {
        self.tiers().local.committed(digest, upload).await
    }
}
