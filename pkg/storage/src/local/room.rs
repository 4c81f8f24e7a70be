//! Who may take how much of the disk: every byte is reserved before it is written.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use tokio::{sync::Notify, time};

use super::folders::{FOLDER_ROOM, Folders};
use crate::{
    Error, Result, Usage,
    index::{Index, room_of},
};

/// How long an upload waits for eviction before it is refused. Eviction takes milliseconds; this
/// ends the wait when nothing evicts.
const WAIT: Duration = Duration::from_secs(30);

/// The store's accounts.
pub(super) struct Room {
    index: Arc<Index>,
    folders: Arc<Folders>,
    limit: u64,
    /// Usage beyond this wakes the janitor.
    mark: u64,
    /// Being written.
    reserved: AtomicU64,
    /// Partial uploads that nobody is sending.
    idle: AtomicU64,
    /// What an earlier run left on the disk, at most, and the scan has not reached yet.
    unscanned: AtomicU64,
    /// Of which this much may well not be there: a reason to hold uploads back, not to evict.
    slack: AtomicU64,
    /// What the upload at the head of the queue wants.
    wanted: AtomicU64,
    waiting: AtomicU64,
    /// Waiting uploads stand in line here, so that a large one is not passed by small ones for ever.
    line: tokio::sync::Mutex<()>,
    made: Notify,
    exhausted: AtomicBool,
    pressure: Notify,
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
            mark,
            reserved: AtomicU64::new(0),
            idle: AtomicU64::new(0),
            unscanned: AtomicU64::new(unscanned),
            slack: AtomicU64::new(slack),
            wanted: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            line: tokio::sync::Mutex::new(()),
            made: Notify::new(),
            exhausted: AtomicBool::new(false),
            pressure: Notify::new(),
        })
    }

    /// Takes room for a file of `size` bytes; waits for eviction when there is not enough.
    /// `what` names it in the error.
    pub(super) async fn reserve(self: &Arc<Self>, size: u64, what: &str) -> Result<Reservation> {
        let bytes = room_of(size);
        if self.waiting.load(SeqCst) == 0
            && let Some(reservation) = self.try_reserve(bytes)
        {
            return Ok(reservation);
        }
        if bytes > self.limit {
            return Err(self.full(what, bytes));
        }
        let _waiting = Waiting::new(&self.waiting);
        let until = time::Instant::now() + WAIT;
        let Ok(_turn) = time::timeout_at(until, self.line.lock()).await else {
            return Err(self.full(what, bytes));
        };
        self.exhausted.store(false, SeqCst);
        let wanted = Wanted(&self.wanted);
        loop {
            let made = self.made.notified();
            tokio::pin!(made);
            made.as_mut().enable();
            if let Some(reservation) = self.try_reserve(bytes) {
                return Ok(reservation);
            }
            wanted.set(bytes);
            if self.exhausted.swap(false, SeqCst) {
                return Err(self.full(what, bytes));
            }
            self.pressure.notify_one();
            if time::timeout_at(until, made).await.is_err() {
                return Err(self.full(what, bytes));
            }
        }
    }

    /// The same if that takes no wait.
    pub(super) fn reserve_now(self: &Arc<Self>, size: u64, what: &str) -> Result<Reservation> {
        let bytes = room_of(size);
        self.try_reserve(bytes)
            .ok_or_else(|| self.full(what, bytes))
    }

    /// After the disk itself was full: waits until eviction has freed `size` bytes of it, as far as
    /// `free` tells. Says whether it is worth trying again.
    pub(super) async fn make_on_disk(&self, size: u64, free: impl Fn() -> Option<u64>) -> bool {
        let _waiting = Waiting::new(&self.waiting);
        let until = time::Instant::now() + WAIT;
        let Ok(_turn) = time::timeout_at(until, self.line.lock()).await else {
            return false;
        };
        self.exhausted.store(false, SeqCst);
        let wanted = Wanted(&self.wanted);
        loop {
            let made = self.made.notified();
            tokio::pin!(made);
            made.as_mut().enable();
            // Eviction frees what is wanted beyond the room under the limit, so ask for that too.
            let under_limit = self.limit.saturating_sub(self.used());
            wanted.set(under_limit.saturating_add(room_of(size)));
            self.pressure.notify_one();
            if time::timeout_at(until, made).await.is_err() || self.exhausted.swap(false, SeqCst) {
                return false;
            }
            if free().is_none_or(|free| free >= room_of(size)) {
                return true;
            }
        }
    }

    fn try_reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        // What is settled is read after what is reserved: a blob that moves from the one to the
        // other meanwhile is counted twice and not left out.
        let sum = |taken: u64| self.settled().saturating_add(taken).saturating_add(bytes);
        let fits = |taken: u64| (sum(taken) <= self.limit).then(|| taken.saturating_add(bytes));
        let taken = self.reserved.fetch_update(SeqCst, SeqCst, fits).ok()?;
        if sum(taken) > self.mark {
            self.pressure.notify_one();
        }
        let room = Arc::clone(self);
        Some(Reservation { room, bytes })
    }

    fn full(&self, what: &str, bytes: u64) -> Error {
        let why = format!("the cache holds at most {} bytes", self.limit);
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
        self.kept_at_most().saturating_add(self.idle.load(Relaxed))
    }

    pub(super) fn used(&self) -> u64 {
        self.settled().saturating_add(self.reserved.load(SeqCst))
    }

    pub(super) fn usage(&self, free_on_disk: Option<u64>) -> Usage {
        let (used, wanted) = (self.used(), self.wanted.load(SeqCst));
        let free = self.limit.saturating_sub(used);
        Usage {
            used: used.saturating_sub(self.slack()),
            idle_uploads: self.idle.load(Relaxed),
            folders: self.folders.bytes(),
            limit: self.limit,
            wanted: wanted.saturating_sub(free),
            free_on_disk,
        }
    }

    /// Whether any partial upload is kept.
    pub(super) fn has_idle(&self) -> bool {
        self.idle.load(Relaxed) > 0
    }

    /// Counts a kept partial upload of `size` bytes.
    pub(super) fn add_idle(&self, size: u64) {
        self.idle.fetch_add(room_of(size), Relaxed);
    }

    /// A kept partial upload of `size` bytes is being sent again: its room is reserved from now on.
    pub(super) fn adopt_idle(self: &Arc<Self>, size: u64) -> Reservation {
        let bytes = room_of(size);
        self.reserved.fetch_add(bytes, SeqCst);
        subtract(&self.idle, bytes);
        Reservation {
            room: Arc::clone(self),
            bytes,
        }
    }

    /// Ends what [`Self::add_idle`] began.
    pub(super) fn remove_idle(&self, size: u64) {
        subtract(&self.idle, room_of(size));
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
    }

    /// See [`crate::Evictable::room_made`].
    pub(super) fn made(&self, exhausted: bool) {
        self.exhausted.store(exhausted, SeqCst);
        self.made.notify_waiters();
    }

    /// See [`crate::Evictable::pressure`].
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
        if self.bytes > 0 && self.room.waiting.load(SeqCst) > 0 {
            self.room.made.notify_waiters();
        }
    }
}

/// Counts one waiting upload for as long as it lives.
struct Waiting<'a>(&'a AtomicU64);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// Where it is stated how much is wanted; nothing, once this is dropped.
struct Wanted<'a>(&'a AtomicU64);

impl Wanted<'_> {
    fn set(&self, bytes: u64) {
        self.0.store(bytes, SeqCst);
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.0.store(0, SeqCst);
    }
}

fn subtract(from: &AtomicU64, bytes: u64) {
    let lower = |value: u64| Some(value.saturating_sub(bytes));
    let _ = from.fetch_update(SeqCst, SeqCst, lower);
}

#[cfg(test)]
mod tests;
