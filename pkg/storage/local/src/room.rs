//! Who may take how much of the disk: every byte is reserved before it is written.

mod waiting;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
};

use tokio::sync::Notify;

pub(crate) use self::waiting::BrokenLeases;
use super::{
    folders::{FOLDER_ROOM, Folders},
    full::{self, Free},
    idle::Idle,
};
use crate::index::{Index, room_of};
use gorego_storage::{Error, Futile, Removed, Result, Usage};

/// The store's accounts.
pub(super) struct Room {
    index: Arc<Index>,
    folders: Arc<Folders>,
    limit: u64,
    /// The space that may be used. At first more than the limit, if that was lowered; it shrinks
    /// with each eviction, so that uploads need not wait until all of it is evicted.
    ceiling: AtomicU64,
    /// Usage beyond this wakes the janitor.
    mark: u64,
    /// Being written.
    reserved: AtomicU64,
    /// Partial uploads that nobody is sending.
    pub(super) idle: Idle,
    /// What an earlier run left on the disk, at most, and the scan has not reached yet.
    unscanned: AtomicU64,
    /// Of which this much may well not be there: a reason to hold uploads back, not to evict.
    slack: AtomicU64,
    /// The number of reservations. Each upload that has one also has a file.
    uploads: AtomicU64,
    /// What the upload at the head of the queue wants.
    wanted: AtomicU64,
    /// The upload that eviction works for.
    served: Mutex<WaitingUpload>,
    /// The amount evicted since the start.
    evicted: Mutex<Removed>,
    /// The record of evictions that did not free the disk.
    pub(super) futile: Futile,
    waiting: AtomicU64,
    /// Waiting uploads stand in line here, so that a large one is not passed by small ones for ever.
    line: tokio::sync::Mutex<()>,
    made: Notify,
    exhausted: AtomicBool,
    pressure: Notify,
}

/// The upload that eviction works for: the one at the head of the queue, or the upload
/// served last.
#[derive(Default)]
struct WaitingUpload {
    /// Its number among those that waited.
    number: u64,
    /// The leases broken for it.
    broken: Arc<BrokenLeases>,
    /// The evicted amount to be reached for it, if the disk itself was full.
    goal: Option<Removed>,
}

/// Room that is taken until this is dropped.
pub(super) struct Reservation {
    room: Arc<Room>,
    bytes: u64,
}

impl Room {
    pub(super) fn new(
        index: Arc<Index>,
        folders: Arc<Folders>,
        limit: u64,
        mark: u64,
        (unscanned, slack): (u64, u64),
    ) -> Arc<Self> {
        Arc::new(Self {
            index,
            folders,
            limit,
            ceiling: AtomicU64::new(limit.max(unscanned)),
            mark,
            reserved: AtomicU64::new(0),
            idle: Idle::default(),
            unscanned: AtomicU64::new(unscanned),
            slack: AtomicU64::new(slack),
            uploads: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            served: Mutex::default(),
            evicted: Mutex::default(),
            futile: Futile::default(),
            waiting: AtomicU64::new(0),
            line: tokio::sync::Mutex::new(()),
            made: Notify::new(),
            exhausted: AtomicBool::new(false),
            pressure: Notify::new(),
        })
    }

    /// Refuses a blob of this size if evicting everything would not make room for it. `free` is the
    /// space that the disk has left.
    pub(super) fn check_fits(&self, size: u64, what: &str, free: Option<Free>) -> Result<()> {
        let bytes = room_of(size);
        if bytes > self.limit {
            return Err(self.full(what, bytes));
        }
        let on_disk = free.map(|free| free.bytes.saturating_add(self.used()));
        match on_disk {
            Some(most) if bytes > most => Err(Error::Full {
                what: what.to_owned(),
                bytes,
                why: format!("the disk is full, and has at most {most} bytes for the cache"),
            }),
            _ => Ok(()),
        }
    }

    /// Reserves room if that needs no wait.
    pub(super) fn reserve_now(self: &Arc<Self>, size: u64, what: &str) -> Result<Reservation> {
        let bytes = room_of(size);
        self.try_reserve(bytes)
            .ok_or_else(|| self.full(what, bytes))
    }

    fn served(&self) -> MutexGuard<'_, WaitingUpload> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the amount evicted since the start.
    fn evicted(&self) -> Removed {
        *self.evicted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a file of so many bytes was evicted.
    pub(super) fn add_evicted(&self, bytes: u64) {
        let mut evicted = self.evicted.lock().unwrap_or_else(PoisonError::into_inner);
        evicted.count += 1;
        evicted.bytes = evicted.bytes.saturating_add(bytes);
        drop(evicted);
        // Half of it is for uploads, half of it gets the store closer to its limit.
        let ceiling = self.used().saturating_add(bytes / 2).max(self.limit);
        self.ceiling.fetch_min(ceiling, SeqCst);
    }

    /// Adds leased bytes evicted for the upload of this number, unless it has left meanwhile.
    pub(super) fn charge_leases(&self, upload: u64, bytes: u64) {
        let served = self.served();
        if served.number == upload {
            served.broken.0.fetch_add(bytes, Relaxed);
        }
    }

    fn try_reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        // What is settled is read after what is reserved: a blob that moves from the one to the
        // other meanwhile is counted twice and not left out.
        let sum = |taken: u64| self.settled().saturating_add(taken).saturating_add(bytes);
        let fits = |taken: u64| {
            (sum(taken) <= self.ceiling.load(SeqCst)).then(|| taken.saturating_add(bytes))
        };
        let taken = self.reserved.fetch_update(SeqCst, SeqCst, fits).ok()?;
        if sum(taken) > self.mark {
            self.pressure.notify_one();
        }
        Some(self.reservation(bytes))
    }

    fn reservation(self: &Arc<Self>, bytes: u64) -> Reservation {
        self.uploads.fetch_add(1, SeqCst);
        let room = Arc::clone(self);
        Reservation { room, bytes }
    }

    fn full(&self, what: &str, bytes: u64) -> Error {
        let why = format!(
            "the cache holds at most {} bytes (local_cache.max_size_gb), and one upload evicts at most \
             a tenth of that from what clients were told is here",
            self.limit
        );
        Error::Full {
            what: what.to_owned(),
            bytes,
            why,
        }
    }

    /// What blobs, action results and their folders take, as far as that is known.
    pub(super) fn kept(&self) -> u64 {
        self.kept_at_most().saturating_sub(self.slack())
    }

    fn kept_at_most(&self) -> u64 {
        // First, so that what the scan finds meanwhile is counted twice and not left out.
        let unscanned = self.unscanned.load(SeqCst);
        self.index
            .bytes()
            .saturating_add(self.folders.bytes())
            .saturating_add(unscanned)
    }

    fn slack(&self) -> u64 {
        self.slack.load(Relaxed).min(self.unscanned.load(Relaxed))
    }

    fn settled(&self) -> u64 {
        self.kept_at_most().saturating_add(self.idle.bytes())
    }

    pub(super) fn used(&self) -> u64 {
        self.settled().saturating_add(self.reserved.load(SeqCst))
    }

    pub(super) fn usage(&self, free: Option<Free>, scanning: bool) -> Usage {
        let (used, wanted) = (self.used(), self.wanted.load(SeqCst));
        let wanted = match wanted {
            0 => 0,
            wanted => used
                .saturating_add(wanted)
                .saturating_sub(self.ceiling.load(SeqCst)),
        };
        let (evicted, served) = (self.evicted(), self.served());
        let free_files = free.and_then(|free| free.files);
        let goal_files = served.goal.map_or(0, |goal| goal.count);
        Usage {
            used: used.saturating_sub(self.slack()),
            idle_uploads: self.idle.bytes(),
            folders: self.folders.bytes(),
            limit: self.limit,
            wanted,
            wanted_on_disk: served
                .goal
                .map(|goal| goal.bytes.saturating_sub(evicted.bytes)),
            wanted_files: lacking_files(free_files).min(goal_files.saturating_sub(evicted.count)),
            upload: served.number,
            leases_broken: served.broken.0.load(Relaxed),
            evicted,
            files: self.index.count()
                + self.folders.count()
                + self.idle.count()
                + self.uploads.load(SeqCst),
            free_on_disk: free.map(|free| free.bytes),
            free_files,
            scanning,
        }
    }

    /// Returns the limit of the cache, in bytes.
    pub(super) const fn limit(&self) -> u64 {
        self.limit
    }

    /// Counts a file that may be evicted when its room is needed.
    pub(super) fn add_idle(&self, path: &str, size: u64, since_ms: u64) {
        self.idle.add(path, size, since_ms);
        if self.idle.bytes() > self.limit / 10 {
            self.pressure.notify_one();
        }
    }

    /// A kept partial upload of `size` bytes is being sent again: its room is reserved from now on.
    pub(super) fn adopt_idle(self: &Arc<Self>, path: &str, size: u64) -> Reservation {
        let bytes = room_of(size);
        self.reserved.fetch_add(bytes, SeqCst);
        self.idle.remove(path);
        self.reservation(bytes)
    }

    /// The scan reached a file of `size` bytes.
    pub(super) fn scanned(&self, size: u64) {
        subtract(&self.unscanned, room_of(size));
    }

    /// The scan reached this many folders.
    pub(super) fn scanned_folders(&self, count: u64) {
        subtract(&self.unscanned, count.saturating_mul(FOLDER_ROOM));
    }

    /// The scan reached everything.
    pub(super) fn scan_done(&self) {
        self.unscanned.store(0, Relaxed);
        self.slack.store(0, Relaxed);
        self.made.notify_waiters();
        self.pressure.notify_one();
    }

    /// See [`gorego_storage::Evictable::room_made`].
    pub(super) fn made(&self, exhausted: bool) {
        self.exhausted.store(exhausted, SeqCst);
        self.made.notify_waiters();
    }

    /// See [`gorego_storage::Evictable::pressure`].
    pub(super) async fn pressure(&self) {
        self.pressure.notified().await;
    }

    /// Asks the janitor to look again.
    pub(super) fn press(&self) {
        self.pressure.notify_one();
    }
}

impl Reservation {
    /// Takes over another reservation's room.
    pub(super) fn merge(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// In bytes.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        subtract(&self.room.reserved, self.bytes);
        subtract(&self.room.uploads, 1);
        if self.bytes > 0 && self.room.waiting.load(SeqCst) > 0 {
            self.room.made.notify_waiters();
        }
    }
}

/// The files that a disk should be able to take beyond those that it reports to have left.
fn lacking_files(free: Option<u64>) -> u64 {
    free.map_or(0, |free| full::FILES.saturating_sub(free))
}

fn subtract(from: &AtomicU64, bytes: u64) {
    let lower = |value: u64| Some(value.saturating_sub(bytes));
    let _ = from.fetch_update(SeqCst, SeqCst, lower);
}

#[cfg(test)]
mod tests;
