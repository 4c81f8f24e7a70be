//! The state shared by all parts of the store, and the steps that change a file and its index entry
//! together.

use std::{
    fs,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, SystemTime},
};

use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Counters,
    files::Files,
    inflight::{Claims, Watchers},
    instances::Instances,
    layout,
    options::LocalOptions,
    pins::PinLedger,
    room::Room,
    state::Record,
    twins::Twins,
};
use crate::index::{Index, Key, Space, Terms, Use};
use gorego_storage::{Digest, Error, EvictionObserver, InUse, Put, Result, Traffic, blocking};

/// The number of locks that order the changes of single files.
const KEY_LOCKS: usize = 1024;

/// The most bytes of work that a caller which may block does itself.
const SHORT: u64 = 256 << 10;

/// A data directory with its index and accounts.
pub(super) struct Disk {
    pub(super) files: Files,
    /// Locked until the store is dropped.
    pub(super) lock_file: Mutex<Option<fs::File>>,
    pub(super) index: Arc<Index>,
    pub(super) room: Arc<Room>,
    pub(super) pins: PinLedger,
    pub(super) twins: Twins,
    pub(super) instances: Instances,
    pub(super) claims: Claims,
    pub(super) watchers: Watchers,
    pub(super) counters: Arc<Counters>,
    pub(super) eviction_observer: OnceLock<Arc<dyn EvictionObserver>>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) terms: Terms,
    pub(super) options: LocalOptions,
    /// Files written at this time or later are hashed before their first use, in milliseconds
    /// since the Unix epoch.
    pub(super) unverified_from_ms: u64,
    /// The number of blobs and action results written by this process.
    pub(super) written: AtomicU64,
    pub(super) scanned: ScanState,
    /// Set if the scan was running when the janitor last visited the entries.
    pub(super) janitor_saw_part: AtomicBool,
    /// `true` if the directory can be written to or is full.
    pub(super) healthy: watch::Sender<bool>,
    pub(super) record: Mutex<Record>,
    pub(super) tracker: TaskTracker,
    pub(super) cancel: CancellationToken,
    /// Set once the store recorded a clean end. Nothing may be published after that.
    pub(super) closed: RwLock<bool>,
    /// Held, one by hash, while an unverified blob is hashed, so that other callers wait for the outcome.
    pub(super) verifying: Box<[tokio::sync::Mutex<()>]>,
    /// A file and its index entry change together under one of these, chosen by the hash, so that a scan,
    /// an eviction and an upload of one blob do not interleave. Held across single system calls, by threads
    /// that may block.
    pub(super) key_locks: Box<[Mutex<()>]>,
}

pub(super) struct IndexedBlob {
    /// Protects it from eviction, if that was requested.
    pub(super) pin: Option<Pin>,
    /// Set if it has to be hashed before use.
    pub(super) unverified: bool,
}

/// A pin of an index entry, ended when dropped.
pub(super) struct Pin {
    index: Arc<Index>,
    key: Key,
}

impl InUse for Pin {
    /// Requires a verification before the blob's next use.
    fn unreadable(&self) {
        self.index.set_unverified(&self.key, true);
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.index.unpin(&self.key);
    }
}

impl Disk {
    /// Runs work that blocks on the disk on another thread.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let disk = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&disk)).await;
        done.unwrap_or_else(|error| Err(cut_off(&error)))
    }

    /// Runs work on a file of `bytes` bytes that blocks on the disk: here if that is permitted and short.
    pub(super) async fn run_sized<T: Send + 'static>(
        self: &Arc<Self>,
        bytes: u64,
        work: impl FnOnce(&Arc<Self>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if bytes <= SHORT && blocking::is_allowed() {
            work(self)
        } else {
            self.run(work).await
        }
    }

    pub(super) fn key_locks<L: Default>() -> Box<[L]> {
        (0..KEY_LOCKS).map(|_| L::default()).collect()
    }

    pub(super) fn lock(&self, key: &Key) -> Option<MutexGuard<'_, ()>> {
        lock_of(&self.key_locks, key).map(Mutex::lock)
    }

    pub(super) fn is_scanned(&self) -> bool {
        self.scanned.get()
    }

    /// Looks a blob up in the index and marks it as used.
    pub(super) fn touch(&self, digest: &Digest, now: u64, how: Use) -> Lookup<IndexedBlob> {
        self.scanned.lookup(|| self.found(digest, now, how))
    }

    fn found(&self, digest: &Digest, now: u64, how: Use) -> Option<IndexedBlob> {
        let key = Key::cas(digest);
        let hit = self.index.touch(&key, Some(digest.size()), now, how)?;
        let pin = || Pin {
            index: Arc::clone(&self.index),
            key,
        };
        Some(IndexedBlob {
            pin: how.pin.then(pin),
            unverified: hit.unverified,
        })
    }

    /// Looks a blob up and marks it as used. During the scan, looks on the disk, too, and blocks.
    pub(super) fn touch_on_disk(&self, digest: &Digest, how: Use) -> Result<Option<IndexedBlob>> {
        match self.touch(digest, now_ms(), how) {
            Lookup::Hit(found) => Ok(Some(found)),
            Lookup::Unknown if self.index_from_disk(digest)? => {
                Ok(self.found(digest, now_ms(), how))
            }
            Lookup::Miss | Lookup::Unknown => Ok(None),
        }
    }

    /// Looks a blob up and marks it as used. An unverified one is hashed first; `None` if it is
    /// missing or does not match.
    pub(super) async fn find(
        self: &Arc<Self>,
        digest: &Digest,
        how: Use,
    ) -> Result<Option<IndexedBlob>> {
        let found = match self.touch(digest, now_ms(), how) {
            Lookup::Hit(found) => Some(found),
            Lookup::Miss => None,
            Lookup::Unknown => {
                let digest = *digest;
                self.run(move |disk| disk.touch_on_disk(&digest, how))
                    .await?
            }
        };
        match found {
            Some(found) if found.unverified && !self.verify_once(digest).await? => Ok(None),
            found => Ok(found),
        }
    }

    /// Whether a verified blob is stored. Marks it as used.
    pub(super) async fn has(self: &Arc<Self>, digest: &Digest, how: Use) -> Result<bool> {
        Ok(digest.is_empty_blob() || self.find(digest, how).await?.is_some())
    }

    /// Indexes a blob that the scan has not reached; `false` if it is missing. Blocks.
    fn index_from_disk(&self, digest: &Digest) -> Result<bool> {
        let key = Key::cas(digest);
        let _changing = self.lock(&key);
        if let Some(hit) = self.index.peek(&key) {
            return Ok(hit.size == digest.size());
        }
        let meta = self.files.stat_file(&layout::blob_path(digest))?;
        let Some(meta) = meta.filter(|meta| meta.size == digest.size() && meta.size > 0) else {
            return Ok(false);
        };
        self.index_file(&key, meta.size, meta.atime_ms, meta.mtime_ms);
        Ok(true)
    }

    /// Indexes a file of an earlier run. The caller holds the key's lock.
    pub(super) fn index_file(&self, key: &Key, size: u64, atime_ms: u64, mtime_ms: u64) {
        let unverified = key.space == Space::Cas && mtime_ms >= self.unverified_from_ms;
        let last_use = atime_ms.min(now_ms());
        if self.index.insert_found(key, size, last_use, unverified) {
            self.room.file_scanned(size);
        }
    }

    /// Moves the finished and verified file of a blob to its place. Blocks.
    pub(super) fn publish_blob(&self, digest: &Digest, from: &str) -> Result<Put> {
        let path = layout::blob_path(digest);
        let put = self.publish(&Key::cas(digest), digest.size(), from, &path)?;
        if put == Put::Stored {
            self.traffic.add_written(digest.size());
        }
        self.watchers.published(digest);
        Ok(put)
    }

    /// Moves the finished file of a blob or result to its place, unless the blob is present. Blocks.
    pub(super) fn publish(&self, key: &Key, size: u64, from: &str, to: &str) -> Result<Put> {
        // Delays the end of the store until the file is moved.
        let closed = self.closed.read();
        if *closed {
            return Err(Error::Unavailable("the store was closed".to_owned()));
        }
        let _changing = self.lock(key);
        let there = self.index.peek(key).filter(|_| key.space == Space::Cas);
        if there.is_some_and(|hit| hit.size == size && !hit.unverified) {
            self.files.unlink(from)?;
            return Ok(Put::Existed);
        }
        self.install(from, to)?;
        self.index.insert(key, size, now_ms());
        self.written.fetch_add(1, Relaxed);
        Ok(Put::Stored)
    }

    /// Returns the path of an index entry's file, if there is one. Blocks.
    pub(super) fn locate(&self, key: &Key) -> Result<Option<String>> {
        let folder = match key.space {
            Space::Cas => layout::cas_folder(key.function),
            Space::Ac(number) => match self.instances.hash(number) {
                Some(instance) => layout::ac_folder(key.function, &instance),
                None => return Ok(None),
            },
        };
        let (start, is_whole) = layout::name_of(key);
        let path = layout::file_path(&folder, &start);
        if is_whole {
            return Ok(self.files.stat_file(&path)?.map(|_| path));
        }
        let folder = layout::folder_of(&path);
        let mut names = self.files.list(folder)?.into_iter();
        let name = names.find(|name| name.starts_with(&start));
        Ok(name.map(|name| format!("{folder}/{name}")))
    }
}

/// The state of the scan: set once all files are indexed.
#[derive(Debug, Default)]
pub(super) struct ScanState(AtomicBool);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lookup<T> {
    Hit(T),
    Miss,
    /// The scan has not ended, so that the blob may be on the disk.
    Unknown,
}

impl ScanState {
    pub(super) fn set(&self) {
        self.0.store(true, Release);
    }

    pub(super) fn get(&self) -> bool {
        self.0.load(Acquire)
    }

    pub(super) fn lookup<T>(&self, look_up: impl FnOnce() -> Option<T>) -> Lookup<T> {
        // Read before the index: the scan may find the entry, and end, in between.
        let all = self.get();
        match look_up() {
            Some(found) => Lookup::Hit(found),
            None if all => Lookup::Miss,
            None => Lookup::Unknown,
        }
    }
}

pub(super) fn lock_of<'a, L>(locks: &'a [L], key: &Key) -> Option<&'a L> {
    let number = usize::from(u16::from_le_bytes(*key.hash.first_chunk()?));
    locks.get(number % locks.len())
}

/// Returns the current time, in milliseconds since the Unix epoch.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the error of work that panicked, or that the runtime's end cut off.
pub(super) fn cut_off(error: &tokio::task::JoinError) -> Error {
    Error::Unavailable(format!("work on the disk was cut off: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_miss_is_certain_only_if_the_scan_ended_before_the_lookup() {
        let scanned = ScanState::default();
        let ends_meanwhile = || {
            scanned.set();
            None::<()>
        };
        assert_eq!(scanned.lookup(ends_meanwhile), Lookup::Unknown);
        assert_eq!(scanned.lookup(|| None::<()>), Lookup::Miss);
        assert_eq!(scanned.lookup(|| Some(1)), Lookup::Hit(1));
    }
}
