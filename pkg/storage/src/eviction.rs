//! What a janitor sees of a store: sizes and last uses, never content.

use std::{fmt, time::Duration};

use async_trait::async_trait;

use crate::{Futile, Result};

/// One thing that could be evicted: a blob, an action result, or a partial upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which one, in the store's own terms.
    pub entry: EntryId,
    /// Last use, in milliseconds since the Unix epoch.
    pub last_use: u64,
    /// Room it takes on the disk, in bytes.
    pub bytes: u64,
    /// Whether a client was told that it is here, less than the lease time ago.
    pub leased: bool,
    /// Whether it is being read or written at this moment.
    pub in_use: bool,
    /// Whether it is a partial upload or a quarantined file.
    pub partial: bool,
}

/// A store's own name for one entry. It may come to mean another entry after an eviction; stores
/// notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(pub u64);

/// The usage of a store; figures in bytes unless they say otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Room taken, uploads in flight and kept partial uploads included.
    pub used: u64,
    /// Of which partial uploads that nobody is sending at the moment.
    pub idle_uploads: u64,
    /// Of which folders, which go with their last file.
    pub folders: u64,
    /// What `used` may not exceed.
    pub limit: u64,
    /// The bytes to be freed for waiting uploads. Zero when none waits.
    pub wanted: u64,
    /// The bytes still to be evicted for an upload that met a full disk; `None` when none waits.
    pub wanted_on_disk: Option<u64>,
    /// The files still to be evicted for that upload, if the file system can hold no more of them.
    pub wanted_files: u64,
    /// The number of the upload that waits, or waited last.
    pub upload: u64,
    /// The leased bytes already evicted for that upload.
    pub leases_broken: u64,
    /// The amount evicted since the store's start.
    pub evicted: Removed,
    /// The number of files and folders.
    pub files: u64,
    /// What the file system has left; `None` when it does not say.
    pub free_on_disk: Option<u64>,
    /// The number of further files that the file system can hold; `None` if it does not report it.
    pub free_files: Option<u64>,
    /// Whether entries of an earlier run are still being looked for.
    pub scanning: bool,
}

impl Usage {
    /// The most that the store could hold: its limit, or what others leave of the disk.
    pub fn capacity(&self) -> u64 {
        let on_disk = self.free_on_disk.map(|free| free.saturating_add(self.used));
        self.limit.min(on_disk.unwrap_or(u64::MAX))
    }

    /// Whether an upload waits for eviction.
    pub const fn is_wanted(&self) -> bool {
        self.wanted > 0 || self.wanted_on_disk.is_some()
    }
}

/// What an eviction or clean-up removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// How many entries or files.
    pub count: u64,
    /// The room they took, in bytes.
    pub bytes: u64,
}

/// A store that a janitor keeps within its limits.
#[async_trait]
pub trait Evictable: Send + Sync + fmt::Debug + 'static {
    /// How full the store is now.
    fn usage(&self) -> Usage;

    /// Shows every entry once, in no order. Entries that change meanwhile may be shown either way.
    /// Holds no lock for longer than a thousand entries take.
    fn visit(&self, see: &mut dyn FnMut(Candidate));

    /// Removes these, but none that was used since it was shown, or is in use. `break_leases`: also
    /// those with a lease. Blocks on the disk. A file that is gone already counts as removed;
    /// one that cannot be removed is skipped and the others still are.
    fn evict(&self, candidates: &[Candidate], break_leases: bool) -> Removed;

    /// Records leased bytes that were evicted for the upload of this number.
    fn charge_leases(&self, upload: u64, bytes: u64);

    /// Returns the store's record of evictions that did not help against a full disk.
    fn futile(&self) -> &Futile;

    /// Removes partial uploads and quarantined files untouched for `age`. Skips uploads that someone
    /// is sending. Blocks on the disk.
    fn remove_idle_uploads(&self, age: Duration) -> Result<Removed>;

    /// Removes the partial uploads and quarantined files beyond what these may hold: a tenth of the
    /// limit, the newest excepted, which may hold a quarter. Blocks on the disk.
    fn trim_idle_uploads(&self) -> Result<Removed>;

    /// Tells the uploads that wait for room that there may be some, or that eviction has ended
    /// with nothing left to remove (`exhausted`), so that they stop waiting.
    fn room_made(&self, exhausted: bool);

    /// Completes when room is wanted: usage passed the mark that the store was given, or an upload
    /// waits. Cancel-safe.
    async fn pressure(&self);
}
