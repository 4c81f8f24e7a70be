//! Writes that meet a full disk: eviction for them, and the limit of attempts.

use std::sync::Arc;

use super::{
    core::Core,
    room::{BrokenLeases, Room},
};
use crate::index::room_of;

/// The number of files and folders that a disk should be able to take before one blob is written to
/// it.
pub(super) const FILES: u64 = 16;

/// The most retries of one write while others take the space that is evicted for it.
const ATTEMPTS: u32 = 4;
/// The space that a file system has left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Free {
    pub(super) bytes: u64,
    /// `None` where files are not limited in number.
    pub(super) files: Option<u64>,
}

/// The attempts of one write to get onto a disk that is full.
pub(super) struct Attempts {
    core: Arc<Core>,
    broken: Arc<BrokenLeases>,
    count: u32,
    failed: bool,
    before: Level,
}

/// The cache's part of the disk, and the bytes evicted so far.
#[derive(Clone, Copy, Default)]
struct Level {
    /// Free for it, or taken by it.
    shared: Option<u64>,
    freed: u64,
}

impl Attempts {
    pub(super) fn new(core: &Arc<Core>, broken: &Arc<BrokenLeases>) -> Self {
        Self {
            core: Arc::clone(core),
            broken: Arc::clone(broken),
            count: 0,
            failed: false,
            before: Level::default(),
        }
    }

    /// Evicts something after a write of `size` bytes met a full disk; returns whether another
    /// attempt is worthwhile.
    pub(super) async fn again(&mut self, size: u64) -> bool {
        let room = &self.core.room;
        let free = self.core.files.free();
        let now = Level::of(room, free);
        let usage = room.usage(free, false);
        if self.count > 0 && self.before.was_futile(now) {
            let files = usage.free_files.is_some_and(|left| left < FILES);
            room.futile().record(&usage, files);
        }
        let fits = room.check_fits(size, "", free).is_ok();
        self.failed = self.count == ATTEMPTS || !fits || room.futile().holds(&usage);
        if self.failed {
            return false;
        }
        self.count += 1;
        self.before = now;
        let enough = |freed| {
            let Some(free) = self.core.files.free() else {
                return true;
            };
            let bytes = room_of(size);
            (free.bytes >= bytes || freed >= bytes) && free.files.is_none_or(|left| left >= FILES)
        };
        // Also when the caller gives up meanwhile: that says nothing of the disk.
        self.failed = true;
        let worth = room.make_on_disk(size, &self.broken, enough).await;
        self.failed = !worth;
        worth
    }
}

impl Drop for Attempts {
    fn drop(&mut self) {
        if self.count > 0 && !self.failed {
            self.core.room.futile().clear();
        }
    }
}

impl Level {
    fn of(room: &Room, free: Option<Free>) -> Self {
        Self {
            shared: free.map(|free| free.bytes.saturating_add(room.used())),
            freed: room.freed(),
        }
    }

    /// Whether most of what was evicted since did not become free.
    fn was_futile(self, now: Self) -> bool {
        let lost = match (self.shared, now.shared) {
            (Some(before), Some(now)) => before.saturating_sub(now),
            _ => 0,
        };
        let freed = now.freed - self.freed;
        freed > 0 && lost >= freed / 4 * 3
    }
}
