//! The store of two tiers, composed of their reads, writes and lookups.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use gorego_storage::{
    ActionCache, Blob, BlobStore, Digest, DigestFunction, Evictable as _, Put, Result, UploadId,
    Uploads,
};
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
    tasks::Tasks,
    uploads,
    writes::Writes,
};

/// The blobs of two tiers. A blob that is read is fetched once and stored in the local tier. A blob that is
/// written is in the backing cache before a client hears that it is stored, or the local tier serves it.
#[derive(Clone)]
pub struct ProxyStore {
    pub(crate) tiers: Arc<Tiers>,
}

/// The parts of a proxy.
pub(crate) struct Tiers {
    pub(crate) local: Arc<LocalStore>,
    pub(crate) backing: Arc<BackingBlobs>,
    pub(crate) results: Arc<dyn ActionCache>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) options: Options,
    pub(crate) presence: Arc<Presence>,
    pub(crate) prefetch: Option<Prefetch>,
    pub(crate) tasks: Tasks,
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
        let (tasks, on_outage) = (Tasks::default(), options.on_outage);
        let Backing {
            blobs,
            actions: results,
        } = backing;
        let clock = Arc::clone(&outbox.clock);
        let backing = Arc::new(BackingBlobs::new(blobs, options.existence_ttl, clock));
        let fetches = Fetches::new(
            Arc::clone(&local),
            Arc::clone(&backing),
            options.memory.clone(),
            tasks.clone(),
        );
        let fetches = Arc::new(fetches);
        let uploads =
            uploads::Uploads::new(Arc::clone(&local), Arc::clone(&backing), tasks.clone());
        let uploads = Arc::new(uploads);
        let presence = Presence::new(
            Arc::clone(&local),
            Arc::clone(&backing),
            Arc::clone(&uploads),
            on_outage,
        );
        let presence = Arc::new(presence);
        let start = || Prefetch::start(Arc::clone(&fetches), local.usage().limit, &tasks);
        let prefetch = options.prefetch.then(start);
        if !options.read_only {
            let drain = Drain {
                outbox: Arc::clone(&outbox),
                backing: Arc::clone(&backing),
                results: Arc::clone(&results),
                uploads: Arc::clone(&uploads),
                presence: Arc::clone(&presence),
                trees: options.memory.bringing.clone(),
                retry: options.outbox_retry,
            };
            tasks.spawn(drain.run());
        }
        let writes = Writes {
            local: Arc::clone(&local),
            backing: Arc::clone(&backing),
            uploads,
            outbox: Arc::clone(&outbox),
            on_outage,
            tasks: tasks.clone(),
        };
        let tiers = Tiers {
            local,
            backing,
            results,
            outbox,
            options,
            presence,
            prefetch,
            tasks,
            reads: Reads::new(fetches, on_outage),
            writes,
        };
        Self {
            tiers: Arc::new(tiers),
        }
    }

    /// Cancels background work. Fetches and uploads in progress fail.
    pub async fn close(&self) {
        self.tiers.tasks.close().await;
    }
}

#[async_trait]
impl BlobStore for ProxyStore {
    /// Returns those of the backing cache, which is asked for every blob that the local tier lacks.
    async fn digest_functions(&self) -> Vec<DigestFunction> {
        self.tiers.backing.store.digest_functions().await
    }

    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        if self.tiers.options.read_only {
            return self.tiers.presence.find_missing_read_only(digests).await;
        }
        self.tiers.presence.find_missing(digests).await
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        self.tiers.reads.get(digest, offset).await
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        if self.tiers.options.read_only || digest.is_empty_blob() {
            return BlobStore::put(&*self.tiers.local, digest, blob).await;
        }
        self.tiers.writes.put(digest, blob).await
    }

    async fn fetch_batch(&self, digests: &[Digest]) -> Vec<Result<Digest>> {
        self.tiers.reads.fetch_batch(digests).await
    }

    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        self.tiers.reads.get_batch(digests).await
    }

    async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        if self.tiers.options.read_only {
            return self.tiers.local.put_batch(blobs).await;
        }
        self.tiers.writes.put_batch(blobs).await
    }
}

#[async_trait]
impl Uploads for ProxyStore {
    async fn committed(&self, digest: &Digest, upload: &UploadId) -> Result<u64> {
        self.tiers.local.committed(digest, upload).await
    }
}

impl fmt::Debug for ProxyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyStore")
            .field("local", &self.tiers.local)
            .field("backing", &self.tiers.backing)
            .finish_non_exhaustive()
    }
}
