//! Eviction that frees nothing on the disk.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gorego_limits::LogLimit;
use tokio::time::Instant;

use crate::Usage;

/// The first and the longest pause of eviction for the disk's sake after it did not help.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_hours(1));

/// The least number of evicted files that tells anything: fewer may be gone to others by chance.
const MANY_FILES: u64 = 16;

/// A resource of the disk that can run short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Space.
    Bytes,
    /// Files, of which some file systems hold only so many.
    Files,
}

impl Resource {
    /// Whether most of what was evicted between two moments did not become free: it was lost to the
    /// store and to the disk.
    pub fn is_lost(self, before: &Usage, after: &Usage) -> bool {
        let evicted = self.evicted(after).saturating_sub(self.evicted(before));
        if self == Self::Files && evicted < MANY_FILES {
            return false;
        }
        let lost = self.shared(before).saturating_sub(self.shared(after));
        evicted > 0 && lost >= evicted - evicted / 4
    }

    /// Returns the amount that was evicted since the store's start.
    pub const fn evicted(self, usage: &Usage) -> u64 {
        match self {
            Self::Bytes => usage.evicted.bytes,
            Self::Files => usage.evicted.count,
        }
    }

    /// Returns the amount that is free or used by the store.
    pub fn shared(self, usage: &Usage) -> u64 {
        let used = match self {
            Self::Bytes => usage.used,
            Self::Files => usage.files,
        };
        self.free(usage).saturating_add(used)
    }

    /// Returns the free amount, the largest number if the file system does not report it.
    pub fn free(self, usage: &Usage) -> u64 {
        let free = match self {
            Self::Bytes => usage.free_on_disk,
            Self::Files => usage.free_files,
        };
        free.unwrap_or(u64::MAX)
    }

    /// Returns the rise of the free amount after which another attempt is worth it: others' files
    /// come and go.
    fn worth(self, usage: &Usage) -> u64 {
        match self {
            Self::Bytes => (usage.limit / 64).min(64 << 20),
            Self::Files => usage.files / 64,
        }
    }
}

/// Remembers that what was evicted did not become free on the disk: others use it, have reserved
/// it, or hold links to the same files. Evicting more would lose the whole cache and free nothing.
#[derive(Debug, Default)]
pub struct Futile {
    bytes: Mutex<Option<Pause>>,
    files: Mutex<Option<Pause>>,
    logged: LogLimit,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    end: Instant,
    length: Duration,
    /// The amount that was free or used by the store at its start. The store's own deletions do not
    /// change it.
    shared: u64,
    is_over: bool,
}

impl Futile {
    fn pause(&self, resource: Resource) -> MutexGuard<'_, Option<Pause>> {
        let pause = match resource {
            Resource::Bytes => &self.bytes,
            Resource::Files => &self.files,
        };
        pause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether eviction to free the resource is not worth an attempt yet.
    pub fn holds(&self, resource: Resource, usage: &Usage) -> bool {
        self.pause(resource).as_mut().is_some_and(|pause| {
            let enough = pause.shared.saturating_add(resource.worth(usage));
            // Also if what became free is used up again: eviction may help by now.
            pause.is_over |= Instant::now() >= pause.end || resource.shared(usage) > enough;
            !pause.is_over
        })
    }

    /// Records that eviction to free the resource did not help. A pause soon after another is twice
    /// as long.
    pub fn record(&self, resource: Resource, usage: &Usage) {
        if self.holds(resource, usage) {
            return;
        }
        let now = Instant::now();
        let mut pause = self.pause(resource);
        let again = pause.filter(|last| now < last.end + last.length);
        let length = again.map_or(PAUSE.0, |last| (last.length * 2).min(PAUSE.1));
        *pause = Some(Pause {
            end: now + length,
            length,
            shared: resource.shared(usage),
            is_over: false,
        });
        drop(pause);
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
    use crate::Removed;

    fn usage(bytes: u64, files: u64) -> Usage {
        Usage {
            free_on_disk: Some(bytes),
            free_files: Some(files),
            ..Usage::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_end_when_others_free_something() {
        let futile = Futile::default();
        assert!(!futile.holds(Resource::Bytes, &usage(0, 0)));
        for seconds in [5, 10, 20] {
            futile.record(Resource::Bytes, &usage(7, 0));
            // The same finding of another attempt does not count twice.
            futile.record(Resource::Bytes, &usage(7, 0));
            tokio::time::advance(Duration::from_secs(seconds - 1)).await;
            assert!(futile.holds(Resource::Bytes, &usage(7, 99)));
            assert!(!futile.holds(Resource::Files, &usage(7, 0)));
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(!futile.holds(Resource::Bytes, &usage(7, 0)));
        }
        futile.record(Resource::Files, &usage(0, 7));
        assert!(futile.holds(Resource::Files, &usage(99, 7)));
        assert!(!futile.holds(Resource::Files, &usage(0, 8)));
        assert!(!futile.holds(Resource::Files, &usage(0, 7)), "it has ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_long_after_another_is_short_again() {
        let futile = Futile::default();
        futile.record(Resource::Bytes, &usage(7, 0));
        tokio::time::advance(Duration::from_secs(10)).await;
        futile.record(Resource::Bytes, &usage(7, 0));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(!futile.holds(Resource::Bytes, &usage(7, 0)));
    }

    #[tokio::test(start_paused = true)]
    async fn own_deletions_do_not_end_a_pause() {
        let own = |used, free| Usage {
            used,
            files: used,
            ..usage(free, free)
        };
        let futile = Futile::default();
        for resource in [Resource::Bytes, Resource::Files] {
            futile.record(resource, &own(100, 0));
            assert!(futile.holds(resource, &own(90, 10)));
            assert!(!futile.holds(resource, &own(100, 10)));
        }
    }

    #[test]
    fn eviction_is_futile_when_most_of_it_did_not_become_free() {
        let after = |evicted, used, free| Usage {
            used,
            files: used,
            evicted: Removed {
                count: evicted,
                bytes: evicted,
            },
            ..usage(free, free)
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
            assert!(!is_lost(0, 90, 0), "others took it");
        }
        let unreported = Usage {
            free_files: None,
            ..after(16, 84, 0)
        };
        assert!(
            !Resource::Files.is_lost(&after(0, 100, 0), &after(15, 85, 0)),
            "other uploads may have taken so few"
        );
        assert!(!Resource::Files.is_lost(&Usage::default(), &unreported));
    }
}
