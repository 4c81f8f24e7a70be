//! The usage of a store, as the janitor sees it.

use crate::Resource;

/// The usage of a store, in bytes unless stated otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The room in use, including uploads in progress and partial uploads.
    pub used: u64,
    /// The part of `used` that is reserved for uploads in progress, and not written yet.
    pub unwritten: u64,
    /// The part of `unwritten` that is being written now, so that some of it may already take space.
    pub writing: u64,
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
    /// The number of the upload that eviction serves, or served last.
    pub upload: u64,
    /// The leased bytes already evicted for that upload.
    pub leases_broken: u64,
    /// The total of evictions since the store's start.
    pub evicted: EvictionTotal,
    /// The number of files and folders.
    pub files: u64,
    /// The free space of the file system; `None` if it does not report it.
    pub free_on_disk: Option<u64>,
    /// The number of further files that the file system can hold; `None` if it does not limit or report it.
    pub free_files: Option<u64>,
    /// Set while the scan after the start is running.
    pub scanning: bool,
}

impl Usage {
    /// Returns the lower of the store's limit and the space that other files leave on the disk.
    pub fn capacity(&self) -> u64 {
        self.limit.min(Resource::Bytes.shared(self))
    }

    /// Whether an upload waits for eviction.
    pub const fn is_wanted(&self) -> bool {
        self.wanted > 0 || self.wanted_on_disk.is_some()
    }
}

/// The total of an eviction or a clean-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvictionTotal {
    /// The number of entries or files.
    pub count: u64,
    /// The room that they took, in bytes.
    pub bytes: u64,
}
