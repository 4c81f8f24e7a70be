//! Retries of writes to a full disk.

use std::{fmt, sync::Arc};

use super::{
    disk::Disk,
    room::{BrokenLeases, short_of},
};
use gorego_storage::{Error, Result, Usage};

/// The most retries of one write while other programs take the space evicted for it.
const RETRIES: u32 = 4;

/// The retries of one write to a disk that is full.
pub(super) struct Retries {
    disk: Arc<Disk>,
    broken: Arc<BrokenLeases>,
    left: u32,
    /// The usage before the latest eviction for it.
    before: Option<Usage>,
}

impl Retries {
    pub(super) fn new(disk: &Arc<Disk>, broken: &Arc<BrokenLeases>) -> Self {
        Self {
            disk: Arc::clone(disk),
            broken: Arc::clone(broken),
            left: RETRIES,
            before: None,
        }
    }

    /// Evicts files after a write of `size` bytes of `what` failed on a full disk. Returns the error if it
    /// has another cause, or if a retry would be in vain.
    pub(super) async fn make_space(
        &mut self,
        error: Error,
        what: impl fmt::Display,
        size: u64,
    ) -> Result<()> {
        if !error.is_no_space() {
            return Err(error);
        }
        let (room, files) = (&self.disk.room, &self.disk.files);
        let free = files.free();
        if let Some(before) = self.before.take() {
            let now = room.usage(free, false);
            room.backoff.judge(short_of(&now), &before, &now);
        }
        if self.left > 0 && room.check_fits(size, &what, free).is_ok() {
            self.left -= 1;
            self.before = room.make_on_disk(size, &self.broken, || files.free()).await;
        }
        if self.before.is_some() {
            return Ok(());
        }
        let cause = error.io_cause().unwrap_or_else(|| error.to_string());
        Err(Error::Full {
            what: what.to_string(),
            bytes: size,
            why: format!("{cause} and nothing more can be evicted for it"),
        })
    }
}
