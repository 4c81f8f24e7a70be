use gorego_storage::EvictionTotal;

/// The work of a janitor since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Evicted blobs and action results, including those with broken leases.
    pub evicted: EvictionTotal,
    /// Blobs and action results evicted before their lease ended.
    pub leases_broken: u64,
    /// Partial uploads and quarantined files removed before their expiry time, to make room.
    pub uploads_dropped: EvictionTotal,
}

/// Adds a removal to a total.
pub(crate) const fn add(total: &mut EvictionTotal, removed: EvictionTotal) {
    total.count += removed.count;
    total.bytes += removed.bytes;
}
