//! Batches of blobs that fit into memory together.

use gorego_storage::{CHUNK_SIZE, Digest};

/// The most bytes of small blobs in a batch.
const BATCH: u64 = 2 << 20;

/// Whether a blob is transferred in a batch with others.
pub(crate) const fn is_small(digest: &Digest) -> bool {
    digest.size() <= CHUNK_SIZE as u64
}

/// Splits blobs into batches: small blobs with the same digest function together, each large blob alone. Functions are
/// not mixed, since a peer may lack one.
pub(crate) fn batches(mut digests: Vec<Digest>) -> Vec<Vec<Digest>> {
    digests.sort_by_key(|digest| (!is_small(digest), digest.function()));
    let (mut batches, mut bytes) = (Vec::<Vec<Digest>>::new(), 0u64);
    for digest in digests {
        bytes = digest.size().saturating_add(bytes);
        let fits = |last: &Digest| {
            is_small(&digest) && bytes <= BATCH && last.function() == digest.function()
        };
        match batches.last_mut() {
            Some(batch) if batch.last().is_some_and(fits) => batch.push(digest),
            _ => {
                bytes = digest.size();
                batches.push(vec![digest]);
            }
        }
    }
    batches
}
