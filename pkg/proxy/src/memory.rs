//! What clients can make the proxy hold, a budget for each kind.

use gorego_limits::{Budget, Full, Permit};
use gorego_storage::{CHUNK_SIZE, Digest};

use crate::flow::Flow;

/// What a large blob has, in bytes: what is being written, being collected for that, and waiting on
/// either side of the writer, none of it in pieces above [`CHUNK_SIZE`].
const WRITTEN: u64 = 6 * CHUNK_SIZE as u64;
/// And what it should have, in bytes, when it cannot be written.
pub(crate) const UNWRITTEN: u64 = 16 << 20;

/// Budgets of which stalled readers cannot take the part that others need: a small blob does not wait
/// for large ones, and a large one has a share that lasts for as long as it can be written.
#[derive(Clone, Debug)]
pub struct Memory {
    /// Small blobs and batches that are fetched.
    pub small: Budget,
    /// Large blobs that are fetched.
    pub large: Budget,
    /// What those that cannot be written have beside that.
    pub unwritten: Budget,
    /// The trees of results that clients ask for.
    pub looking: Budget,
    /// The trees of results whose outputs are fetched from the backing cache meanwhile, which takes
    /// longer: nobody who only looks waits for it.
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
    /// What the fetch of a blob needs.
    pub(crate) async fn reserve(&self, digest: &Digest) -> Result<Permit, Full> {
        if digest.size() <= CHUNK_SIZE as u64 {
            self.small.reserve(digest.size()).await
        } else {
            self.large.reserve(digest.size().min(WRITTEN)).await
        }
    }

    /// What the fetch of some blobs at once needs.
    pub(crate) async fn reserve_batch(&self, digests: &[Digest]) -> Result<Permit, Full> {
        let total = digests.iter().map(Digest::size).sum();
        self.small.reserve(total).await
    }

    /// What there is for a blob that the local store has no use for, or no room.
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
