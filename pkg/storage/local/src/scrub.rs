//! Scrubbing: every file is hashed periodically, since disks lose data without an error.

use std::{sync::Arc, time::Duration};

use super::disk::{Disk, now_ms};
use crate::index::{SHARDS, room_of};

/// The longest pause, after which a changed store is noticed.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);
/// The shortest pause between two files, which bounds the load.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);

/// Hashes the files one by one, evenly over `period`, until the store is closed.
pub(super) async fn run(disk: Arc<Disk>, period: Duration) {
    // Any first part of the index, so that a store that is often restarted reaches all parts.
    let first = usize::try_from(now_ms()).unwrap_or(0) % SHARDS;
    let mut part = first;
    loop {
        if part == first {
            disk.counters.scrub.lock().pass_start = Duration::from_millis(now_ms());
        }
        let files = disk
            .index
            .pick(part, |entry| Some((entry.key(), entry.size())));
        for (key, size) in files {
            if !sleep(&disk, pause(period, room_of(size), disk.index.bytes())).await {
                return;
            }
            if let Err(error) = disk.run(move |disk| disk.check(&key, size)).await {
                tracing::warn!(%error, "failed to verify a file");
                continue;
            }
            let mut scrub = disk.counters.scrub.lock();
            scrub.files += 1;
            scrub.bytes += size;
        }
        // Without files: new ones are not due before the period has passed.
        let is_empty = disk.index.bytes() == 0;
        if is_empty && !sleep(&disk, pause(period, 1, 1)).await {
            return;
        }
        part = (part + 1) % SHARDS;
    }
}

/// Pauses; `false` if the store was closed meanwhile.
async fn sleep(disk: &Disk, pause: Duration) -> bool {
    let closed = disk.cancel.cancelled();
    tokio::time::timeout(pause, closed).await.is_err()
}

/// Returns the pause before a file of this room, where all files take `total`.
fn pause(period: Duration, room: u64, total: u64) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "a share of some days")]
    let share = room as f64 / total.max(1) as f64;
    Duration::try_from_secs_f64(period.as_secs_f64() * share.min(1.0))
        .unwrap_or(LONGEST_PAUSE)
        .clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_share_the_period_by_their_size() {
        let period = Duration::from_secs(1000);
        assert_eq!(pause(period, 4096, 40_960), Duration::from_secs(100));
        assert_eq!(pause(period, 0, 0), SHORTEST_PAUSE);
        assert_eq!(pause(period, 8192, 4096), period);
        assert_eq!(pause(Duration::MAX, 4096, 4096), LONGEST_PAUSE);
    }
}
