//! Counters of the janitor's work.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use gorego_storage::EvictionTotal;

/// Totals since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Evicted blobs and action results, including those with broken leases.
    pub evicted: AtomicU64,
    /// Bytes of the evicted blobs and action results.
    pub evicted_bytes: AtomicU64,
    /// Blobs and action results evicted before their lease ended.
    pub leases_broken: AtomicU64,
    /// Partial uploads and quarantined files removed after their expiry time.
    pub uploads_expired: AtomicU64,
    /// Partial uploads and quarantined files removed earlier, to make room.
    pub uploads_dropped: AtomicU64,
    /// Bytes of the removed partial uploads and quarantined files.
    pub upload_bytes: AtomicU64,
}

impl Counters {
    pub(crate) fn evicted(&self, removed: EvictionTotal, leases_broken: u64) {
        self.evicted.fetch_add(removed.count, Relaxed);
        self.evicted_bytes.fetch_add(removed.bytes, Relaxed);
        self.leases_broken.fetch_add(leases_broken, Relaxed);
    }

    pub(crate) fn uploads_expired(&self, removed: EvictionTotal) {
        self.uploads_expired.fetch_add(removed.count, Relaxed);
        self.upload_bytes.fetch_add(removed.bytes, Relaxed);
    }

    pub(crate) fn uploads_dropped(&self, removed: EvictionTotal) {
        self.uploads_dropped.fetch_add(removed.count, Relaxed);
        self.upload_bytes.fetch_add(removed.bytes, Relaxed);
    }
}
