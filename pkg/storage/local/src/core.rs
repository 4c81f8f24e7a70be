//! What all parts of the store share, and the steps that change a file and its index entry
//! together.

use std::{
    fs,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use gorego_limits::Budget;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    claims::Claims,
    files::Files,
    instances::Instances,
    layout::{self, FileName},
    room::Room,
    scanned::{Known, Scanned},
    watchers::Watchers,
};
use crate::index::{Index, Key, Space, Terms, Use};
use gorego_storage::{Digest, Error, InUse, Put, Result};

/// How many locks order the changes of single files.
const KEY_LOCKS: usize = 1024;

/// What the store counted since it was opened.
#[derive(Debug, Default)]
pub struct Counters {
    /// Blobs whose file was gone or had another size.
    pub lost: AtomicU64,
    /// Blobs or action results whose content did not match, moved to quarantine.
    pub corrupt: AtomicU64,
}

/// See the module.
pub(super) struct Core {
    pub(super) files: Files,
    /// Locked until the store is dropped.
    pub(super) lock_file: Mutex<Option<fs::File>>,
    pub(super) index: Arc<Index>,
    pub(super) room: Arc<Room>,
    pub(super) instances: Instances,
    pub(super) claims: Claims,
    pub(super) watchers: Watchers,
    pub(super) counters: Arc<Counters>,
    /// Durations of leases.
    pub(super) terms: Terms,
    pub(super) force_update_atime: bool,
    /// Memory for blobs that are read as a whole although they are not small.
    pub(super) pieces: Option<Budget>,
    /// Files written at this time or later are hashed before their first use, in milliseconds
    /// since the Unix epoch.
    pub(super) doubt_from_ms: u64,
    /// Blobs and action results written, by this process.
    pub(super) written: AtomicU64,
    pub(super) scanned: Scanned,
    /// Whether that was not so yet when the janitor last looked.
    pub(super) janitor_saw_part: AtomicBool,
    /// Whether the directory can still be written to, or is merely full.
    pub(super) healthy: watch::Sender<bool>,
    pub(super) tracker: TaskTracker,
    pub(super) cancel: CancellationToken,
    /// Set once what is on the disk is declared whole: nothing may follow that.
    pub(super) closed: RwLock<bool>,
    /// Whoever hashes a blob in doubt holds one of these, by its hash, so that those who want the
    /// same blob wait instead of hashing it too.
    pub(super) settling: Box<[tokio::sync::Mutex<()>]>,
    /// A file and its index entry change together under one of these, so that a scan, an eviction
    /// and an upload of one blob cannot cross. Held across single calls to the file system, by
    /// threads that may block, and only ever contended by work on the same blob.
    pub(super) key_locks: Box<[Mutex<()>]>,
}

/// A blob that is here and whole.
pub(super) struct Found {
    /// Keeps it from eviction, where that was asked for.
    pub(super) pin: Option<Pin>,
}

/// Ends a pin of the index when dropped.
pub(super) struct Pin {
    index: Arc<Index>,
    key: Key,
}

impl InUse for Pin {
    /// It is hashed before it is used again.
    fn unreadable(&self) {
        self.index.doubt(&self.key);
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.index.unpin(&self.key);
    }
}

impl Core {
    /// Locks for single files, of whatever kind.
    pub(super) fn key_locks<L: Default>() -> Box<[L]> {
        (0..KEY_LOCKS).map(|_| L::default()).collect()
    }

    pub(super) fn lock(&self, key: &Key) -> Option<MutexGuard<'_, ()>> {
        let lock = lock_of(&self.key_locks, key)?;
        Some(lock.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn is_scanned(&self) -> bool {
        self.scanned.get()
    }

    /// Holds the store's end back while something is put into its place.
    pub(super) fn open(&self) -> Result<RwLockReadGuard<'_, bool>> {
        let closed = self.closed.read().unwrap_or_else(PoisonError::into_inner);
        if *closed {
            return Err(Error::Unavailable("the store was closed".to_owned()));
        }
        Ok(closed)
    }

    fn pinned(&self, key: Key) -> Pin {
        Pin {
            index: Arc::clone(&self.index),
            key,
        }
    }

    /// Looks a blob up and uses it; asks the disk while the scan goes on, and hashes a blob in
    /// doubt first. `None` when it is not here, or not whole.
    pub(super) async fn seek(self: &Arc<Self>, digest: &Digest, how: Use) -> Result<Option<Found>> {
        let key = Key::cas(digest);
        let touch = || self.index.touch(&key, Some(digest.size()), now_ms(), how);
        let seen = match self.scanned.known(touch) {
            Known::Here(seen) => Some(seen),
            Known::Nowhere => None,
            Known::Unseen => {
                let (core, digest) = (Arc::clone(self), *digest);
                let is_there = blocking(move || core.look_on_disk(&digest)).await?;
                is_there.then(touch).flatten()
            }
        };
        let Some(seen) = seen else { return Ok(None) };
        let found = Found {
            pin: how.pin.then(|| self.pinned(key)),
        };
        if seen.in_doubt && !self.settle(digest).await? {
            return Ok(None);
        }
        Ok(Some(found))
    }

    /// Pins a blob that is here, whole or not. Blocks.
    pub(super) fn pin_unread(&self, digest: &Digest) -> Result<Option<Pin>> {
        let key = Key::cas(digest);
        let how = Use {
            pin: true,
            ..Use::default()
        };
        let touch = || self.index.touch(&key, Some(digest.size()), now_ms(), how);
        let seen = match self.scanned.known(touch) {
            Known::Here(seen) => Some(seen),
            Known::Nowhere => None,
            Known::Unseen => self.look_on_disk(digest)?.then(touch).flatten(),
        };
        Ok(seen.map(|_| self.pinned(key)))
    }

    /// Looks for a blob that the scan has not reached, and indexes it. Blocks.
    pub(super) fn look_on_disk(&self, digest: &Digest) -> Result<bool> {
        let key = Key::cas(digest);
        let _changing = self.lock(&key);
        if let Some(seen) = self.index.peek(&key) {
            return Ok(seen.size == digest.size());
        }
        let meta = self.files.stat(&layout::blob_path(digest))?;
        let Some(meta) = meta.filter(|meta| meta.size == digest.size() && meta.size > 0) else {
            return Ok(false);
        };
        let in_doubt = meta.mtime_ms >= self.doubt_from_ms;
        self.index
            .insert_found(&key, meta.size, meta.atime_ms.min(now_ms()), in_doubt);
        self.room.scanned(meta.size);
        Ok(true)
    }

    /// Puts a finished, verified and sealed file into its place. Blocks.
    pub(super) fn publish(&self, digest: &Digest, from: &str) -> Result<Put> {
        let key = Key::cas(digest);
        {
            let _open = self.open()?;
            let _changing = self.lock(&key);
            let there = self.index.peek(&key);
            if there.is_some_and(|seen| seen.size == digest.size() && !seen.in_doubt) {
                self.files.unlink(from)?;
                return Ok(Put::Existed);
            }
            self.install(from, &layout::blob_path(digest))?;
            self.index.insert(&key, digest.size(), now_ms());
            self.written.fetch_add(1, Relaxed);
        }
        self.watchers.published(digest);
        Ok(Put::Stored)
    }

    /// The file of an index entry, if there is one. Blocks.
    pub(super) fn locate(&self, key: &Key) -> Result<Option<String>> {
        let folder = match key.space {
            Space::Cas => layout::cas_folder(key.function),
            Space::Ac(number) => match self.instances.hash(number) {
                Some(instance) => layout::ac_folder(key.function, &instance),
                None => return Ok(None),
            },
        };
        match layout::name_of(key) {
            FileName::Whole(name) => {
                let path = layout::file_path(&folder, &name);
                Ok(self.files.stat(&path)?.map(|_| path))
            }
            FileName::Prefix(prefix) => {
                let path = layout::file_path(&folder, &prefix);
                let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                let mut names = self.files.list(folder)?.into_iter();
                Ok(names
                    .find(|name| name.starts_with(&prefix))
                    .map(|n| format!("{folder}/{n}")))
            }
        }
    }
}

/// The lock for this key.
pub(super) fn lock_of<'a, L>(locks: &'a [L], key: &Key) -> Option<&'a L> {
    let number = usize::from(u16::from_le_bytes(*key.hash.first_chunk()?));
    locks.get(number % locks.len())
}

/// The present, in milliseconds since the Unix epoch.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A duration in milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Runs what blocks on the disk where that may be done.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(cut_off(&error)))
}

/// The error of work that panicked, or that the runtime's end cut off.
pub(super) fn cut_off(error: &tokio::task::JoinError) -> Error {
    Error::Unavailable(format!("work on the disk was cut off: {error}"))
}
