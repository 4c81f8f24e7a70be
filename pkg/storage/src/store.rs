//! The two traits at the centre: what keeps blobs, and what keeps action results.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future;
use gorego_limits::{Budget, Permit};
use reapi::v2::ActionResult;

use crate::{Blob, Digest, DigestFunction, Error, Result, UploadId};

/// Content-addressed storage. Implementations and decorators provide the first three methods; the
/// batched ones have correct defaults and exist for stores that can do better.
///
/// The empty blob is present in every store, whether or not it was ever put.
#[async_trait]
pub trait BlobStore: Send + Sync + fmt::Debug + 'static {
    /// Which of `digests` are not here, each once, in the order of their first mention. Those that
    /// are here stay for the store's lease time, if it has one.
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>>;

    /// The blob's content from byte `offset` to its end. [`Error::NotFound`] when it is not here,
    /// [`Error::OffsetPastEnd`] when `offset` exceeds its size.
    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob>;

    /// Stores `blob` under `digest`. It is visible once this returns, and only if its size and
    /// hash are the digest's. Returns early, content unread, when the blob is or becomes present.
    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put>;

    /// The digest functions of the blobs that it takes and gives, as far as that is known now.
    async fn digest_functions(&self) -> Vec<DigestFunction> {
        DigestFunction::ALL.to_vec()
    }

    /// Returns the number of outages seen so far of a store behind a network. Answers from before
    /// the last one may no longer hold: it may have come back without its blobs.
    fn outages(&self) -> u64 {
        0
    }

    /// Waits until [`Self::get_batch`] can read these blobs without another server, as far as possible.
    /// Returns a result each, in order: the digest to read the blob by, or the error of `get_batch`. Callers reserve memory for
    /// content after this, so that a slow server does not keep it from others.
    async fn fetch_batch(&self, digests: &[Digest]) -> Vec<Result<Digest>> {
        digests.iter().copied().map(Ok).collect()
    }

    /// The whole content of several blobs, a result each, in order. The caller bounds their sum.
    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        future::join_all(
            digests
                .iter()
                .map(|digest| async move { self.get(digest, 0).await?.into_bytes().await }),
        )
        .await
    }

    /// Stores several blobs, a result each, in order.
    async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        future::join_all(
            blobs.into_iter().map(|(digest, content)| async move {
                self.put(&digest, Blob::Bytes(content)).await
            }),
        )
        .await
    }
}

/// How a [`BlobStore::put`] ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The content was read to its end and stored.
    Stored,
    /// The blob was already here, or another put finished first; the content may be unread.
    Existed,
}

/// What a store keeps of uploads that broke off (`ByteStream.QueryWriteStatus`).
#[async_trait]
pub trait Uploads: Send + Sync + fmt::Debug + 'static {
    /// How many bytes of this upload are here, so that a put of [`Blob::Stream`] may resume there.
    /// Zero for an upload never heard of.
    async fn committed(&self, digest: &Digest, upload: &UploadId) -> Result<u64>;
}

/// An action result, and the memory that it takes.
#[derive(Debug)]
pub struct CachedResult {
    /// The result.
    pub result: ActionResult,
    /// Held for as long as the result is in memory.
    pub permit: Permit,
}

/// Action results by action digest, a namespace per instance name.
#[async_trait]
pub trait ActionCache: Send + Sync + fmt::Debug + 'static {
    /// Returns the action's result under this instance name. Reserves `memory` for it before it is decoded.
    /// [`Error::NoResult`] when there is none, [`Error::Incomplete`] when it names a blob that is missing.
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult>;

    /// Stores the result; the last put wins, atomically.
    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()>;
}

/// Conveniences over any blob store.
#[async_trait]
pub trait BlobStoreExt: BlobStore {
    /// The whole content of a blob of at most `limit` bytes; a larger one is [`Error::Full`].
    async fn get_bytes(&self, digest: &Digest, limit: u64) -> Result<Bytes> {
        if digest.size() > limit {
            return Err(Error::Full {
                what: digest.to_string(),
                bytes: digest.size(),
                why: format!("at most {limit} bytes are read into memory at once"),
            });
        }
        self.get(digest, 0).await?.into_bytes().await
    }

    /// Whether the blob is here; extends its lease.
    async fn contains(&self, digest: &Digest) -> Result<bool> {
        Ok(self
            .find_missing(std::slice::from_ref(digest))
            .await?
            .is_empty())
    }
}

impl<S: BlobStore + ?Sized> BlobStoreExt for S {}

/// Conveniences over any action cache.
#[async_trait]
pub trait ActionCacheExt: ActionCache {
    /// Returns the result, `None` when there is none or when it is incomplete. Its memory is not counted:
    /// for callers that hold few of them.
    async fn find(&self, instance: &str, action: &Digest) -> Result<Option<ActionResult>> {
        let memory = Budget::memory("memory for an action result", u64::MAX);
        match self.get(instance, action, &memory).await {
            Ok(found) => Ok(Some(found.result)),
            Err(error) if error.is_result_miss() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl<A: ActionCache + ?Sized> ActionCacheExt for A {}
