//! How much of what is fetched may be in memory.
//!
//! Besides this there is, of each fetch, the message that is being taken in.

use std::{sync::Arc, time::Duration};

use gorego_storage::{CHUNK_SIZE, Digest, Error, Result};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::flow::Flow;

/// A permit stands for this many bytes.
const UNIT: u64 = 16 * 1024;
/// What all small blobs and batches together have, in bytes.
const SMALL: u64 = 32 << 20;
/// What all large blobs together have, in bytes.
const LARGE: u64 = 96 << 20;
/// And what those together may have besides that cannot be written, in bytes.
const MORE: u64 = 64 << 20;

/// What a large blob has, in bytes: what is being written, being collected for that, and waiting on
/// either side of the writer, none of it in pieces above [`CHUNK_SIZE`].
const WRITTEN: u64 = 6 * CHUNK_SIZE as u64;
/// And what it should have, in bytes, when it cannot be written.
pub(super) const UNWRITTEN: u64 = 16 << 20;

/// How long a fetch waits until others leave it what it needs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Memory of which readers that stand still cannot take the part that others need: what is small does
/// not wait for what is large, and what is large has a share that lasts for as long as it is written.
#[derive(Debug)]
pub(super) struct Memory {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    more: Arc<Semaphore>,
}

/// A part of it, until dropped.
pub(super) type Reserved = OwnedSemaphorePermit;

impl Default for Memory {
    fn default() -> Self {
        let pool = |bytes| Arc::new(Semaphore::new(permits(bytes) as usize));
        Self {
            small: pool(SMALL),
            large: pool(LARGE),
            more: pool(MORE),
        }
    }
}

impl Memory {
    /// What the fetch of a blob needs.
    pub(super) async fn reserve(&self, digest: &Digest) -> Result<Reserved> {
        if digest.size() <= CHUNK_SIZE as u64 {
            take(&self.small, digest.size()).await
        } else {
            take(&self.large, digest.size().min(WRITTEN)).await
        }
    }

    /// What the fetch of some blobs at once needs.
    pub(super) async fn reserve_batch(&self, digests: &[Digest]) -> Result<Reserved> {
        let total = digests.iter().map(Digest::size).sum::<u64>();
        take(&self.small, total.min(UNWRITTEN)).await
    }

    /// The local store has no use for the rest of this, or no room.
    pub(super) fn keep(&self, flow: &Flow) -> Option<Reserved> {
        let size = flow.digest().size();
        let most = size.min(UNWRITTEN);
        let more = permits(most.saturating_sub(WRITTEN));
        let more = Arc::clone(&self.more).try_acquire_many_owned(more).ok();
        let most = if more.is_some() { most } else { WRITTEN };
        flow.to_memory(if size <= most {
            size
        } else {
            most - CHUNK_SIZE as u64
        });
        more
    }
}

async fn take(pool: &Arc<Semaphore>, bytes: u64) -> Result<Reserved> {
    let reserve = Arc::clone(pool).acquire_many_owned(permits(bytes));
    if let Ok(Ok(reserved)) = timeout(PATIENCE, reserve).await {
        return Ok(reserved);
    }
    let why = "too much is being fetched from the backing cache at once";
    Err(Error::Unavailable(why.to_owned()))
}

fn permits(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use gorego_storage::DigestFunction::Sha256;

    use super::*;

    fn blob(size: u64) -> Digest {
        Digest::from_hash(Sha256, &[1; 32], size).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_small_never_waits_for_what_is_large() {
        let memory = Memory::default();
        let mut reserved = Vec::new();
        let unavailable = loop {
            match memory.reserve(&blob(1 << 30)).await {
                Ok(more) => reserved.push(more),
                Err(error) => break error,
            }
        };
        assert!(matches!(unavailable, Error::Unavailable(_)));
        assert_eq!(reserved.len() as u64, LARGE / WRITTEN);
        drop(memory.reserve(&blob(10)).await.unwrap());
        drop(memory.reserve_batch(&[blob(4 << 20)]).await.unwrap());
        reserved.pop();
        drop(memory.reserve(&blob(1 << 30)).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_written_leaves_others_what_they_need_to_begin() {
        let memory = Memory::default();
        let kept = || memory.keep(&Flow::new(blob(1 << 30)));
        let more: Vec<_> = std::iter::from_fn(kept).collect();
        assert_eq!(more.len() as u64, MORE / (UNWRITTEN - WRITTEN));
        drop(memory.reserve(&blob(1 << 30)).await.unwrap());
        drop(memory.reserve(&blob(10)).await.unwrap());
    }
}
