//! Fetches what clients will soon ask for: the outputs of results that were hits.

use std::{
    collections::HashSet,
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use gorego_storage::{BlobStoreExt as _, CHUNK_SIZE, Digest};
use tokio::sync::{Semaphore, mpsc};

use crate::{missing::batches, store::Tiers};

/// How many blobs may be waiting; of more than that, clients have to ask.
pub(crate) const QUEUE: usize = 16 * 1024;
/// How many are looked at together.
const TOGETHER: usize = 256;
/// How many batches or large blobs are fetched at once.
const AT_ONCE: usize = 8;
/// The most that is fetched of one result, in bytes, and as a part of what this tier may hold: what
/// comes unasked is not to drive out what is in use.
const OF_RESULT: u64 = 1 << 30;
const PART_OF_RESULT: u64 = 16;
/// The most that is wanted at any time, as a part of the same.
const PART_OF_ALL: u64 = 8;

/// What is to be fetched, in the order of the results that name it.
#[derive(Debug)]
pub(crate) struct Wanted {
    queue: mpsc::Sender<Digest>,
    of_result: u64,
    of_all: u64,
    /// What waits or is being fetched, in bytes.
    bytes: Arc<AtomicU64>,
}

/// Where it comes out.
pub(crate) struct Queue {
    queue: mpsc::Receiver<Digest>,
    bytes: Arc<AtomicU64>,
}

impl Wanted {
    /// For a tier that may hold `capacity` bytes.
    pub(crate) fn new(capacity: u64) -> (Self, Queue) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let bytes = Arc::default();
        let wanted = Self {
            queue: sender,
            of_result: OF_RESULT.min(capacity / PART_OF_RESULT),
            of_all: capacity / PART_OF_ALL,
            bytes: Arc::clone(&bytes),
        };
        (wanted, Queue { queue, bytes })
    }

    /// Adds what there is room for.
    pub(crate) fn add(&self, digests: Vec<Digest>) {
        let mut left = self.of_result;
        let mut seen = HashSet::new();
        for digest in digests {
            let size = digest.size();
            if size > left || !seen.insert(digest) || !self.make_room(size) {
                continue;
            }
            left -= size;
            if self.queue.try_send(digest).is_err() {
                self.bytes.fetch_sub(size, Relaxed);
                return;
            }
        }
    }

    fn make_room(&self, size: u64) -> bool {
        let fits = |bytes: u64| Some(bytes + size).filter(|bytes| *bytes <= self.of_all);
        self.bytes.fetch_update(Relaxed, Relaxed, fits).is_ok()
    }
}

/// Fetches what is wanted, until the proxy is closed.
pub(crate) async fn run(tiers: Arc<Tiers>, mut wanted: Queue) {
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut together = Vec::new();
    while wanted.queue.recv_many(&mut together, TOGETHER).await > 0 {
        for batch in batches(mem::take(&mut together)) {
            let Ok(permit) = Arc::clone(&at_once).acquire_owned().await else {
                return;
            };
            let (fetching, bytes) = (Arc::clone(&tiers), Arc::clone(&wanted.bytes));
            tiers.spawn(async move {
                let _permit = permit;
                fetch(&fetching, &batch).await;
                bytes.fetch_sub(batch.iter().map(Digest::size).sum(), Relaxed);
            });
        }
    }
}

/// Small blobs together, or a large one.
async fn fetch(tiers: &Arc<Tiers>, batch: &[Digest]) {
    match batch {
        [large] if large.size() > CHUNK_SIZE as u64 => {
            // It may have come since it was wanted.
            if tiers.local.contains(large).await.unwrap_or_default() {
                return;
            }
            // As one whom nobody waits for: what cannot be kept is of no use.
            if let Some((joined, ())) = tiers.fetches.join(large, |_| Some(())) {
                let _ = tiers.run(joined).ended().await;
            }
        }
        small => drop(tiers.get_batch(small).await),
    }
}

#[cfg(test)]
mod tests {
    use gorego_storage::DigestFunction::Sha256;

    use super::*;

    fn blobs(sizes: &[u64]) -> Vec<Digest> {
        let numbered = (0..).zip(sizes);
        let blobs = numbered.map(|(at, size)| Digest::from_hash(Sha256, &[at; 32], *size).unwrap());
        blobs.collect()
    }

    fn sizes(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| queue.queue.try_recv().ok())
            .map(|digest| digest.size())
            .collect()
    }

    #[test]
    fn no_result_fills_more_than_its_part() {
        let (wanted, mut queue) = Wanted::new(1600);
        wanted.add(blobs(&[60, 101, 50, 30, 20]));
        assert_eq!(sizes(&mut queue), [60, 30]);
        let (wanted, mut queue) = Wanted::new(u64::MAX);
        wanted.add(blobs(&[OF_RESULT, 1]));
        assert_eq!(sizes(&mut queue), [OF_RESULT]);
    }

    #[test]
    fn what_is_named_twice_counts_once() {
        let (wanted, mut queue) = Wanted::new(1600);
        wanted.add([blobs(&[60]), blobs(&[60, 40])].concat());
        assert_eq!(sizes(&mut queue), [60, 40]);
    }

    #[test]
    fn many_results_do_not_fill_more_than_the_part_of_all() {
        let (wanted, mut queue) = Wanted::new(1600);
        for _ in 0..3 {
            wanted.add(blobs(&[90]));
        }
        assert_eq!(sizes(&mut queue), [90, 90]);
        queue.bytes.fetch_sub(90, Relaxed);
        wanted.add(blobs(&[100]));
        assert_eq!(sizes(&mut queue), [100]);
    }
}
