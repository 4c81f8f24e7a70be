//! Fetches what clients will soon ask for: the outputs of results that were hits.

use std::sync::Arc;

use gorego_storage::{BlobStoreExt as _, CHUNK_SIZE, Digest};
use tokio::sync::{Semaphore, mpsc};

use crate::{missing::batches, store::Tiers};

/// How many blobs may be waiting; of more than that, clients have to ask.
const QUEUE: usize = 16 * 1024;
/// How many are looked at together.
const TOGETHER: usize = 256;
/// How many batches or large blobs are fetched at once.
const AT_ONCE: usize = 8;

/// What is to be fetched, in the order of the results that name it.
#[derive(Debug)]
pub(crate) struct Wanted(mpsc::Sender<Digest>);

impl Wanted {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Digest>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    pub(crate) fn add(&self, digests: impl IntoIterator<Item = Digest>) {
        for digest in digests {
            if self.0.try_send(digest).is_err() {
                return;
            }
        }
    }
}

/// Fetches what is wanted, until the proxy is closed.
pub(crate) async fn run(tiers: Arc<Tiers>, mut wanted: mpsc::Receiver<Digest>) {
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut together = Vec::new();
    while wanted.recv_many(&mut together, TOGETHER).await > 0 {
        for batch in batches(std::mem::take(&mut together)) {
            let Ok(permit) = Arc::clone(&at_once).acquire_owned().await else {
                return;
            };
            let fetching = Arc::clone(&tiers);
            tiers.spawn(async move {
                let _permit = permit;
                fetch(&fetching, &batch).await;
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
