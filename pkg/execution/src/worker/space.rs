//! The wait for disk space before actions start.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::sleep;

/// The time between two looks at the disk.
const PERIOD: Duration = Duration::from_millis(500);
/// The most looks. The janitor and the deletion of directories make space in less time, if they can.
const LOOKS: u32 = 60;
/// The most of a file system that is to be free: one in this many bytes.
const SHARE: u64 = 20;
/// The free space, in bytes, below which an action waits for the deletion of earlier actions' directories. On a small
/// file system, one part in [`SHARE`] of it is the bound.
const LITTLE: u64 = 1 << 30;

/// The space on a file system, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Space {
    pub(crate) free: u64,
    pub(crate) total: u64,
}

impl Space {
    /// Returns whether an action may need the space of directories that are about to be deleted.
    pub(super) fn is_little(self) -> bool {
        self.free < LITTLE.min(self.total / SHARE)
    }
}

/// The shortage of disk space, during which no action starts.
///
/// If no space is made within half a minute, other programs have filled the disk. Actions then start nevertheless:
/// small ones succeed, others find the disk full. They wait again after there was space.
#[derive(Debug)]
pub(super) struct Shortage {
    min_free: u64,
    /// Set if waiting was in vain.
    is_permanent: AtomicBool,
}

impl Shortage {
    pub(super) const fn new(min_free: u64) -> Self {
        Self {
            min_free,
            is_permanent: AtomicBool::new(false),
        }
    }

    /// Waits until there is space, or no hope of it.
    pub(super) async fn passed(&self, space: impl Fn() -> Space + Send) {
        for look in 0..LOOKS {
            let Space { free, total } = space();
            if free >= self.min_free.min(total / SHARE) {
                self.is_permanent.store(false, Relaxed);
                return;
            }
            if self.is_permanent.load(Relaxed) {
                return;
            }
            if look == 0 {
                let min_free = self.min_free;
                tracing::warn!(
                    free,
                    min_free,
                    "no action starts until there is space on the disk (local_cache.min_free)"
                );
            }
            sleep(PERIOD).await;
        }
        self.is_permanent.store(true, Relaxed);
        tracing::warn!("actions start although there is little space on the disk");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use tokio::time::Instant;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The time that an action waits, while `free` falls or rises.
    async fn wait(shortage: &Shortage, free: impl Fn() -> u64 + Send + Sync) -> Duration {
        let start = Instant::now();
        let total = 1000;
        let space = || Space {
            free: free(),
            total,
        };
        shortage.passed(space).await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn an_action_waits_until_there_is_space() {
        let shortage = Shortage::new(10);
        assert_eq!(wait(&shortage, || 10).await, Duration::ZERO);
        let free = AtomicU64::new(0);
        let waited = wait(&shortage, || free.fetch_add(1, Relaxed)).await;
        assert_eq!(waited, 5 * SECOND);
        // One in 20 bytes of a small file system is enough.
        assert_eq!(wait(&Shortage::new(100), || 50).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_disk_that_stays_full_actions_start_nevertheless() {
        let shortage = Shortage::new(10);
        assert_eq!(wait(&shortage, || 0).await, 30 * SECOND);
        assert_eq!(wait(&shortage, || 0).await, Duration::ZERO);
        assert_eq!(wait(&shortage, || 10).await, Duration::ZERO);
        assert_eq!(wait(&shortage, || 0).await, 30 * SECOND);
    }
}
