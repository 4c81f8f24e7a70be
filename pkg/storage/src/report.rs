//! Reports of the states of the tiers, for monitoring.

use std::time::Duration;

use crate::{BreakerState, Usage};

/// The state of a local tier. Totals count since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskReport {
    /// The usage of the disk.
    pub usage: Usage,
    /// The number of blobs, as far as they were scanned.
    pub blobs: u64,
    /// The number of action results, as far as they were scanned.
    pub results: u64,
    /// The number of blobs that are hashed before their next use.
    pub unverified: u64,
    /// The number of uploads that are written.
    pub uploads: u64,
    /// The number of uploads that wait for room.
    pub waiting: u64,
    /// The room of leased blobs and results in bytes, measured every minute; `None` before the first measurement.
    pub leased: Option<u64>,
    /// The total of blobs and results that were evicted while they were leased.
    pub leases_broken: u64,
    /// The total of evicted blobs.
    pub evicted_blobs: u64,
    /// The total of evicted action results.
    pub evicted_results: u64,
    /// The total of the room that evicted blobs and results took, in bytes.
    pub evicted_bytes: u64,
    /// The time from the last use of the blob or result that was evicted last to its eviction.
    pub eviction_age: Option<Duration>,
    /// The total of corrupt or unreadable files that were quarantined.
    pub quarantined: u64,
    /// The total of files that were missing or had another size.
    pub lost: u64,
    /// The total of partial uploads and quarantined files that were removed.
    pub idle_removed: u64,
    /// The number of files that the scan after the start found.
    pub scanned: u64,
    /// The progress of scrubbing, if it is enabled.
    pub scrub: Option<ScrubReport>,
}

/// The progress of the hashing of all files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// The total of files that were hashed.
    pub files: u64,
    /// The total of their bytes.
    pub bytes: u64,
    /// The start of the current pass over all files, since the Unix epoch.
    pub pass_start: Duration,
}

/// The state of the calls to a backing cache. Totals count since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackingReport {
    /// The total of changes to each state of the circuit breaker.
    pub transitions: [(BreakerState, u64); 3],
    /// The total of outages.
    pub outages: u64,
    /// The total of retries.
    pub retries: u64,
    /// The number of calls in progress.
    pub inflight: u64,
}
