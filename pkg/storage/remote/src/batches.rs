//! Several small blobs in one call: `BatchReadBlobs` and `BatchUpdateBlobs`.

mod read;
mod update;

use futures::{StreamExt as _, future::BoxFuture, stream};

pub(super) use self::{
    read::{get, get_one},
    update::{put, put_one},
};
use super::{
    RemoteCapabilities, RemoteStore, bounded::Limits, failure::Failure, packing, store::SMALL,
};

/// Blobs above this travel alone: a stream of their own can go on where it broke off.
const LARGE: u64 = 1 << 20;

/// The most that an answer about so many blobs of so many bytes may have.
fn max_answer(count: usize, content: u64) -> Limits {
    const ENCODED: usize = 2048;
    const DECODED: usize = 4096;
    let content = usize::try_from(content).unwrap_or(usize::MAX);
    Limits {
        // Compression may make content longer by a little.
        encoded: content
            .saturating_add(content / 16)
            .saturating_add(ENCODED.saturating_mul(count)),
        decoded: DECODED.saturating_mul(count),
    }
}

/// How a batch of blobs of `bytes` bytes that the peer refused as a whole may be sent once more: plain
/// if it was not, else in smaller ones, and whether another try may come after that.
fn otherwise(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    failure: &Failure,
    count: usize,
    bytes: u64,
) -> Option<(RemoteCapabilities, bool)> {
    let correct = |change: &dyn Fn(&mut RemoteCapabilities)| {
        let mut corrected = capabilities.clone();
        change(&mut corrected);
        store.known.correct(change);
        corrected
    };
    if store.zstd && capabilities.zstd_batches && failure.is_unknown_form() {
        return Some((correct(&|known| known.zstd_batches = false), true));
    }
    let half = (bytes / 2).max(2 * SMALL);
    let smaller = |known: &mut RemoteCapabilities| {
        known.max_batch_bytes = known.max_batch_bytes.min(half);
    };
    (failure.is_too_large() && count > 1).then(|| (correct(&smaller), false))
}

/// Whether a blob travels in a batch even when it is alone.
pub(super) fn is_small(capabilities: &RemoteCapabilities, size: u64) -> bool {
    size <= SMALL && packing::fits(size, capabilities.max_batch_bytes)
}

/// The outcomes of all of these, as many of them at once as calls may be.
async fn all<T>(store: &RemoteStore, calls: Vec<BoxFuture<'_, Vec<T>>>) -> Vec<T> {
    stream::iter(calls)
        .buffer_unordered(store.peer.max_calls())
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .flatten()
        .collect()
}
