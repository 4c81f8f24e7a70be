//! Uploads that wait for room, one at a time at the head of a queue.

use std::{
    fmt,
    future::Future,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use scopeguard::defer;
use tokio::time;

use super::{FreeSpace, Reservation, Room};
use crate::index::room_of;
use gorego_storage::{EvictionTotal, Resource, Result, Usage};

/// The time without eviction or scanning after which a waiting upload is refused.
const WAIT: Duration = Duration::from_secs(30);
/// The number of files and folders that a disk should be able to take before one blob is written.
pub(super) const FILES: u64 = 16;

/// The leased bytes evicted for one upload so far. They are limited, so that no single upload costs
/// the leases of all others.
pub(crate) type BrokenLeases = AtomicU64;

/// The upload that eviction serves, or served last.
#[derive(Default)]
pub(super) struct QueueHead {
    pub(super) number: u64,
    pub(super) broken: Arc<BrokenLeases>,
    /// The bytes it waits for; zero if the limit is no obstacle.
    pub(super) bytes: u64,
    /// The evicted total to reach for this upload, if its write met a full disk.
    pub(super) goal: Option<EvictionTotal>,
}

impl Room {
    /// Reserves room for a file of `size` bytes; waits for eviction when there is not enough.
    /// `what` names it in the error, `broken` counts the leases that its upload costs.
    pub(crate) async fn reserve(
        self: &Arc<Self>,
        size: u64,
        what: impl fmt::Display,
        broken: &Arc<BrokenLeases>,
    ) -> Result<Reservation> {
        let bytes = room_of(size);
        if let Some(reservation) = self.try_reserve(bytes, false) {
            return Ok(reservation);
        }
        if bytes > self.limit {
            return Err(self.full(what, bytes));
        }
        let reserved = self.in_turn(async {
            self.serve(broken, bytes, None);
            loop {
                let reserved = self.try_reserve(bytes, true);
                if reserved.is_some() || self.take_exhausted() {
                    return reserved;
                }
                self.press();
                self.changed.notified().await;
            }
        });
        reserved.await.ok_or_else(|| self.full(what, bytes))
    }

    /// Waits, after the disk itself was full, until the free or the evicted amount is enough for a
    /// file of `size` bytes, or nothing more can be evicted. `free` reports what the disk has left.
    /// Returns the usage before the eviction; `None` if nothing was evicted.
    pub(crate) async fn make_on_disk(
        &self,
        size: u64,
        broken: &Arc<BrokenLeases>,
        free: impl Fn() -> Option<FreeSpace>,
    ) -> Option<Usage> {
        self.in_turn(async {
            // An upload that waited earlier may have recorded it meanwhile.
            let before = self.usage(free(), false);
            if self.backoff.is_paused(short_of(&before), &before) {
                return None;
            }
            let bytes = room_of(size.max(1));
            let files = lacking_files(before.free_files);
            self.serve(
                broken,
                0,
                Some(EvictionTotal {
                    count: files,
                    bytes,
                }),
            );
            loop {
                self.press();
                self.changed.notified().await;
                let now = self.usage(free(), false);
                let evicted = now.evicted.count > before.evicted.count;
                let fits = now.free_on_disk.is_none_or(|free| free >= bytes);
                let enough = (fits || now.wanted_on_disk == Some(0)) && now.wanted_files == 0;
                if self.take_exhausted() || (evicted && enough) {
                    return evicted.then_some(before);
                }
            }
        })
        .await
    }

    fn take_exhausted(&self) -> bool {
        std::mem::take(&mut self.accounts.lock().exhausted)
    }

    /// Makes an upload the head of the queue. `goal` is the amount to be evicted from now on.
    fn serve(&self, broken: &Arc<BrokenLeases>, bytes: u64, goal: Option<EvictionTotal>) {
        let mut accounts = self.accounts.lock();
        accounts.exhausted = false;
        let evicted = accounts.evicted;
        accounts.served = QueueHead {
            number: accounts.served.number + 1,
            broken: Arc::clone(broken),
            bytes,
            goal: goal.map(|goal| EvictionTotal {
                count: evicted.count.saturating_add(goal.count),
                bytes: evicted.bytes.saturating_add(goal.bytes),
            }),
        };
    }

    /// Runs `work` when the uploads that waited longer are done. Gives up after [`WAIT`] without eviction or
    /// scanning.
    async fn in_turn<T>(&self, work: impl Future<Output = Option<T>>) -> Option<T> {
        self.accounts.lock().waiting += 1;
        defer! { self.accounts.lock().waiting -= 1 }
        let work = async {
            let _turn = self.turn.lock().await;
            // The demand ends before the next upload is served.
            defer! {
                let served = &mut self.accounts.lock().served;
                (served.bytes, served.goal) = (0, None);
            }
            work.await
        };
        tokio::pin!(work);
        let progress = || {
            let accounts = self.accounts.lock();
            (accounts.evicted.bytes, accounts.unscanned)
        };
        loop {
            let before = progress();
            if let Ok(done) = time::timeout(WAIT, &mut work).await {
                return done;
            }
            if progress() == before {
                return None;
            }
        }
    }
}

/// Returns the number of files that the disk should be able to take beyond those it has left.
pub(super) fn lacking_files(free: Option<u64>) -> u64 {
    free.map_or(0, |free| FILES.saturating_sub(free))
}

/// Returns the resource whose shortage made the disk refuse a write.
pub(crate) fn short_of(usage: &Usage) -> Resource {
    if Resource::Files.free(usage) < FILES {
        Resource::Files
    } else {
        Resource::Bytes
    }
}
