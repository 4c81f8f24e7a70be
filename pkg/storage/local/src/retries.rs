//! Retries of writes to a full disk.

use std::sync::Arc;

use super::{
    disk::Disk,
    room::{BrokenLeases, short_of},
};
use gorego_storage::{Digest, Error, Result, Usage};

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

    /// Evicts files after a write of `size` bytes for `digest` failed on a full disk. Returns the error if it
    /// has another cause, or if a retry would be in vain.
    pub(super) async fn make_space(
        &mut self,
        error: Error,
        digest: &Digest,
        size: u64,
    ) -> Result<()> {
        if !error.is_no_space() {
            return Err(error);
        }
        let (room, files) = (&self.disk.room, &self.disk.files);
        let free = files.free();
        if let Some(before) = self.before.take() {
            let now = room.usage(free, false);
            let short = short_of(&now);
            if short.is_lost(&before, &now) {
                room.backoff.record(short, &now);
            }
        }
        if self.left > 0 && room.check_fits(size, "", free).is_ok() {
            self.left -= 1;
            self.before = room.make_on_disk(size, &self.broken, || files.free()).await;
        }
        if self.before.is_some() {
            return Ok(());
        }
        let cause = error.io_cause().unwrap_or_else(|| error.to_string());
        Err(Error::Full {
            what: digest.to_string(),
            bytes: digest.size(),
            why: format!("{cause} and nothing more can be evicted for it"),
        })
    }
}

impl Disk {
    /// Reserves room for a file of `size` bytes and writes it on another thread; again, after
    /// eviction, if the disk is full. `what` names it in errors.
    pub(super) async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
        what: &str,
        write: impl Fn(&Self) -> Result<T> + Clone + Send + 'static,
    ) -> Result<T> {
        let broken = Arc::default();
        let mut retries = Retries::new(self, &broken);
        loop {
            let room = self.room.reserve(size, what, &broken).await?;
            let write = write.clone();
            let written = self.run(move |disk| {
                // Released before a wait for eviction, since it counts as a file.
                let _room = room;
                write(disk)
            });
            match written.await {
                Err(error) => retries.make_space(error, digest, size).await?,
                written => return written,
            }
        }
    }
}
