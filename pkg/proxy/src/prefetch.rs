//! Fetches the outputs of results that were hits, before clients read them.

use std::{collections::HashSet, sync::Arc};

use futures::{StreamExt as _, stream};
use gorego_limits::Budget;
use gorego_storage::{BlobStore as _, Digest, Evictable as _};
use tokio::sync::Semaphore;

use crate::{batches::batches, fetch::Fetches};

/// The most outputs of one result. Clients read the others themselves.
pub(crate) const OUTPUTS: usize = 16 * 1024;
/// The most batches or large blobs that are fetched at once.
const AT_ONCE: usize = 8;
/// The limits of the outputs prefetched for one result: bytes, and a divisor of the size of the local tier. They keep
/// blobs in use from being evicted.
const OF_RESULT: u64 = 1 << 30;
const PART_OF_RESULT: u64 = 16;
/// The limit of all blobs that wait to be fetched, as a divisor of the size of the local tier.
const PART_OF_ALL: u64 = 8;
/// The smallest disk space charged for a blob: one block.
const BLOCK: u64 = 4096;

#[derive(Debug)]
pub(crate) struct Prefetch {
    fetches: Arc<Fetches>,
    of_result: u64,
    room: Budget,
    slots: Arc<Semaphore>,
}

impl Prefetch {
    pub(crate) fn new(fetches: Arc<Fetches>) -> Self {
        let capacity = fetches.tiers.local.usage().limit;
        Self {
            fetches,
            of_result: OF_RESULT.min(capacity / PART_OF_RESULT),
            room: Budget::count("prefetched blobs", capacity / PART_OF_ALL),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Fetches outputs of a result in the background, as far as there is room.
    pub(crate) fn start(&self, outputs: Vec<Digest>) {
        let outputs = within(outputs, self.of_result);
        let room = outputs.iter().map(|digest| digest.size().max(BLOCK)).sum();
        let Some(permit) = self.room.try_reserve(room) else {
            return;
        };
        let (fetches, slots) = (Arc::clone(&self.fetches), Arc::clone(&self.slots));
        self.fetches.tiers.spawn(async move {
            let batches = stream::iter(batches(outputs));
            let fetch = |batch: Vec<Digest>| async {
                let _slot = slots.acquire().await;
                fetch(&fetches, batch).await;
            };
            batches.for_each_concurrent(AT_ONCE, fetch).await;
            drop(permit);
        });
    }
}

/// Returns each blob once, as long as it fits into the rest of `bytes`.
fn within(mut blobs: Vec<Digest>, mut bytes: u64) -> Vec<Digest> {
    let mut seen = HashSet::new();
    blobs.retain(|digest| {
        let fits = digest.size() <= bytes && seen.insert(*digest);
        bytes -= if fits { digest.size() } else { 0 };
        fits
    });
    blobs
}

/// Fetches the blobs that the local tier lacks.
async fn fetch(fetches: &Arc<Fetches>, mut batch: Vec<Digest>) {
    let local = fetches.tiers.local.fetch_batch(&batch).await;
    let mut is_missing = local.iter().map(Result::is_err);
    batch.retain(|_| is_missing.next().unwrap_or_default());
    fetches.store_batch(&batch).await;
}

#[cfg(test)]
mod tests {
    use gorego_storage::DigestFunction::Sha256;

    use super::*;

    #[test]
    fn outputs_of_a_result_have_a_limited_size_and_count_once() {
        let blob = |size: u8| Digest::from_hash(Sha256, &[size; 32], size.into()).unwrap();
        let blobs = [60, 101, 60, 50, 30, 20].map(blob).to_vec();
        assert_eq!(within(blobs, 100), [60, 30].map(blob));
    }
}
