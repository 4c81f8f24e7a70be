//! Batches of blobs that fit into memory together.

use std::collections::HashMap;

use gorego_storage::{CHUNK_SIZE, Digest, DigestFunction};

/// The most bytes of small blobs in a batch.
const BATCH: u64 = 2 << 20;

/// Whether a blob is transferred in a batch with others.
pub(crate) const fn is_small(digest: &Digest) -> bool {
    digest.size() <= CHUNK_SIZE as u64
}

/// Splits blobs into batches: small blobs with the same digest function together, each large blob alone. Functions are
/// not mixed, since a peer may lack one.
pub(crate) fn batches(digests: Vec<Digest>) -> Vec<Vec<Digest>> {
    let mut batches: Vec<Vec<Digest>> = Vec::new();
    // The last batch of each function, and its bytes.
    let mut last: HashMap<DigestFunction, (usize, u64)> = HashMap::new();
    for digest in digests {
        let is_small = is_small(&digest);
        let (at, bytes) = last.entry(digest.function()).or_insert((usize::MAX, 0));
        match batches.get_mut(*at) {
            Some(batch) if is_small && *bytes + digest.size() <= BATCH => {
                *bytes += digest.size();
                batch.push(digest);
                continue;
            }
            _ if is_small => (*at, *bytes) = (batches.len(), digest.size()),
            _ => {}
        }
        batches.push(vec![digest]);
    }
    batches
}
