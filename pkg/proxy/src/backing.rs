//! The blobs of the backing cache, and a record of those that it is known to have.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use gorego_storage::{Blob, BlobStore, Digest, DigestFunction, Put, Result};

use crate::{outbox::Outbox, recent::Recent};

/// The most blobs that are known to be present; some 60 bytes each.
const CAPACITY: usize = 512 * 1024;

/// The blobs of the backing cache. Missing ones are never recorded. An outage ends all records, since the
/// backing cache may come back without its blobs.
#[derive(Debug)]
pub(crate) struct BackingBlobs {
    pub(crate) store: Arc<dyn BlobStore>,
    present: Recent<PresentBlob>,
    outbox: Arc<Outbox>,
}

/// The time between two outages of the backing cache, in which its answers stay valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Epoch(u32);

/// Enough of a digest to distinguish blobs.
type PresentBlob = (Epoch, [u8; 32], DigestFunction, u64);

fn present(epoch: Epoch, digest: &Digest) -> PresentBlob {
    (
        epoch,
        digest.hash_prefix(),
        digest.function(),
        digest.size(),
    )
}

impl BackingBlobs {
    /// Records each present blob of `store` for `ttl`, and each accepted one in `outbox`.
    pub(crate) fn new(store: Arc<dyn BlobStore>, ttl: Duration, outbox: Arc<Outbox>) -> Self {
        Self {
            store,
            present: Recent::new(ttl, CAPACITY),
            outbox,
        }
    }

    /// Returns the current epoch. Call it before the request whose response is recorded.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(u32::try_from(self.store.outages()).unwrap_or(u32::MAX))
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.present.contains(&present(self.epoch(), digest))
    }

    pub(crate) fn forget(&self, digest: &Digest) {
        self.present.remove(&present(self.epoch(), digest));
    }

    /// Records a blob that the backing cache reported in `epoch`.
    pub(crate) fn record(&self, epoch: Epoch, digest: &Digest) {
        self.present.insert(present(epoch, digest));
    }

    /// Records a blob that the backing cache accepted in `epoch`.
    pub(crate) fn accepted(&self, epoch: Epoch, digest: &Digest) {
        self.record(epoch, digest);
        self.outbox.queue.lock().accepted();
    }

    /// Returns the missing blobs. Looks up only those not recorded as present.
    pub(crate) async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let (mut unknown, epoch) = (digests.to_vec(), self.epoch());
        unknown.retain(|digest| !self.present.contains(&present(epoch, digest)));
        self.find_missing_now(&unknown).await
    }

    /// Looks up the blobs in the backing cache, and records the present ones. Returns the missing ones.
    pub(crate) async fn find_missing_now(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        if digests.is_empty() {
            return Ok(Vec::new());
        }
        let epoch = self.epoch();
        let missing = self.store.find_missing(digests).await?;
        let absent: HashSet<&Digest> = missing.iter().collect();
        for digest in digests.iter().filter(|digest| !absent.contains(digest)) {
            self.record(epoch, digest);
        }
        Ok(missing)
    }

    pub(crate) async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        let epoch = self.epoch();
        let put = self.store.put(digest, blob).await?;
        self.accepted(epoch, digest);
        Ok(put)
    }

    pub(crate) async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        if blobs.is_empty() {
            return Vec::new();
        }
        let epoch = self.epoch();
        let digests: Vec<Digest> = blobs.iter().map(|(digest, _)| *digest).collect();
        let put = self.store.put_batch(blobs).await;
        for (digest, put) in digests.iter().zip(&put) {
            if put.is_ok() {
                self.accepted(epoch, digest);
            }
        }
        put
    }
}
