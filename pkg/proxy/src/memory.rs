//! Budgets for the memory that clients can make the proxy hold, one for each kind.

use gorego_limits::{Budget, Full, Permit};
use gorego_storage::{CHUNK_SIZE, Digest};

use crate::flow::Flow;

/// The memory of a large blob, in bytes: the pieces being written, collected for writing, and
/// waiting on either side of the writer. No piece is larger than [`CHUNK_SIZE`].
const WRITTEN: u64 = 6 * CHUNK_SIZE as u64;
/// The memory that a large blob should have when it cannot be written, in bytes.
pub(crate) const UNWRITTEN: u64 = 16 << 20;

/// Budgets that keep stalled readers from taking the memory that others need: a small blob does not
/// wait for large ones, and a large blob has a share for as long as it can be written.
#[derive(Clone, Debug)]
pub struct Memory {
    /// Small blobs and batches that are fetched.
    pub small: Budget,
    /// Large blobs that are fetched.
    pub large: Budget,
    /// Additional memory of large blobs that cannot be written.
    pub unwritten: Budget,
    /// The trees of results that clients ask for.
    pub looking: Budget,
    /// The trees of results whose outputs are fetched meanwhile from the backing cache. Fetching
    /// takes longer, so lookups without it have a budget of their own.
    pub bringing: Budget,
    /// Pieces that readers get out of files that are being written.
    pub pieces: Budget,
}

const MIB: u64 = 1024 * 1024;

impl Default for Memory {
    fn default() -> Self {
        Self {
            small: Budget::memory("memory to fetch small blobs", 8 * MIB),
            large: Budget::memory("memory to fetch large blobs", 20 * MIB),
            unwritten: Budget::memory("memory for blobs that cannot be written", 16 * MIB),
            looking: Budget::memory("memory for trees", 8 * MIB),
            bringing: Budget::memory("memory for trees that are fetched", 4 * MIB),
            pieces: Budget::memory("memory for pieces of blobs", 8 * MIB),
        }
    }
}

impl Memory {
    /// Reserves the memory to fetch a blob.
    pub(crate) async fn reserve(&self, digest: &Digest) -> Result<Permit, Full> {
        if digest.size() <= CHUNK_SIZE as u64 {
            self.small.reserve(digest.size()).await
        } else {
            self.large.reserve(digest.size().min(WRITTEN)).await
        }
    }

    /// Reserves the memory to fetch some blobs at once.
    pub(crate) async fn reserve_batch(&self, digests: &[Digest]) -> Result<Permit, Full> {
        let total = digests.iter().map(Digest::size).sum();
        self.small.reserve(total).await
    }

    /// Reserves memory for a blob that the local store does not accept, if there is any.
    pub(crate) fn keep(&self, flow: &Flow) -> Option<Permit> {
        let size = flow.digest().size();
        let most = size.min(UNWRITTEN);
        let more = self.unwritten.try_reserve(most.saturating_sub(WRITTEN));
        let most = if more.is_some() { most } else { WRITTEN };
        flow.to_memory(if size <= most {
            size
        } else {
            most - CHUNK_SIZE as u64
        });
        more
    }
}

#[cfg(test)]
mod tests {
    use gorego_storage::DigestFunction::Sha256;

    use super::*;

    fn blob(size: u64) -> Digest {
        Digest::from_hash(Sha256, &[1; 32], size).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_blob_never_waits_for_large_ones() {
        let memory = Memory::default();
        let mut reserved = Vec::new();
        while let Ok(permit) = memory.reserve(&blob(1 << 30)).await {
            reserved.push(permit);
        }
        assert_eq!(reserved.len() as u64, memory.large.total() / WRITTEN);
        drop(memory.reserve(&blob(100_000)).await.unwrap());
        drop(memory.reserve_batch(&[blob(4 << 20)]).await.unwrap());
        reserved.pop();
        drop(memory.reserve(&blob(1 << 30)).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_blob_that_cannot_be_written_leaves_others_what_they_need_to_begin() {
        let memory = Memory::default();
        let kept = || memory.keep(&Flow::new(blob(1 << 30), memory.pieces.clone()));
        let more: Vec<_> = std::iter::from_fn(kept).collect();
        let each = UNWRITTEN - WRITTEN;
        assert_eq!(more.len() as u64, memory.unwritten.total() / each);
        drop(memory.reserve(&blob(1 << 30)).await.unwrap());
        drop(memory.reserve(&blob(10)).await.unwrap());
    }
}
