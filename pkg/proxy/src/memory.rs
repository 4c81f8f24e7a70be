//! Budgets for the memory that clients can make the proxy hold.

use gorego_limits::{Budget, Full, Permit};
use gorego_storage::{CHUNK_SIZE, Digest};

/// The memory of a large blob while it is written, in bytes: the pieces being written, collected for
/// writing, and queued in front of the writer. No piece exceeds [`CHUNK_SIZE`].
const WRITTEN: u64 = 6 * CHUNK_SIZE as u64;
/// The memory of a large blob that cannot be written, in bytes; less if less is free.
pub(crate) const UNWRITTEN: u64 = 16 << 20;

/// Budgets that keep slow readers from taking the memory that others need: a small blob never waits for
/// large ones, and a large blob has a share as long as it can be written.
#[derive(Clone, Debug)]
pub struct Memory {
    /// Small blobs that are fetched.
    pub small: Budget,
    /// Large blobs that are fetched.
    pub large: Budget,
    /// Additional memory of large blobs that cannot be written.
    pub unwritten: Budget,
    /// Trees of results that clients look up.
    pub lookup_trees: Budget,
    /// Trees of results on their way to the backing cache, whose outputs are uploaded while the tree is read, and
    /// results that are revalidated. Either takes longer than a lookup, so lookups have a budget of their own.
    pub transfer_trees: Budget,
    /// Pieces that are read from files being written.
    pub pieces: Budget,
}

const MIB: u64 = 1024 * 1024;

impl Default for Memory {
    fn default() -> Self {
        Self {
            small: Budget::memory("memory to fetch small blobs", 8 * MIB),
            large: Budget::memory("memory to fetch large blobs", 20 * MIB),
            unwritten: Budget::memory("memory for blobs that cannot be written", 16 * MIB),
            lookup_trees: Budget::memory("memory for trees", 8 * MIB),
            transfer_trees: Budget::memory("memory for background results", 4 * MIB),
            pieces: Budget::memory("memory for pieces of blobs", 8 * MIB),
        }
    }
}

impl Memory {
    /// Reserves memory to fetch a large blob.
    pub(crate) async fn reserve_large(&self, digest: &Digest) -> Result<Permit, Full> {
        self.large.reserve(digest.size().min(WRITTEN)).await
    }

    /// Reserves memory to fetch small blobs together.
    pub(crate) async fn reserve_small(&self, digests: &[Digest]) -> Result<Permit, Full> {
        let total = digests.iter().map(Digest::size).sum();
        self.small.reserve(total).await
    }

    /// Reserves additional memory for a blob that cannot be written, if there is any. Returns the number of
    /// bytes that may be in memory with it.
    pub(crate) fn reserve_unwritten(&self, digest: &Digest) -> (Option<Permit>, u64) {
        let size = digest.size();
        let most = size.min(UNWRITTEN);
        let more = self.unwritten.try_reserve(most.saturating_sub(WRITTEN));
        let most = if more.is_some() { most } else { WRITTEN };
        // One more piece may be on its way, unless the whole blob fits.
        let on_its_way = if size <= most { 0 } else { CHUNK_SIZE as u64 };
        (more, most - on_its_way)
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
    async fn small_blobs_never_wait_for_large_ones() {
        let memory = Memory::default();
        let mut reserved = Vec::new();
        while let Ok(permit) = memory.reserve_large(&blob(1 << 30)).await {
            reserved.push(permit);
        }
        assert_eq!(reserved.len() as u64, memory.large.total() / WRITTEN);
        drop(memory.reserve_small(&[blob(4 << 20)]).await.unwrap());
        reserved.pop();
        drop(memory.reserve_large(&blob(1 << 30)).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn unwritten_blobs_leave_the_memory_that_other_fetches_need() {
        let memory = Memory::default();
        let reserve = || memory.reserve_unwritten(&blob(1 << 30)).0;
        let more: Vec<_> = std::iter::from_fn(reserve).collect();
        let each = UNWRITTEN - WRITTEN;
        assert_eq!(more.len() as u64, memory.unwritten.total() / each);
        drop(memory.reserve_large(&blob(1 << 30)).await.unwrap());
        drop(memory.reserve_small(&[blob(10)]).await.unwrap());
    }
}
