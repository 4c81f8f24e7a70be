//! Totals of the store, and the report of its state.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    LocalStore,
    disk::{Disk, now_ms},
};
use crate::index::{Entry, Space};
use gorego_storage::{DiskReport, Evictable as _, ScrubReport, Traffic};

/// Totals since the store was opened.
#[derive(Debug, Default)]
pub struct Counters {
    /// Blobs and action results whose file was missing or had another size.
    pub lost: AtomicU64,
    /// Blobs and action results whose content did not match, moved to quarantine.
    pub corrupt: AtomicU64,
    /// Files that the scan found.
    pub(super) scanned: AtomicU64,
    pub(super) leases_broken: AtomicU64,
    pub(super) idle_removed: AtomicU64,
    pub(super) scrub: Mutex<ScrubReport>,
    evicted_blobs: AtomicU64,
    evicted_results: AtomicU64,
    evicted_bytes: AtomicU64,
    eviction_age: Mutex<Option<Duration>>,
    leased: Mutex<Option<u64>>,
}

impl Counters {
    /// Counts an evicted entry.
    pub(super) fn add_evicted(&self, entry: &Entry) {
        let total = match entry.key().space {
            Space::Cas => &self.evicted_blobs,
            Space::Ac(_) => &self.evicted_results,
        };
        total.fetch_add(1, Relaxed);
        self.evicted_bytes.fetch_add(entry.room(), Relaxed);
    }

    /// Records the age of the entry that was evicted last.
    pub(super) fn set_eviction_age(&self, entry: &Entry, now_ms: u64) {
        let age = now_ms.saturating_sub(entry.last_use());
        *self.eviction_age.lock() = Some(Duration::from_millis(age));
    }
}

impl LocalStore {
    /// Returns the totals since the store was opened.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.disk.counters)
    }

    /// Returns the counts of this tier. The store counts bytes itself, and its users count the lookups that they
    /// make for clients.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.disk.traffic
    }

    /// Reports the state of the store, without a visit of all entries.
    pub fn report(&self) -> DiskReport {
        let (disk, counters) = (&self.disk, &self.disk.counters);
        let (count, results) = (disk.index.count(), disk.index.results());
        let (uploads, waiting) = disk.room.uploads();
        let scrub = disk.options.scrub_period.map(|_| *counters.scrub.lock());
        DiskReport {
            usage: self.usage(),
            blobs: count.saturating_sub(results),
            results,
            unverified: disk.index.unverified(),
            uploads,
            waiting,
            leased: *counters.leased.lock(),
            leases_broken: counters.leases_broken.load(Relaxed),
            evicted_blobs: counters.evicted_blobs.load(Relaxed),
            evicted_results: counters.evicted_results.load(Relaxed),
            evicted_bytes: counters.evicted_bytes.load(Relaxed),
            eviction_age: *counters.eviction_age.lock(),
            quarantined: counters.corrupt.load(Relaxed),
            lost: counters.lost.load(Relaxed),
            idle_removed: counters.idle_removed.load(Relaxed),
            scanned: counters.scanned.load(Relaxed),
            // Set once the task has begun.
            scrub: scrub.filter(|scrub| !scrub.pass_start.is_zero()),
        }
    }
}

impl Disk {
    /// Adds up the room of leased entries. No event marks the end of a lease, so this visits every entry.
    pub(super) fn measure_leases(&self) {
        let (now, terms, mut leased) = (now_ms(), self.terms, 0);
        self.index.visit(|_, entry, _| {
            if entry.is_leased(now, terms) {
                leased += entry.room();
            }
        });
        *self.counters.leased.lock() = Some(leased);
    }
}
