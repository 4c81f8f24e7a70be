//! Which blobs travel together.

/// What comes with each blob in a message: a digest, a status, and what tells fields apart.
const FRAMING: u64 = 256;

/// How a number of blobs travels.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Packed {
    /// By their places, those that go together.
    pub(super) batches: Vec<Vec<usize>>,
    /// By their places, those too large for company.
    pub(super) alone: Vec<usize>,
}

/// Whether a blob of `size` bytes fits into a batch of `limit` bytes.
pub(super) const fn fits(size: u64, limit: u64) -> bool {
    size.saturating_add(FRAMING) <= limit
}

/// Packs blobs of these sizes into batches of at most `limit` bytes, in order. Those above `large`
/// go alone.
pub(super) fn pack(
    sizes: impl IntoIterator<Item = (usize, u64)>,
    limit: u64,
    large: u64,
) -> Packed {
    let mut packed = Packed::default();
    let mut batch = Vec::new();
    let mut total = 0_u64;
    for (place, size) in sizes {
        if size > large || !fits(size, limit) {
            packed.alone.push(place);
            continue;
        }
        let cost = size + FRAMING;
        if total + cost > limit && !batch.is_empty() {
            packed.batches.push(std::mem::take(&mut batch));
            total = 0;
        }
        total += cost;
        batch.push(place);
    }
    if !batch.is_empty() {
        packed.batches.push(batch);
    }
    packed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_blob_travels_once_and_no_batch_is_too_large(
            sizes in prop::collection::vec(0_u64..5000, 0..200),
            limit in 0_u64..10_000,
        ) {
            let packed = pack(sizes.iter().copied().enumerate(), limit, 4000);
            for batch in &packed.batches {
                let total: u64 = batch.iter().map(|place| sizes[*place] + FRAMING).sum();
                prop_assert!(total <= limit && !batch.is_empty());
            }
            let mut places: Vec<_> = packed.batches.concat();
            places.extend(packed.alone);
            places.sort_unstable();
            prop_assert!(places.into_iter().eq(0..sizes.len()));
        }
    }
}
