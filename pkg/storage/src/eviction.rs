//! The interface of stores to a janitor: entries with size and last use, and eviction.

use std::{fmt, time::Duration};

use async_trait::async_trait;

use crate::{EvictionBackoff, EvictionTotal, Result, Usage};

/// An entry that could be evicted: a blob, an action result, or a partial upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The entry's id.
    pub entry: EntryId,
    /// The last use, in milliseconds since the Unix epoch.
    pub last_use: u64,
    /// The room on the disk, in bytes.
    pub bytes: u64,
    /// Set if the entry has a lease.
    pub leased: bool,
    /// Set while the entry is read or written.
    pub in_use: bool,
    /// Set if the entry is a partial upload or a quarantined file.
    pub partial: bool,
}

/// A store's id of an entry. After an eviction it may be reused for another entry, which the store detects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(pub u64);

/// A store that a janitor keeps within its limits.
#[async_trait]
pub trait Evictable: Send + Sync + fmt::Debug + 'static {
    /// Returns the current usage.
    fn usage(&self) -> Usage;

    /// Calls `see` once for every entry, in no order. Entries that change meanwhile may be reported before or
    /// after the change. Holds no lock for longer than a thousand entries take.
    fn visit(&self, see: &mut dyn FnMut(Candidate));

    /// Removes the candidates, except those in use or used since [`Self::visit`]. Skips those with a lease
    /// unless `break_leases` is set, and files that cannot be removed. Counts missing files as removed. Blocks
    /// on the disk.
    fn evict(&self, candidates: &[Candidate], break_leases: bool) -> EvictionTotal;

    /// Records leased bytes that were evicted for the upload with this number.
    fn charge_leases(&self, upload: u64, bytes: u64);

    /// Returns the backoff of evictions that free nothing on the disk.
    fn backoff(&self) -> &EvictionBackoff;

    /// Removes partial uploads and quarantined files not modified for `age`, except uploads in progress. Blocks
    /// on the disk.
    fn remove_idle_uploads(&self, age: Duration) -> Result<EvictionTotal>;

    /// Removes the oldest partial uploads and quarantined files until they take at most a tenth of the limit.
    /// The newest may take a quarter. Blocks on the disk.
    fn trim_idle_uploads(&self) -> Result<EvictionTotal>;

    /// Wakes the uploads that wait for room. If `exhausted`, nothing more can be evicted, and those that still
    /// find no room fail.
    fn room_made(&self, exhausted: bool);

    /// Completes when usage exceeds the store's high watermark or an upload waits for room. Cancel-safe.
    async fn pressure(&self);
}

/// An observer of a store's evictions.
pub trait EvictionObserver: Send + Sync + fmt::Debug + 'static {
    /// Records the eviction of a blob, or of an action's result, with this [`Digest::hash_prefix`]. Must not block.
    ///
    /// [`Digest::hash_prefix`]: crate::Digest::hash_prefix
    fn evicted(&self, hash_prefix: &[u8; 32], is_result: bool);
}
