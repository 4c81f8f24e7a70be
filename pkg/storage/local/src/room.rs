//! Accounts of the disk: every byte is reserved before it is written.

mod idle;
mod queue;

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use parking_lot::Mutex;
use scopeguard::defer;
use tokio::sync::Notify;

pub(crate) use self::queue::{BrokenLeases, short_of};
use self::{
    idle::Idle,
    queue::{QueueHead, lacking_files},
};
use crate::index::{Index, room_of};
use gorego_storage::{Digest, Error, EvictionBackoff, EvictionTotal, Result, Usage};

/// The space that a folder takes on most file systems, in bytes.
const FOLDER_ROOM: u64 = 4096;

/// The space that a file system has left.
#[derive(Clone, Copy, Debug)]
pub(super) struct FreeSpace {
    pub(super) bytes: u64,
    /// `None` if the file system does not limit or report it.
    pub(super) files: Option<u64>,
}

/// The most twins, each of which takes memory and an inode.
const MAX_TWINS: u64 = 50_000;

/// The disk accounts of a store.
#[derive(Default)]
pub(super) struct Room {
    pub(super) limit: u64,
    /// The usage beyond which the janitor is woken.
    mark: u64,
    /// Never locked across a system call.
    accounts: Mutex<Accounts>,
    /// The record of evictions that did not free the disk.
    pub(super) backoff: EvictionBackoff,
    /// Uploads that wait for room take turns, so that small ones do not overtake a large one.
    turn: tokio::sync::Mutex<()>,
    /// Wakes the upload whose turn it is.
    changed: Notify,
    pub(super) pressure: Notify,
}

/// Figures in bytes, unless stated otherwise.
#[derive(Default)]
struct Accounts {
    /// Counts published blobs and results.
    index: Arc<Index>,
    /// The usage up to which room is reserved. Begins above the limit if that was lowered, and decreases
    /// with each eviction, so that uploads need not wait until the limit is reached.
    ceiling: u64,
    /// The room of uploads in progress.
    reserved: u64,
    /// The part of it that is not written yet.
    unwritten: u64,
    /// The part of that which is being written.
    writing: u64,
    /// The number of reservations, each of which counts as a file.
    uploads: u64,
    /// Partial uploads without a sender, and quarantined files.
    idle: Idle,
    /// The copies of blobs that are not executable. They take at most a tenth of the limit.
    twins: EvictionTotal,
    /// The most that an earlier run left on the disk beyond what was scanned.
    unscanned: u64,
    /// The uncertain part of `unscanned`. It delays uploads, but causes no eviction.
    slack: u64,
    /// The number of folders between the roots and the files; only those made since the start until the scan has
    /// ended.
    folders: u64,
    /// The amount evicted since the start.
    evicted: EvictionTotal,
    /// The number of uploads that wait for room, or for their turn.
    waiting: u64,
    /// The upload that eviction serves, or served last.
    served: QueueHead,
    /// Set if the janitor found nothing more to evict.
    exhausted: bool,
}

/// Room reserved for one upload until this is dropped.
pub(super) struct Reservation {
    room: Arc<Room>,
    bytes: u64,
    unwritten: u64,
}

impl Room {
    pub(super) fn new(index: Arc<Index>, limit: u64, mark: u64) -> Arc<Self> {
        let accounts = Accounts {
            index,
            ceiling: limit,
            ..Accounts::default()
        };
        Arc::new(Self {
            limit,
            mark,
            accounts: Mutex::new(accounts),
            ..Self::default()
        })
    }

    /// Refuses a blob of this size if evicting everything would not make room for it. `free` is the
    /// space that the disk has left.
    pub(super) fn check_fits(
        &self,
        size: u64,
        what: impl fmt::Display,
        free: Option<FreeSpace>,
    ) -> Result<()> {
        let bytes = room_of(size);
        if bytes > self.limit {
            return Err(self.full(what, bytes));
        }
        let used = self.accounts.lock().used();
        match free.map(|free| free.bytes.saturating_add(used)) {
            Some(most) if bytes > most => Err(Error::Full {
                what: what.to_string(),
                bytes,
                why: format!("the disk is full, and has at most {most} bytes for the cache"),
            }),
            _ => Ok(()),
        }
    }

    pub(super) fn reserve_now(self: &Arc<Self>, size: u64, blob: &Digest) -> Result<Reservation> {
        let bytes = room_of(size);
        let reserved = self.try_reserve(bytes, true);
        reserved.ok_or_else(|| self.full(blob, bytes))
    }

    fn try_reserve(self: &Arc<Self>, bytes: u64, overtake: bool) -> Option<Reservation> {
        let mut accounts = self.accounts.lock();
        let used = accounts.used().saturating_add(bytes);
        if used > accounts.ceiling || (accounts.waiting > 0 && !overtake) {
            return None;
        }
        let reservation = self.reservation(&mut accounts, bytes);
        drop(accounts);
        if used > self.mark {
            self.press();
        }
        Some(reservation)
    }

    fn reservation(self: &Arc<Self>, accounts: &mut Accounts, bytes: u64) -> Reservation {
        accounts.reserved += bytes;
        accounts.unwritten += bytes;
        accounts.uploads += 1;
        let room = Arc::clone(self);
        Reservation {
            room,
            bytes,
            unwritten: bytes,
        }
    }

    fn full(&self, what: impl fmt::Display, bytes: u64) -> Error {
        let why = format!(
            "the cache holds at most {} bytes (local_cache.max_size_gb), and one upload evicts at most \
             a tenth of that from blobs reported to clients",
            self.limit
        );
        Error::Full {
            what: what.to_string(),
            bytes,
            why,
        }
    }

    /// Returns the room of blobs, action results and their folders, as far as it is known.
    pub(super) fn kept(&self) -> u64 {
        let accounts = self.accounts.lock();
        accounts.kept().saturating_sub(accounts.slack())
    }

    pub(super) fn usage(&self, free: Option<FreeSpace>, scanning: bool) -> Usage {
        let accounts = self.accounts.lock();
        let (used, evicted, served) = (accounts.used(), accounts.evicted, &accounts.served);
        let wanted = match served.bytes {
            0 => 0,
            bytes => used.saturating_add(bytes).saturating_sub(accounts.ceiling),
        };
        let free_files = free.and_then(|free| free.files);
        let goal_files = served.goal.map_or(0, |goal| goal.count);
        Usage {
            used: used.saturating_sub(accounts.slack()),
            unwritten: accounts.unwritten,
            writing: accounts.writing,
            idle_uploads: accounts.idle.bytes(),
            folders: accounts.folders.saturating_mul(FOLDER_ROOM),
            limit: self.limit,
            wanted,
            wanted_on_disk: served
                .goal
                .map(|goal| goal.bytes.saturating_sub(evicted.bytes)),
            wanted_files: lacking_files(free_files).min(goal_files.saturating_sub(evicted.count)),
            upload: served.number,
            leases_broken: served.broken.load(Relaxed),
            evicted,
            files: accounts.index.count()
                + accounts.folders
                + accounts.idle.count()
                + accounts.twins.count
                + accounts.uploads,
            free_on_disk: free.map(|free| free.bytes),
            free_files,
            scanning,
        }
    }

    /// Returns the number of uploads that are written, and that wait for room.
    pub(super) fn uploads(&self) -> (u64, u64) {
        let accounts = self.accounts.lock();
        (accounts.uploads, accounts.waiting)
    }

    /// Records that a file of so many bytes was evicted.
    pub(super) fn add_evicted(&self, bytes: u64) {
        let mut accounts = self.accounts.lock();
        accounts.evicted.count += 1;
        accounts.evicted.bytes = accounts.evicted.bytes.saturating_add(bytes);
        // Half of it is for uploads, half of it gets the store closer to its limit.
        let ceiling = accounts.used().saturating_add(bytes / 2);
        accounts.ceiling = accounts.ceiling.min(ceiling.max(self.limit));
    }

    /// Adds leased bytes evicted for the upload of this number, unless another was served since.
    pub(super) fn charge_leases(&self, upload: u64, bytes: u64) {
        let served = &self.accounts.lock().served;
        if served.number == upload {
            served.broken.fetch_add(bytes, Relaxed);
        }
    }

    /// Reads or changes the accounts of partial uploads and quarantined files.
    pub(super) fn idle<T>(&self, work: impl FnOnce(&mut Idle) -> T) -> T {
        work(&mut self.accounts.lock().idle)
    }

    pub(super) fn add_idle(&self, path: &str, size: u64, since_ms: u64) {
        let bytes = self.idle(|idle| {
            idle.add(path, size, since_ms);
            idle.bytes()
        });
        if bytes > self.limit / 10 {
            self.press();
        }
    }

    /// Takes the room of a twin of `size` bytes; `false` if there is none now.
    pub(super) fn add_twin(&self, size: u64) -> bool {
        let bytes = room_of(size);
        let mut accounts = self.accounts.lock();
        let used = accounts.used().saturating_add(bytes);
        let twins = accounts.twins.bytes.saturating_add(bytes);
        let fits = used <= accounts.ceiling && accounts.waiting == 0;
        if !fits || twins > self.limit / 10 || accounts.twins.count >= MAX_TWINS {
            return false;
        }
        accounts.twins.count += 1;
        accounts.twins.bytes = twins;
        drop(accounts);
        if used > self.mark {
            self.press();
        }
        true
    }

    /// Releases the room of a twin of `size` bytes.
    pub(super) fn remove_twin(&self, size: u64) {
        let twins = &mut self.accounts.lock().twins;
        twins.count = twins.count.saturating_sub(1);
        twins.bytes = twins.bytes.saturating_sub(room_of(size));
    }

    /// Reserves the room of an idle file of `size` bytes whose upload is resumed, or of a new one of none.
    pub(super) fn adopt_idle(self: &Arc<Self>, path: &str, size: u64) -> Reservation {
        let mut accounts = self.accounts.lock();
        accounts.idle.remove(path);
        let mut reservation = self.reservation(&mut accounts, room_of(size));
        reservation.wrote(&mut accounts, size);
        reservation
    }

    /// Records the most that an earlier run left on the disk, and the uncertain part of that.
    pub(super) fn expect_scan(&self, unscanned: u64, slack: u64) {
        let mut accounts = self.accounts.lock();
        (accounts.unscanned, accounts.slack) = (unscanned, slack);
        accounts.ceiling = self.limit.max(unscanned);
    }

    /// Records that the scan reached a file of `size` bytes.
    pub(super) fn file_scanned(&self, size: u64) {
        let unscanned = &mut self.accounts.lock().unscanned;
        *unscanned = unscanned.saturating_sub(room_of(size));
    }

    /// Records that everything was scanned, and the number of folders. The caller prevents changes of folders
    /// meanwhile.
    pub(super) fn all_scanned(&self, folders: u64) {
        let mut accounts = self.accounts.lock();
        (accounts.unscanned, accounts.slack) = (0, 0);
        accounts.folders = folders;
        drop(accounts);
        self.changed.notify_one();
    }

    pub(super) fn folder_made(&self) {
        self.accounts.lock().folders += 1;
    }

    pub(super) fn folder_removed(&self) {
        let folders = &mut self.accounts.lock().folders;
        *folders = folders.saturating_sub(1);
    }

    /// Implements [`gorego_storage::Evictable::room_made`].
    pub(super) fn room_made(&self, exhausted: bool) {
        self.accounts.lock().exhausted = exhausted;
        self.changed.notify_one();
    }

    pub(super) fn press(&self) {
        self.pressure.notify_one();
    }
}

impl Accounts {
    fn kept(&self) -> u64 {
        (self.index.bytes())
            .saturating_add(self.folders.saturating_mul(FOLDER_ROOM))
            .saturating_add(self.unscanned)
    }

    fn used(&self) -> u64 {
        self.kept()
            .saturating_add(self.idle.bytes())
            .saturating_add(self.twins.bytes)
            .saturating_add(self.reserved)
    }

    fn slack(&self) -> u64 {
        self.slack.min(self.unscanned)
    }
}

impl Reservation {
    pub(super) fn merge(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
        self.unwritten += std::mem::take(&mut other.unwritten);
    }

    /// Runs `write`. Afterwards so many more bytes of the reservation count as written; none if it fails.
    pub(super) fn write<T>(&mut self, bytes: u64, write: impl FnOnce() -> Result<T>) -> Result<T> {
        let bytes = bytes.min(self.unwritten);
        let room = Arc::clone(&self.room);
        room.accounts.lock().writing += bytes;
        defer! {
            let writing = &mut room.accounts.lock().writing;
            *writing = writing.saturating_sub(bytes);
        }
        let written = write()?;
        self.wrote(&mut room.accounts.lock(), bytes);
        Ok(written)
    }

    fn wrote(&mut self, accounts: &mut Accounts, bytes: u64) {
        let bytes = bytes.min(self.unwritten);
        self.unwritten -= bytes;
        accounts.unwritten = accounts.unwritten.saturating_sub(bytes);
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut accounts = self.room.accounts.lock();
        accounts.reserved = accounts.reserved.saturating_sub(self.bytes);
        accounts.unwritten = accounts.unwritten.saturating_sub(self.unwritten);
        accounts.uploads = accounts.uploads.saturating_sub(1);
        let is_wanted = self.bytes > 0 && accounts.waiting > 0;
        drop(accounts);
        if is_wanted {
            self.room.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
