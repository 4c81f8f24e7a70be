//! What a janitor did, for those who measure.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use gorego_storage::Removed;

/// Totals since the start. They only grow.
#[derive(Debug, Default)]
pub struct Counters {
    /// Blobs and action results evicted, those with broken leases included.
    pub evicted: AtomicU64,
    /// The room they took, in bytes.
    pub evicted_bytes: AtomicU64,
    /// Evicted although a client had been told, less than the lease time ago, that they were here.
    pub leases_broken: AtomicU64,
    /// Partial uploads and quarantined files that nobody came back for in time.
    pub uploads_expired: AtomicU64,
    /// Partial uploads and quarantined files removed early, because there was no other room.
    pub uploads_dropped: AtomicU64,
    /// The room that partial uploads and quarantined files took, in bytes.
    pub upload_bytes: AtomicU64,
}

impl Counters {
    pub(crate) fn evicted(&self, removed: Removed, leases_broken: u64) {
        self.evicted.fetch_add(removed.count, Relaxed);
        self.evicted_bytes.fetch_add(removed.bytes, Relaxed);
        self.leases_broken.fetch_add(leases_broken, Relaxed);
    }

    pub(crate) fn uploads_expired(&self, removed: Removed) {
        self.uploads_expired.fetch_add(removed.count, Relaxed);
        self.upload_bytes.fetch_add(removed.bytes, Relaxed);
    }

    pub(crate) fn uploads_dropped(&self, removed: Removed) {
        self.uploads_dropped.fetch_add(removed.count, Relaxed);
        self.upload_bytes.fetch_add(removed.bytes, Relaxed);
    }
}
