//! Backoff of evictions that free nothing on the disk.

use std::{collections::HashMap, time::Duration};

use gorego_limits::LogLimit;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::Usage;

/// The first and the longest pause of eviction for a full disk.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_hours(1));

/// A resource of the file system that can run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Space.
    Bytes,
    /// Files, which some file systems limit in number.
    Files,
}

impl Resource {
    /// Returns whether a significant amount was evicted between two moments, and most of it did not become free.
    pub fn is_lost(self, before: &Usage, after: &Usage) -> bool {
        let lost = self.lost(before, after);
        lost.is_some_and(|lost| lost >= self.least())
    }

    /// Returns the amount evicted between two moments if most of it did not become free, else zero. `None` while
    /// uploads that are being written may have taken it.
    fn lost(self, before: &Usage, after: &Usage) -> Option<u64> {
        let evicted = self.evicted(after).saturating_sub(self.evicted(before));
        let missing = self.shared(before).saturating_sub(self.shared(after));
        let writing = match self {
            Self::Bytes => after.writing,
            Self::Files => 0,
        };
        let most = evicted - evicted / 4;
        if missing < most {
            return Some(0);
        }
        (missing.saturating_sub(writing) >= most).then_some(evicted)
    }

    /// Returns the least evicted amount that can be judged. Other programs may have taken as much as less.
    const fn least(self) -> u64 {
        match self {
            Self::Bytes => 64 * 1024,
            Self::Files => 16,
        }
    }

    /// Returns the evicted, the used and the free amount.
    const fn amounts(self, usage: &Usage) -> (u64, u64, Option<u64>) {
        match self {
            Self::Bytes => {
                // Reserved bytes leave the free space only once they are written.
                let used = usage.used.saturating_sub(usage.unwritten);
                (usage.evicted.bytes, used, usage.free_on_disk)
            }
            Self::Files => (usage.evicted.count, usage.files, usage.free_files),
        }
    }

    /// Returns the amount evicted since the store's start.
    pub const fn evicted(self, usage: &Usage) -> u64 {
        self.amounts(usage).0
    }

    /// Returns the sum of the free amount and the amount that the store uses.
    pub fn shared(self, usage: &Usage) -> u64 {
        self.free(usage).saturating_add(self.amounts(usage).1)
    }

    /// Returns the free amount, or the largest number if the file system does not report it.
    pub fn free(self, usage: &Usage) -> u64 {
        self.amounts(usage).2.unwrap_or(u64::MAX)
    }

    /// Returns the rise of the free amount that ends a pause. Smaller changes are usual.
    fn significant(self, usage: &Usage) -> u64 {
        match self {
            Self::Bytes => (usage.limit / 64).min(64 << 20),
            Self::Files => usage.files / 64,
        }
    }
}

/// Pauses eviction after evicted space did not become free: other programs use it, have reserved it, or have
/// links to the same files. More evictions would lose the whole cache and free nothing.
#[derive(Debug, Default)]
pub struct EvictionBackoff {
    pauses: Mutex<HashMap<Resource, Pause>>,
    /// The sums of successive evictions that freed nothing, each too small to be judged alone, and the times of the
    /// last.
    lost: Mutex<HashMap<Resource, (u64, Instant)>>,
    logged: LogLimit,
}

#[derive(Debug)]
struct Pause {
    end: Instant,
    length: Duration,
    /// The result of [`Resource::shared`] at the start of the pause. The store's own deletions do not change it.
    shared: u64,
}

impl EvictionBackoff {
    /// Whether eviction for the resource is paused. A pause ends early when the free amount rises.
    pub fn is_paused(&self, resource: Resource, usage: &Usage) -> bool {
        let mut pauses = self.pauses.lock();
        pauses.get_mut(&resource).is_some_and(|pause| {
            let now = Instant::now();
            let before = pause.shared.saturating_add(resource.significant(usage));
            if resource.shared(usage) > before {
                // The pause does not resume if the freed amount is used up again.
                pause.end = pause.end.min(now);
            }
            now < pause.end
        })
    }

    /// Judges an eviction for one write, together with others a short time ago that were too small to be judged alone.
    pub fn judge(&self, resource: Resource, before: &Usage, now: &Usage) {
        let Some(lost) = resource.lost(before, now) else {
            return;
        };
        let mut sums = self.lost.lock();
        let recent = sums
            .remove(&resource)
            .filter(|(_, at)| at.elapsed() < PAUSE.0);
        let sum = recent.map_or(0, |(sum, _)| sum).saturating_add(lost);
        if lost > 0 && sum < resource.least() {
            sums.insert(resource, (sum, Instant::now()));
        } else if lost > 0 {
            drop(sums);
            self.record(resource, now);
        }
    }

    /// Records an eviction that did not free the resource, and starts a pause. A pause soon after another is
    /// twice as long.
    pub fn record(&self, resource: Resource, usage: &Usage) {
        if self.is_paused(resource, usage) {
            return;
        }
        let now = Instant::now();
        let mut pauses = self.pauses.lock();
        let last = pauses.get(&resource);
        let again = last.filter(|last| now < last.end + last.length);
        let length = again.map_or(PAUSE.0, |last| (last.length * 2).min(PAUSE.1));
        let pause = Pause {
            end: now + length,
            length,
            shared: resource.shared(usage),
        };
        pauses.insert(resource, pause);
        drop(pauses);
        if self.logged.is_due() {
            tracing::warn!(
                free = usage.free_on_disk,
                free_files = usage.free_files,
                used = usage.used,
                "the disk is full, and evicting blobs does not free it: other programs hold it, or links to \
                 the same files; remove some of their files"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EvictionTotal;

    fn usage(bytes: u64, files: u64) -> Usage {
        Usage {
            free_on_disk: Some(bytes),
            free_files: Some(files),
            ..Usage::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_and_end_when_the_free_amount_rises() {
        let backoff = EvictionBackoff::default();
        assert!(!backoff.is_paused(Resource::Bytes, &usage(0, 0)));
        for seconds in [5, 10, 20] {
            backoff.record(Resource::Bytes, &usage(7, 0));
            // A second record during a pause does not extend it.
            backoff.record(Resource::Bytes, &usage(7, 0));
            tokio::time::advance(Duration::from_secs(seconds - 1)).await;
            assert!(backoff.is_paused(Resource::Bytes, &usage(7, 99)));
            assert!(!backoff.is_paused(Resource::Files, &usage(7, 0)));
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(!backoff.is_paused(Resource::Bytes, &usage(7, 0)));
        }
        backoff.record(Resource::Files, &usage(0, 7));
        assert!(backoff.is_paused(Resource::Files, &usage(99, 7)));
        assert!(!backoff.is_paused(Resource::Files, &usage(0, 8)));
        assert!(
            !backoff.is_paused(Resource::Files, &usage(0, 7)),
            "the pause does not resume"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_long_after_another_has_the_first_length() {
        let backoff = EvictionBackoff::default();
        backoff.record(Resource::Bytes, &usage(7, 0));
        tokio::time::advance(Duration::from_secs(10)).await;
        backoff.record(Resource::Bytes, &usage(7, 0));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(!backoff.is_paused(Resource::Bytes, &usage(7, 0)));
    }

    #[tokio::test(start_paused = true)]
    async fn deletions_by_the_store_do_not_end_a_pause() {
        let own = |used, free| Usage {
            used,
            files: used,
            ..usage(free, free)
        };
        let backoff = EvictionBackoff::default();
        for resource in [Resource::Bytes, Resource::Files] {
            backoff.record(resource, &own(100, 0));
            assert!(backoff.is_paused(resource, &own(90, 10)));
            assert!(!backoff.is_paused(resource, &own(100, 10)));
        }
    }

    #[test]
    fn an_amount_is_lost_if_most_of_it_did_not_become_free() {
        let after = |evicted: u64, used: u64, free: u64| Usage {
            used: used << 12,
            files: used,
            evicted: EvictionTotal {
                count: evicted,
                bytes: evicted << 12,
            },
            ..usage(free << 12, free)
        };
        for resource in [Resource::Bytes, Resource::Files] {
            let is_lost = |evicted, used, free| {
                resource.is_lost(&after(0, 100, 0), &after(evicted, used, free))
            };
            assert!(is_lost(16, 84, 0));
            assert!(!is_lost(16, 84, 16));
            assert!(is_lost(20, 80, 5));
            assert!(!is_lost(20, 80, 6));
            assert!(!is_lost(20, 100, 0), "the store used it again");
            assert!(!is_lost(15, 85, 0), "so little is not significant");
        }
        let unreported = Usage {
            free_files: None,
            ..after(16, 84, 0)
        };
        assert!(!Resource::Files.is_lost(&Usage::default(), &unreported));
    }

    #[tokio::test(start_paused = true)]
    async fn small_evictions_are_judged_together() {
        let backoff = EvictionBackoff::default();
        let after = |evicted: u64, free| Usage {
            used: 1000 - evicted,
            evicted: EvictionTotal {
                count: evicted,
                bytes: evicted << 12,
            },
            files: 1000 - evicted,
            ..usage(u64::MAX / 2, free)
        };
        let judge = |from, to, free| {
            backoff.judge(Resource::Files, &after(from, 0), &after(to, free));
            backoff.is_paused(Resource::Files, &after(to, free))
        };
        assert!(!judge(0, 10, 10), "most became free");
        assert!(!judge(10, 20, 20), "most became free");
        assert!(!judge(20, 30, 0));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(!judge(30, 40, 0), "the other one is long ago");
        assert!(judge(40, 50, 0));
    }

    #[test]
    fn space_that_uploads_take_as_they_write_is_not_lost() {
        let usage = |evicted, unwritten, writing| Usage {
            used: (1 << 20) - evicted,
            unwritten,
            writing,
            evicted: EvictionTotal {
                count: 1,
                bytes: evicted,
            },
            ..usage(0, 0)
        };
        let is_lost = |unwritten, writing| {
            let before = usage(0, 1 << 18, 0);
            Resource::Bytes.is_lost(&before, &usage(1 << 16, unwritten, writing))
        };
        assert!(is_lost(1 << 18, 0));
        assert!(!is_lost((1 << 18) - (1 << 16), 0));
        assert!(!is_lost(1 << 18, 1 << 16));
    }
}
