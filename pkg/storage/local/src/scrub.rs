//! Hashing everything now and then: disks forget without saying so.

use std::{sync::Arc, time::Duration};

use super::disk::{Disk, blocking};
use crate::index::{Index, room_of};
use gorego_storage::EntryId;

/// The longest pause before a look at whether the store has changed.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);
/// The shortest pause between two files, so that no period makes this a load.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);

/// Hashes one file after the other, so evenly that all of them take `period`; until the store is
/// closed. Starts where `seed` says, since a store that is often restarted would otherwise
/// never see the end of its index.
pub(super) async fn run(disk: Arc<Disk>, period: Duration, seed: u64) {
    let mut at = Index::somewhere(seed);
    loop {
        let next = disk.index.first_from(at);
        let size = next.map_or(0, |(_, entry)| entry.size());
        let pause = match disk.index.bytes() {
            // There is nothing to look at: what comes is not due before the period has passed.
            0 => pause(period, 1, 1),
            total => pause(period, room_of(size), total),
        };
        tokio::select! {
            () = disk.cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        at = match next {
            None => EntryId(0),
            Some((id, entry)) => {
                let (worker, key) = (Arc::clone(&disk), entry.key());
                if let Err(error) = blocking(move || worker.check(&key, size)).await {
                    tracing::warn!(%error, "could not check a file");
                }
                EntryId(id.0.saturating_add(1))
            }
        };
    }
}

/// How long to wait before a file of this room, where all files take `total`.
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
