//! The recent hits of reads from nodes: while these nodes have no blobs, few reads ask them.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The missing blobs in a row after which nodes are rarely asked.
const MOST: u32 = 1024;
/// The missing blobs that one found blob makes up for: a found blob saves more than a missing one costs.
const FOUND: u32 = 8;
/// The reads of which one asks nodes while they are rarely asked.
const PROBE: u32 = 16;

/// The recent hits of reads from the first nodes in rendezvous order.
#[derive(Debug)]
pub(super) struct HitHistory {
    /// The missing blobs until nodes are rarely asked.
    score: AtomicU32,
    /// The reads while the score was 0.
    reads: AtomicU32,
}

impl Default for HitHistory {
    fn default() -> Self {
        Self {
            score: AtomicU32::new(MOST),
            reads: AtomicU32::new(0),
        }
    }
}

impl HitHistory {
    /// Returns whether to ask nodes for this many blobs. The blobs count as missing until [`Self::add`].
    pub(super) fn asks(&self, blobs: usize) -> bool {
        let blobs = u32::try_from(blobs).unwrap_or(u32::MAX);
        let less = |score: u32| Some(score.saturating_sub(blobs));
        let before = self.score.fetch_update(Relaxed, Relaxed, less);
        let before = before.unwrap_or_else(|before| before);
        before > 0 || self.reads.fetch_add(1, Relaxed).is_multiple_of(PROBE)
    }

    /// Counts found blobs.
    pub(super) fn add(&self, blobs: usize) {
        let blobs = u32::try_from(blobs).unwrap_or(u32::MAX);
        let more = blobs.saturating_mul(FOUND);
        let add = |score: u32| Some(score.saturating_add(more).min(MOST));
        // The closure always returns a score.
        let _ = self.score.fetch_update(Relaxed, Relaxed, add);
    }
}
