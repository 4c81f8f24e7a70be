//! The parts and the options of a proxy.

use std::{sync::Arc, time::Duration};

use gorego_storage::{ActionCache, BlobStore};

use crate::memory::Memory;

/// The options of a proxy.
#[derive(Clone, Debug)]
pub struct Options {
    /// The time for which a blob that the backing cache reported counts as present.
    pub existence_ttl: Duration,
    /// Never writes to the backing cache.
    pub read_only: bool,
    /// Stores each blob in the local tier before writing it to the backing cache, and fails if it cannot. For a backing
    /// cache that counts the local copy, and reads content several times.
    pub local_first: bool,
    /// Fetches the outputs of a result as soon as it is a hit.
    pub prefetch: bool,
    /// The behavior while the backing cache is down.
    pub on_outage: OnOutage,
    /// The time for which a pending write is retried while the backing cache accepts others.
    pub outbox_retry: Duration,
    /// The budgets of the memory that clients can make the proxy hold.
    pub memory: Memory,
}

/// The behavior while the backing cache is down. Hits in the local tier are served in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOutage {
    /// Misses and writes fail.
    Fail,
    /// Misses are misses, and writes are pending in the outbox.
    Degrade,
}

/// The backing cache.
#[derive(Clone, Debug)]
pub struct Backing {
    /// Its blobs. The store verifies each whole blob that it returns.
    pub blobs: Arc<dyn BlobStore>,
    /// Its action results.
    pub actions: Arc<dyn ActionCache>,
}
