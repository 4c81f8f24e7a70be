//! What reads of trees may hold in memory at once, all together.

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::tree::MAX_DIRECTORY_BYTES;

/// Up to this size in bytes, what is read is not counted: there are as many in every stream.
const UNCOUNTED: u64 = 64 * 1024;
/// From this size in bytes on, what is read waits where nothing smaller waits behind it.
const LARGE: u64 = 1024 * 1024;
/// What one permit stands for, in bytes.
const UNIT: u64 = 64 * 1024;
/// How many there are of each kind: enough for the largest directory.
const UNITS: u64 = MAX_DIRECTORY_BYTES / UNIT;

/// Memory for directories: 32 MiB for large ones, and as much for those below 1 MiB. Whoever finds it used
/// up waits; he does not wait for anything else that another holder of it has.
#[derive(Debug)]
pub struct TreeMemory {
    medium: Semaphore,
    large: Semaphore,
}

impl Default for TreeMemory {
    fn default() -> Self {
        let units = usize::try_from(UNITS).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            medium: Semaphore::new(units),
            large: Semaphore::new(units),
        }
    }
}

impl TreeMemory {
    /// Waits until this many bytes may be read, and takes them until the permit is dropped. More
    /// than the largest directory are never in memory at once.
    pub(super) async fn reserve(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        if bytes <= UNCOUNTED {
            return None;
        }
        let pool = if bytes < LARGE {
            &self.medium
        } else {
            &self.large
        };
        let units = u32::try_from(bytes.div_ceil(UNIT).min(UNITS)).unwrap_or(u32::MAX);
        // Never closed.
        pool.acquire_many(units).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use async_trait::async_trait;
    use futures::FutureExt as _;
    use reapi::v2::{ActionResult, OutputDirectory};

    use super::*;
    use crate::{
        ActionCache as _, Blob, BlobStore, CompletenessChecking, Digest, DigestFunction,
        MemoryStore, Put, Result,
    };

    /// Has everything, and never gets round to reading it.
    #[derive(Debug, Default)]
    struct Endless(AtomicUsize);

    #[async_trait]
    impl BlobStore for Endless {
        async fn find_missing(&self, _: &[Digest]) -> Result<Vec<Digest>> {
            Ok(Vec::new())
        }

        async fn get(&self, _: &Digest, _: u64) -> Result<Blob> {
            self.0.fetch_add(1, Ordering::Relaxed);
            std::future::pending().await
        }

        async fn put(&self, _: &Digest, _: Blob) -> Result<Put> {
            Ok(Put::Existed)
        }
    }

    /// How many of ten results' directories of this size are read at once, by two who share memory.
    async fn read_at_once(size: u64, directory: fn(Digest) -> OutputDirectory) -> usize {
        let blobs = Arc::<Endless>::default();
        let shared = Arc::<Endless>::clone(&blobs);
        let (results, memory) = (Arc::<MemoryStore>::default(), Arc::default());
        let both = [Arc::clone(&shared), shared].map(|blobs| {
            CompletenessChecking::new(Arc::clone(&results), blobs).within(Arc::clone(&memory))
        });
        let action = DigestFunction::Sha256.digest(b"action");
        let named = Digest::from_hash(DigestFunction::Sha256, &[1; 32], size).unwrap();
        let result = ActionResult {
            output_directories: vec![directory(named)],
            ..Default::default()
        };
        let put = crate::ActionCache::put(&*results, "", &action, result);
        put.await.unwrap();
        let checks = both.iter().cycle().take(10);
        let mut checks: Vec<_> = checks.map(|checked| checked.get("", &action)).collect();
        for check in &mut checks {
            assert!(check.now_or_never().is_none());
        }
        blobs.0.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn large_directories_are_looked_through_one_after_another_and_small_ones_at_once() {
        let tree = |tree: Digest| OutputDirectory {
            tree_digest: Some(tree.to_proto()),
            ..Default::default()
        };
        let root = |root: Digest| OutputDirectory {
            root_directory_digest: Some(root.to_proto()),
            ..Default::default()
        };
        for directory in [tree as fn(Digest) -> OutputDirectory, root] {
            assert_eq!(read_at_once(31 << 20, directory).await, 1);
            assert_eq!(read_at_once(1 << 10, directory).await, 10);
        }
    }

    #[tokio::test]
    async fn large_reads_wait_for_each_other_and_nothing_smaller_waits_for_them() {
        let memory = TreeMemory::default();
        let large = memory.reserve(u64::MAX).now_or_never().unwrap();
        let mut waits = Box::pin(memory.reserve(LARGE));
        assert!((&mut waits).now_or_never().is_none());
        let medium: Vec<_> = (0..33)
            .map_while(|_| memory.reserve(LARGE - 1).now_or_never())
            .collect();
        assert_eq!(medium.len(), 32, "32 MiB of them");
        assert!(memory.reserve(UNCOUNTED).now_or_never().is_some());
        drop(large);
        assert!(waits.await.is_some());
    }
}
