//! Fetches the outputs of results that were hits, before clients read them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures::future;
use gorego_limits::{Budget, Permit};
use gorego_storage::{BlobStore as _, Digest};
use tokio::sync::{Semaphore, mpsc};

use crate::{batches::batches, fetch::Fetches, tasks::Tasks};

/// The most blobs in the queue. Clients read the others themselves.
pub(crate) const QUEUE: usize = 16 * 1024;
/// The most blobs that are taken from the queue at once.
const TOGETHER: usize = 256;
/// The most batches or large blobs that are fetched at once.
const AT_ONCE: usize = 8;
/// The most bytes of one result, and the part of the local tier's size, so that blobs in use stay.
const OF_RESULT: u64 = 1 << 30;
const PART_OF_RESULT: u64 = 16;
/// The part of the local tier's size for all blobs in the queue.
const PART_OF_ALL: u64 = 8;

/// The queue of blobs to fetch, in the order of the results that name them.
pub(crate) struct Prefetch {
    queue: mpsc::Sender<(Digest, Permit)>,
    room: Budget,
    of_result: u64,
}

/// The other end of the queue.
type Queue = mpsc::Receiver<(Digest, Permit)>;

impl Prefetch {
    /// Starts to fetch in the background, into a local tier of `capacity` bytes.
    pub(crate) fn start(fetches: Arc<Fetches>, capacity: u64, tasks: &Tasks) -> Self {
        let (prefetch, queue) = Self::new(capacity);
        tasks.spawn(run(fetches, queue, tasks.clone()));
        prefetch
    }

    fn new(capacity: u64) -> (Self, Queue) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let prefetch = Self {
            queue: sender,
            room: Budget::count("room for prefetched blobs", capacity / PART_OF_ALL),
            of_result: OF_RESULT.min(capacity / PART_OF_RESULT),
        };
        (prefetch, queue)
    }

    /// Adds outputs of a result, as far as there is room.
    pub(crate) fn add(&self, digests: Vec<Digest>) {
        let (mut left, mut seen) = (self.of_result, HashSet::new());
        for digest in digests {
            let size = digest.size();
            if size <= left
                && seen.insert(digest)
                && let Some(permit) = self.room.try_reserve(size)
                && self.queue.try_send((digest, permit)).is_ok()
            {
                left -= size;
            }
        }
    }
}

async fn run(fetches: Arc<Fetches>, mut queue: Queue, tasks: Tasks) {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let mut together = Vec::new();
    while queue.recv_many(&mut together, TOGETHER).await > 0 {
        let digests = together.iter().map(|(digest, _)| *digest).collect();
        let mut permits: HashMap<Digest, Permit> = together.drain(..).collect();
        for batch in batches(digests) {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                return;
            };
            let permits: Vec<_> = batch.iter().map(|digest| permits.remove(digest)).collect();
            let fetches = Arc::clone(&fetches);
            tasks.spawn(async move {
                fetch(&fetches, &batch).await;
                drop((slot, permits));
            });
        }
    }
}

/// Fetches the blobs that the local tier lacks. Does not count as a reader, since a blob that cannot be
/// stored is of no use.
async fn fetch(fetches: &Arc<Fetches>, batch: &[Digest]) {
    let local = fetches.local.fetch_batch(batch).await;
    let misses = batch.iter().zip(local);
    let misses = misses.filter_map(|(digest, local)| local.is_err().then_some(*digest));
    let misses: Vec<Digest> = misses.collect();
    let flows = fetches.join_all(&misses, |flow| Some(Arc::clone(flow)));
    let ends = flows.iter().flatten().map(|flow| flow.ended());
    future::join_all(ends).await;
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
        std::iter::from_fn(|| queue.try_recv().ok())
            .map(|(digest, _)| digest.size())
            .collect()
    }

    #[test]
    fn outputs_of_one_result_have_a_limited_size() {
        let (prefetch, mut queue) = Prefetch::new(1600);
        prefetch.add(blobs(&[60, 101, 50, 30, 20]));
        assert_eq!(sizes(&mut queue), [60, 30]);
        let (prefetch, mut queue) = Prefetch::new(u64::MAX);
        prefetch.add(blobs(&[OF_RESULT, 1]));
        assert_eq!(sizes(&mut queue), [OF_RESULT]);
    }

    #[test]
    fn an_output_named_twice_counts_once() {
        let (prefetch, mut queue) = Prefetch::new(1600);
        prefetch.add([blobs(&[60]), blobs(&[60, 40])].concat());
        assert_eq!(sizes(&mut queue), [60, 40]);
    }

    #[test]
    fn outputs_of_all_results_have_a_limited_size() {
        let (prefetch, mut queue) = Prefetch::new(1600);
        for _ in 0..3 {
            prefetch.add(blobs(&[90]));
        }
        drop(queue.try_recv().unwrap());
        prefetch.add(blobs(&[100]));
        assert_eq!(sizes(&mut queue), [90, 100]);
    }
}
