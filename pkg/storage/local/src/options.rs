//! Options of a local store.

use std::{path::PathBuf, time::Duration};

use gorego_limits::Budget;

use crate::SyncMode;

/// The options of a local store.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// The data directory; created if it is missing.
    pub dir: PathBuf,
    /// The most bytes that it may hold.
    pub max_bytes: u64,
    /// The usage in bytes beyond which the janitor is woken.
    pub wake_bytes: u64,
    /// The time for which a blob that was reported present is protected from eviction.
    pub lease: Duration,
    /// The time for which a blob that was just uploaded is protected from eviction.
    pub upload_lease: Duration,
    /// Writes the file's access time at each hit, rather than once a minute.
    pub force_update_atime: bool,
    /// Durability of acknowledged uploads.
    pub sync: SyncMode,
    /// The time in which every file is hashed once, in the background; `None` for never.
    pub scrub_period: Option<Duration>,
    /// The budget for reading blobs of up to [`gorego_storage::CHUNK_SIZE`] bytes at once. When it is used
    /// up, blobs of more than [`gorego_limits::UNCOUNTED`] bytes are read in pieces.
    pub pieces: Option<Budget>,
}
