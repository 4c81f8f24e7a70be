//! The traits of stores: blobs, interrupted uploads, and action results.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future;
use gorego_limits::{Budget, Permit};
use reapi::v2::ActionResult;

use crate::{Blob, Digest, DigestFunction, Result, UploadId};

/// A content-addressed store. The methods for batches have defaults that call the others for each blob.
///
/// The empty blob is always present.
#[async_trait]
pub trait BlobStore: Send + Sync + fmt::Debug + 'static {
    /// Returns the missing ones of `digests`, each once, in the order of their first mention. Extends the
    /// leases of the others, if the store has leases.
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>>;

    /// Returns the blob's content from byte `offset` to its end. `Error::NotFound` if the blob is missing,
    /// `Error::OffsetPastEnd` if `offset` exceeds its size.
    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob>;

    /// Stores `blob` under `digest`. It becomes visible when this returns, and only if its size and hash
    /// match. Returns early without reading the content if the blob is or becomes present.
    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put>;

    /// Returns the digest functions that the store supports, as far as known.
    async fn digest_functions(&self) -> Vec<DigestFunction> {
        DigestFunction::ALL.to_vec()
    }

    /// Returns the number of outages so far of a store behind a network. Blobs that were present before an
    /// outage may be missing after it.
    fn outages(&self) -> u64 {
        0
    }

    /// Fetches blobs from a slower tier, so that a following [`Self::get_batch`] need not wait for it.
    /// Returns a result for each blob, in order: the digest to read it by, or the error of `get_batch`.
    /// Callers reserve memory for the content after this, so that none is idle while a server is slow.
    async fn fetch_batch(&self, digests: &[Digest]) -> Vec<Result<Digest>> {
        digests.iter().copied().map(Ok).collect()
    }

    /// Returns the whole content of several blobs, a result for each, in order. The caller limits their
    /// total size.
    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        future::join_all(
            digests
                .iter()
                .map(|digest| async move { self.get(digest, 0).await?.into_bytes().await }),
        )
        .await
    }

    /// Stores several blobs. Returns a result for each, in order.
    async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        future::join_all(
            blobs.into_iter().map(|(digest, content)| async move {
                self.put(&digest, Blob::Bytes(content)).await
            }),
        )
        .await
    }
}

/// The outcome of a successful [`BlobStore::put`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The content was read to its end and stored.
    Stored,
    /// The blob was present, or another put finished first. The content may be unread.
    Existed,
}

/// A store of interrupted uploads (`ByteStream.QueryWriteStatus`).
#[async_trait]
pub trait Uploads: Send + Sync + fmt::Debug + 'static {
    /// Returns the number of bytes stored of an upload, where a put of a [`Blob::Stream`] may resume. Zero for
    /// an unknown upload.
    async fn committed(&self, digest: &Digest, upload: &UploadId) -> Result<u64>;
}

/// An action result and its memory.
#[derive(Debug)]
pub struct CachedResult {
    /// The result; boxed, since each layer of the stores moves it.
    pub result: Box<ActionResult>,
    /// The permit for the result's memory. Drop it with the result.
    pub permit: Permit,
}

/// A store of action results by instance name and action digest.
#[async_trait]
pub trait ActionCache: Send + Sync + fmt::Debug + 'static {
    /// Returns the action's result. Reserves `memory` for it before decoding. `Error::NoResult` if there is
    /// none, `Error::Incomplete` if it names a missing blob.
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult>;

    /// Stores the result. Replaces an earlier one atomically.
    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()>;
}

/// Reads of an observer, which change neither last uses nor leases.
#[async_trait]
pub trait Peek: Send + Sync + fmt::Debug + 'static {
    /// Returns the verified content of a blob. `Error::NotFound` if it is missing or corrupt. The caller limits the
    /// size.
    async fn peek_blob(&self, digest: &Digest) -> Result<Bytes>;

    /// Returns the action's result, complete or not. `Error::NoResult` if there is none.
    async fn peek_result(&self, instance: &str, action: &Digest) -> Result<ActionResult>;
}

/// Shorthands for blob stores.
#[async_trait]
pub trait BlobStoreExt: BlobStore {
    /// Reports whether the blob is present, and extends its lease.
    async fn contains(&self, digest: &Digest) -> Result<bool> {
        Ok(self
            .find_missing(std::slice::from_ref(digest))
            .await?
            .is_empty())
    }
}

impl<S: BlobStore + ?Sized> BlobStoreExt for S {}

/// Shorthands for action caches.
#[async_trait]
pub trait ActionCacheExt: ActionCache {
    /// Returns the result; `None` if there is none or it is incomplete. Reserves no memory, so it is for callers
    /// that read one result at a time.
    async fn find(&self, instance: &str, action: &Digest) -> Result<Option<ActionResult>> {
        let memory = Budget::memory("memory for an action result", u64::MAX);
        match self.get(instance, action, &memory).await {
            Ok(found) => Ok(Some(*found.result)),
            Err(error) if error.is_miss() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl<A: ActionCache + ?Sized> ActionCacheExt for A {}
