//! Uploads that wait for room.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use tokio::time;

use super::{Reservation, Room, lacking_files};
use crate::{
    full::{self, Free},
    index::room_of,
};
use gorego_storage::{Removed, Result, Usage};

/// The time after which an upload is refused while nothing is evicted and nothing scanned.
const WAIT: Duration = Duration::from_secs(30);

/// The leased bytes evicted for one upload so far. They are limited, so that no single upload costs
/// the leases of all others.
#[derive(Debug, Default)]
pub(crate) struct BrokenLeases(pub(super) AtomicU64);

impl Room {
    /// Takes room for a file of `size` bytes; waits for eviction when there is not enough.
    /// `what` names it in the error, `broken` counts the leases that its upload costs.
    pub(crate) async fn reserve(
        self: &Arc<Self>,
        size: u64,
        what: &str,
        broken: &Arc<BrokenLeases>,
    ) -> Result<Reservation> {
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
        let reserve = async {
            let _turn = self.line.lock().await;
            self.serve(broken);
            let wanted = Wanted(&self.wanted);
            loop {
                let made = self.made.notified();
                tokio::pin!(made);
                made.as_mut().enable();
                if let Some(reservation) = self.try_reserve(bytes) {
                    return Some(reservation);
                }
                wanted.set(bytes);
                if self.exhausted.swap(false, SeqCst) {
                    return None;
                }
                self.pressure.notify_one();
                made.await;
            }
        };
        let reserved = self.patiently(reserve).await.flatten();
        reserved.ok_or_else(|| self.full(what, bytes))
    }

    /// Waits, after the disk itself was full, until the free or the evicted amount is enough for a
    /// file of `size` bytes, or nothing more can be evicted. `free` reports what the disk has left.
    /// Returns the usage before the eviction; `None` if nothing was evicted.
    pub(crate) async fn make_on_disk(
        &self,
        size: u64,
        broken: &Arc<BrokenLeases>,
        free: impl Fn() -> Option<Free>,
    ) -> Option<Usage> {
        let _waiting = Waiting::new(&self.waiting);
        let make = async {
            let _turn = self.line.lock().await;
            // Those who waited before may have found out meanwhile.
            let before = self.usage(free(), false);
            if self.futile.holds(full::short_of(&before), &before) {
                return None;
            }
            self.serve(broken);
            let bytes = room_of(size.max(1));
            let _goal = Goal::set(self, bytes, lacking_files(before.free_files));
            loop {
                let made = self.made.notified();
                tokio::pin!(made);
                made.as_mut().enable();
                self.pressure.notify_one();
                made.await;
                let now = self.usage(free(), false);
                let evicted = now.evicted.count > before.evicted.count;
                let fits = now.free_on_disk.is_none_or(|free| free >= bytes);
                let enough = (fits || now.wanted_on_disk == Some(0)) && now.wanted_files == 0;
                if self.exhausted.swap(false, SeqCst) || (evicted && enough) {
                    return evicted.then_some(before);
                }
            }
        };
        self.patiently(make).await.flatten()
    }

    /// Makes an upload the one that eviction works for.
    fn serve(&self, broken: &Arc<BrokenLeases>) {
        self.exhausted.store(false, SeqCst);
        let mut served = self.served();
        served.number += 1;
        served.broken = Arc::clone(broken);
    }

    /// Awaits `work` for as long as eviction or the scan goes on; `None` after that.
    async fn patiently<W: Future>(&self, work: W) -> Option<W::Output> {
        tokio::pin!(work);
        let progress = || (self.evicted().bytes, self.unscanned.load(Relaxed));
        loop {
            let before = progress();
            if let Ok(done) = time::timeout(WAIT, &mut work).await {
                return Some(done);
            }
            if progress() == before {
                return None;
            }
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

/// A goal for eviction on the disk, withdrawn when this is dropped.
struct Goal<'a>(&'a Room);

impl<'a> Goal<'a> {
    /// Asks for this much more than was evicted so far.
    fn set(room: &'a Room, bytes: u64, files: u64) -> Self {
        let evicted = room.evicted();
        room.served().goal = Some(Removed {
            count: evicted.count.saturating_add(files),
            bytes: evicted.bytes.saturating_add(bytes),
        });
        Self(room)
    }
}

impl Drop for Goal<'_> {
    fn drop(&mut self) {
        self.0.served().goal = None;
    }
}

/// A published demand, withdrawn when this is dropped.
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
