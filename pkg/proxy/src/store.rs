//! The store of two tiers, composed of their reads, writes and lookups.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use gorego_storage::{Blob, BlobStore, Digest, DigestFunction, Put, Result, UploadId, Uploads};
use gorego_storage_local::LocalStore;

use crate::{
    backing::BackingBlobs,
    drain::Drain,
    fetch::Fetches,
    options::{Backing, Options},
    outbox::Outbox,
    prefetch::Prefetch,
    presence::Presence,
    reads::Reads,
    tiers::Tiers,
    uploads,
    writes::Writes,
};

/// The blobs of two tiers. A blob that is read is fetched once and stored in the local tier. A write is acknowledged
/// once the backing cache has the blob, or once it is pending in the outbox; with a read-only backing cache, once the
/// local tier has it.
#[derive(Clone)]
pub struct ProxyStore {
    pub(crate) parts: Arc<Parts>,
}

/// The parts of a proxy.
pub(crate) struct Parts {
    pub(crate) tiers: Tiers,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) presence: Arc<Presence>,
    pub(crate) prefetch: Option<Arc<Prefetch>>,
    reads: Reads,
    writes: Writes,
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
        let (ttl, clock) = (options.existence_ttl, Arc::clone(&outbox.clock));
        let blobs = Arc::new(BackingBlobs::new(backing.blobs, ttl, clock));
        let tiers = Tiers::new(local, blobs, backing.actions, options);
        let fetches = Arc::new(Fetches::new(tiers.clone()));
        let uploads = Arc::new(uploads::Uploads::new(tiers.clone()));
        let presence = Arc::new(Presence::new(tiers.clone(), Arc::clone(&uploads)));
        let prefetch = || Arc::new(Prefetch::new(Arc::clone(&fetches)));
        let prefetch = tiers.options.prefetch.then(prefetch);
        if !tiers.options.read_only {
            let drain = Drain {
                tiers: tiers.clone(),
                outbox: Arc::clone(&outbox),
                uploads: Arc::clone(&uploads),
                presence: Arc::clone(&presence),
            };
            tiers.spawn(drain.run());
        }
        let writes = Writes {
            tiers: tiers.clone(),
            uploads,
            outbox: Arc::clone(&outbox),
        };
        let parts = Parts {
            tiers,
            outbox,
            presence,
            prefetch,
            reads: Reads { fetches },
            writes,
        };
        Self {
            parts: Arc::new(parts),
        }
    }

    /// Cancels background work. Fetches and uploads in progress fail.
    pub async fn close(&self) {
        self.parts.tiers.close().await;
    }
}

#[async_trait]
impl BlobStore for ProxyStore {
    /// Returns the digest functions of the backing cache, to which every miss of the local tier goes.
    async fn digest_functions(&self) -> Vec<DigestFunction> {
        self.parts.tiers.backing.store.digest_functions().await
    }

    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        if self.parts.tiers.options.read_only {
            return self.parts.presence.find_missing_read_only(digests).await;
        }
        self.parts.presence.find_missing(digests).await
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        self.parts.reads.get(digest, offset).await
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        if self.parts.tiers.options.read_only || digest.is_empty_blob() {
            return BlobStore::put(&*self.parts.tiers.local, digest, blob).await;
        }
        self.parts.writes.put(digest, blob).await
    }

    async fn fetch_batch(&self, digests: &[Digest]) -> Vec<Result<Digest>> {
        self.parts.reads.fetch_batch(digests).await
    }

    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        self.parts.reads.get_batch(digests).await
    }

    async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        if self.parts.tiers.options.read_only {
            return self.parts.tiers.local.put_batch(blobs).await;
        }
        self.parts.writes.put_batch(blobs).await
    }
}

#[async_trait]
impl Uploads for ProxyStore {
    async fn committed(&self, digest: &Digest, upload: &UploadId) -> Result<u64> {
        self.parts.tiers.local.committed(digest, upload).await
    }
}

impl fmt::Debug for ProxyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyStore")
            .field("local", &self.parts.tiers.local)
            .field("backing", &self.parts.tiers.backing)
            .finish_non_exhaustive()
    }
}
