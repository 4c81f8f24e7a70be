//! The interface of stores to a janitor: usage, entries with size and last use, and eviction.

use std::{fmt, time::Duration};

use async_trait::async_trait;

use crate::{EvictionBackoff, Result};

/// An entry that could be evicted: a blob, an action result, or a partial upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The entry's id.
    pub entry: EntryId,
    /// The last use, in milliseconds since the Unix epoch.
    pub last_use: u64,
    /// The room on the disk, in bytes.
    pub bytes: u64,
    /// Whether the entry has a lease.
    pub leased: bool,
    /// Whether the entry is being read or written.
    pub in_use: bool,
    /// Whether the entry is a partial upload or a quarantined file.
    pub partial: bool,
}

/// A store's id of an entry. After an eviction it may be reused for another entry, which the store detects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(pub u64);

/// The usage of a store, in bytes unless stated otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The room in use, including uploads in progress and partial uploads.
    pub used: u64,
    /// The part of `used` that partial uploads without a sender take.
    pub idle_uploads: u64,
    /// The part of `used` that folders take. A folder is removed with its last file.
    pub folders: u64,
    /// The limit of `used`.
    pub limit: u64,
    /// The bytes to be freed for waiting uploads. Zero if none waits.
    pub wanted: u64,
    /// The bytes still to be evicted for an upload that met a full disk; `None` if none waits.
    pub wanted_on_disk: Option<u64>,
    /// The files still to be evicted for that upload, if the file system has no more of them.
    pub wanted_files: u64,
    /// The number of the upload that waits or was the last to wait.
    pub upload: u64,
    /// The leased bytes already evicted for that upload.
    pub leases_broken: u64,
    /// The total of evictions since the store's start.
    pub evicted: Removed,
    /// The number of files and folders.
    pub files: u64,
    /// The free space of the file system; `None` if it does not report it.
    pub free_on_disk: Option<u64>,
    /// The number of further files that the file system can hold; `None` if it does not report it.
    pub free_files: Option<u64>,
    /// Whether the scan after the start is still running.
    pub scanning: bool,
}

impl Usage {
    /// Returns the lower of the store's limit and the space that other files leave on the disk.
    pub fn capacity(&self) -> u64 {
        let on_disk = self.free_on_disk.map(|free| free.saturating_add(self.used));
        self.limit.min(on_disk.unwrap_or(u64::MAX))
    }

    /// Whether an upload waits for eviction.
    pub const fn is_wanted(&self) -> bool {
        self.wanted > 0 || self.wanted_on_disk.is_some()
    }
}

/// The total of an eviction or a clean-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// The number of entries or files.
    pub count: u64,
    /// The room that they took, in bytes.
    pub bytes: u64,
}

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
    fn evict(&self, candidates: &[Candidate], break_leases: bool) -> Removed;

    /// Records leased bytes that were evicted for the upload with this number.
    fn charge_leases(&self, upload: u64, bytes: u64);

    /// Returns the backoff of evictions that free nothing on the disk.
    fn backoff(&self) -> &EvictionBackoff;

    /// Removes partial uploads and quarantined files not modified for `age`, except uploads in progress. Blocks
    /// on the disk.
    fn remove_idle_uploads(&self, age: Duration) -> Result<Removed>;

    /// Removes the oldest partial uploads and quarantined files until they take at most a tenth of the limit.
    /// The newest may take a quarter. Blocks on the disk.
    fn trim_idle_uploads(&self) -> Result<Removed>;

    /// Wakes the uploads that wait for room. If `exhausted`, nothing more can be evicted, and those that still
    /// find no room fail.
    fn room_made(&self, exhausted: bool);

    /// Completes when usage exceeds the store's high watermark or an upload waits for room. Cancel-safe.
    async fn pressure(&self);
}
