//! Packing of blobs into batches.

/// The bytes beside the content of each blob in a message: a digest, a status, and field headers.
const FRAMING: u64 = 256;

/// Packs blobs into batches of at most `limit` bytes, in order. Returns the batches, and the blobs that go alone: those
/// larger than `large`, and those that do not fit into a batch.
pub(super) fn pack<T>(
    blobs: Vec<T>,
    size: impl Fn(&T) -> u64,
    limit: u64,
    large: u64,
) -> (Vec<Vec<T>>, Vec<T>) {
    let (mut batches, mut alone) = (Vec::new(), Vec::new());
    let mut batch = Vec::new();
    let mut total = 0_u64;
    for blob in blobs {
        let size = size(&blob);
        if size > large || size + FRAMING > limit {
            alone.push(blob);
            continue;
        }
        if total + size + FRAMING > limit {
            batches.push(std::mem::take(&mut batch));
            total = 0;
        }
        total += size + FRAMING;
        batch.push(blob);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    (batches, alone)
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
            let places: Vec<_> = (0..sizes.len()).collect();
            let (batches, alone) = pack(places, |place| sizes[*place], limit, 4000);
            for batch in &batches {
                let total: u64 = batch.iter().map(|place| sizes[*place] + FRAMING).sum();
                prop_assert!(total <= limit && !batch.is_empty());
            }
            let mut places: Vec<_> = batches.concat();
            places.extend(alone);
            places.sort_unstable();
            prop_assert!(places.into_iter().eq(0..sizes.len()));
        }
    }
}
