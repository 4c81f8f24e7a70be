//! Writes that meet a full disk: eviction for them, and the limit of attempts.

use std::sync::Arc;

use super::{core::Core, room::BrokenLeases};
use gorego_storage::{Resource, Usage};

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
    /// The usage before the latest eviction for it.
    before: Option<Usage>,
}

impl Attempts {
    pub(super) fn new(core: &Arc<Core>, broken: &Arc<BrokenLeases>) -> Self {
        Self {
            core: Arc::clone(core),
            broken: Arc::clone(broken),
            count: 0,
            before: None,
        }
    }

    /// Evicts something after a write of `size` bytes met a full disk; returns whether another
    /// attempt is worthwhile.
    pub(super) async fn again(&mut self, size: u64) -> bool {
        let (room, files) = (&self.core.room, &self.core.files);
        let free = files.free();
        if let Some(before) = self.before.take() {
            let now = room.usage(free, false);
            let short = short_of(&now);
            if short.is_lost(&before, &now) {
                room.futile.record(short, &now);
            }
        }
        if self.count == ATTEMPTS || room.check_fits(size, "", free).is_err() {
            return false;
        }
        self.count += 1;
        self.before = room.make_on_disk(size, &self.broken, || files.free()).await;
        self.before.is_some()
    }
}

/// Returns the resource whose shortage made the disk refuse a write.
pub(super) fn short_of(usage: &Usage) -> Resource {
    if Resource::Files.free(usage) < FILES {
        Resource::Files
    } else {
        Resource::Bytes
    }
}
