//! Reads through both tiers: from the local tier, else by a fetch from the backing cache.

use std::{slice::from_ref, sync::Arc};

use bytes::Bytes;
use futures::future;
use gorego_storage::{Blob, BlobStore as _, Digest, Error, Result, span::Tier};

use crate::{
    batches::is_small,
    fetch::Fetches,
    flow::{Flow, reader::Reader},
};

impl Fetches {
    /// Returns the content from `offset` on, as it arrives.
    pub(crate) async fn get(self: &Arc<Self>, digest: &Digest, offset: u64) -> Result<Blob> {
        let local = self.tiers.local.get(digest, offset);
        let local = Tier::Local.traced("get", from_ref(digest), local).await;
        let outcome = outcome(&local);
        let found = match usable(digest, local) {
            Some(local) => local,
            None => self.fetch(*digest, offset).await,
        };
        let lookups = &self.tiers.local.traffic().blobs;
        lookups.record_try(digest, &outcome, &found);
        found
    }

    async fn fetch(self: &Arc<Self>, digest: Digest, offset: u64) -> Result<Blob> {
        if offset > digest.size() {
            return Err(Error::OffsetPastEnd { digest, offset });
        }
        if is_small(&digest) {
            let content = self.get_batch(&[digest]).await.pop();
            let mut content = content.unwrap_or(Err(Error::NotFound(digest)))?;
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            return Ok(Blob::Bytes(content.split_off(offset.min(content.len()))));
        }
        let join = |flow: &Arc<Flow>| Some((flow.read(offset)?, Arc::clone(flow)));
        let joined = self.join_all(&[digest], join).pop().flatten();
        let (blob, flow) = joined.ok_or(Error::NotFound(digest))?;
        self.or_missing(&digest, flow.started().await)?;
        Ok(blob)
    }

    pub(crate) async fn get_batch(self: &Arc<Self>, digests: &[Digest]) -> Vec<Result<Bytes>> {
        let local = self.tiers.local.get_batch(digests);
        let local = Tier::Local.traced("get_batch", digests, local).await;
        let join = |flow: &Arc<Flow>| flow.read(0);
        self.complete(digests, local, join, |_, blob| blob.into_bytes())
            .await
    }

    /// Fetches the blobs that the local tier lacks, and stores them there. A blob that cannot be stored is
    /// fetched again by a read.
    pub(crate) async fn fetch_batch(self: &Arc<Self>, digests: &[Digest]) -> Vec<Result<Digest>> {
        let local = self.tiers.local.fetch_batch(digests);
        let local = Tier::Local.traced("fetch_batch", digests, local).await;
        let outcomes: Vec<_> = local.iter().map(outcome).collect();
        let end = |digest, reader: Reader| async move { reader.verified().await.map(|()| digest) };
        let fetched = self.complete(digests, local, Reader::at_end, end).await;
        let lookups = &self.tiers.local.traffic().blobs;
        for ((digest, outcome), found) in digests.iter().zip(&outcomes).zip(&fetched) {
            lookups.record_try(digest, outcome, found);
        }
        fetched
    }

    /// Replaces the misses of the local tier by the results of fetches, which `join` joins and `end` waits for.
    async fn complete<T, J, F: Future<Output = Result<T>>>(
        self: &Arc<Self>,
        digests: &[Digest],
        local: Vec<Result<T>>,
        join: impl Fn(&Arc<Flow>) -> Option<J>,
        end: impl Fn(Digest, J) -> F,
    ) -> Vec<Result<T>> {
        let local = digests.iter().zip(local);
        let local: Vec<_> = local.map(|(digest, found)| usable(digest, found)).collect();
        let misses = digests.iter().zip(&local);
        let misses = misses.filter_map(|(digest, found)| found.is_none().then_some(*digest));
        let misses: Vec<Digest> = misses.collect();
        let joined = self.join_all(&misses, join);
        let fetched = misses.into_iter().zip(joined).map(|(digest, joined)| {
            let ended = joined.map(|joined| end(digest, joined));
            async move {
                let ended = ended.ok_or(Error::NotFound(digest))?.await;
                self.or_missing(&digest, ended)
            }
        });
        // At the same time, since none may wait for another.
        let mut fetched = future::join_all(fetched).await.into_iter();
        let local = local.into_iter();
        local
            .filter_map(|found| found.or_else(|| fetched.next()))
            .collect()
    }

    /// Replaces an error by a miss if the local tier serves alone.
    fn or_missing<T>(&self, digest: &Digest, found: Result<T>) -> Result<T> {
        found.map_err(|error| self.tiers.miss_or(Error::NotFound(*digest), error))
    }
}

fn outcome<T>(found: &Result<T>) -> Result<()> {
    found.as_ref().map(drop).map_err(Error::clone)
}

/// Returns the local tier's result, unless the backing cache may have a better one.
fn usable<T>(digest: &Digest, found: Result<T>) -> Option<Result<T>> {
    match found {
        Err(Error::NotFound(_)) => None,
        Err(error @ Error::Io { .. }) => {
            tracing::warn!(%digest, %error, "failed to read a blob of the local tier; fetching it");
            None
        }
        found => Some(found),
    }
}
