//! The shortage of the file system itself, which others fill too.

use gorego_storage::{Resource, Usage};

use crate::{Amount, Marks};

/// Eviction for the sake of files starts when less than this share of those that the store could have is
/// free, and at most so many.
const FILES: (u64, u64) = (20, 32 * 1024);
/// And it goes on until this many times as many are free.
const FILES_LOW: u64 = 3;
/// The amount to evict before it can be judged whether eviction helps.
const PROBE: Amount = Amount {
    bytes: 64 * 1024,
    files: 16,
};

/// The shortage at the beginning of a pass. It is not measured anew while others fill the disk: that
/// would be answered with the whole cache.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shortage {
    /// The amount that should be free.
    level: Amount,
    /// The part of `level` that was not free.
    lacking: Amount,
    /// The usage at that time.
    before: Usage,
}

impl Shortage {
    pub(crate) fn of(usage: &Usage, marks: &Marks) -> Self {
        let free = Amount::of(|resource| resource.free(usage));
        let shared = Amount::of(|resource| resource.shared(usage));
        // Where others have filled it, the store keeps half of what is left for the two of them:
        // giving up everything would not free what was asked for either.
        let bytes = marks.min_free.min(shared.bytes / 2);
        let (share, most) = FILES;
        let files = (shared.files / share).min(most);
        let level = Amount {
            bytes,
            files: if free.files < files {
                files * FILES_LOW
            } else {
                0
            },
        };
        Self {
            level,
            lacking: level.minus(free),
            before: *usage,
        }
    }

    /// Keeps of the lacking amounts those of the resources that satisfy the condition.
    pub(crate) fn only(mut self, keep: impl Fn(Resource) -> bool) -> Self {
        let lacking = self.lacking;
        self.lacking = Amount::of(|resource| {
            if keep(resource) {
                lacking.get(resource)
            } else {
                0
            }
        });
        self
    }

    /// Returns the amount that was lacking.
    pub(crate) const fn lacking(&self) -> Amount {
        self.lacking
    }

    /// Returns the amount still to be evicted.
    pub(crate) fn left(&self, usage: &Usage) -> Amount {
        Amount::of(|resource| {
            if self.is_futile(resource, usage) {
                return 0;
            }
            let level = self.level.get(resource);
            let missing = level.saturating_sub(resource.free(usage));
            let lacking = self.lacking.get(resource);
            missing.min(lacking.saturating_sub(self.evicted(resource, usage)))
        })
    }

    /// Whether the resource was lacking, and most of what was evicted of it did not become free.
    /// Amounts that others free or take meanwhile count as well, and may end a pass early.
    pub(crate) fn is_futile(&self, resource: Resource, usage: &Usage) -> bool {
        self.lacking.get(resource) > 0
            && self.evicted(resource, usage) >= PROBE.get(resource)
            && resource.is_lost(&self.before, usage)
    }

    fn evicted(&self, resource: Resource, usage: &Usage) -> u64 {
        let before = resource.evicted(&self.before);
        resource.evicted(usage).saturating_sub(before)
    }
}

#[cfg(test)]
mod tests {
    use gorego_storage::Removed;

    use super::*;

    const MARKS: Marks = Marks {
        high: 0.95,
        low: 0.85,
        min_free: 1 << 20,
    };

    fn usage(used: u64, free: u64) -> Usage {
        Usage {
            used,
            limit: 1 << 40,
            free_on_disk: Some(free),
            ..Usage::default()
        }
    }

    fn after(bytes: u64, usage: Usage) -> Usage {
        let evicted = Removed {
            count: bytes >> 12,
            bytes,
        };
        Usage { evicted, ..usage }
    }

    #[test]
    fn the_shortage_is_that_of_the_beginning() {
        let shortage = Shortage::of(&usage(1 << 21, 1 << 19), &MARKS);
        assert_eq!(shortage.lacking().bytes, 1 << 19);
        // Others took as much as eviction freed.
        let taken = usage((1 << 21) - (1 << 18), (1 << 19) + (1 << 17));
        assert_eq!(shortage.left(&after(1 << 18, taken)).bytes, 1 << 18);
        assert!(shortage.left(&after(1 << 19, taken)).is_zero());
        // It was met, whoever did it.
        assert!(shortage.left(&after(1, usage(1 << 20, 1 << 20))).is_zero());
    }

    #[test]
    fn eviction_ends_when_it_does_not_free_anything() {
        let shortage = Shortage::of(&usage(1 << 21, 0), &MARKS);
        assert_eq!(shortage.lacking().bytes, 1 << 20);
        let lost = |bytes: u64| after(bytes, usage((1 << 21) - bytes, 0));
        let is_futile = |usage: &Usage| shortage.is_futile(Resource::Bytes, usage);
        let small = lost(PROBE.bytes / 2);
        assert!(!shortage.left(&small).is_zero());
        assert!(!is_futile(&small));
        assert!(shortage.left(&lost(PROBE.bytes)).is_zero());
        assert!(is_futile(&lost(PROBE.bytes)));
        // Uploads that take what eviction frees are no reason to end it.
        assert!(!is_futile(&after(PROBE.bytes, usage(1 << 21, 0))));
    }

    #[test]
    fn files_run_short_before_there_are_none() {
        let usage = |files, free| Usage {
            files,
            free_files: Some(free),
            ..usage(0, u64::MAX / 2)
        };
        let lacking = |files, free| Shortage::of(&usage(files, free), &MARKS).lacking();
        assert!(lacking(1900, 100).is_zero());
        assert_eq!(lacking(1901, 99).files, 300 - 99);
        assert_eq!(lacking(1000, 0).files, 150);
        assert_eq!(lacking(1 << 40, 0).files, 3 << 15);
        let unknown = Usage {
            free_files: None,
            ..usage(1000, 0)
        };
        assert!(Shortage::of(&unknown, &MARKS).lacking().is_zero());
        let shortage = Shortage::of(&usage(1000, 0), &MARKS);
        let is_futile = |free| {
            let after = after(20 << 12, usage(980, free));
            shortage.is_futile(Resource::Files, &after)
        };
        assert!(is_futile(0) && !is_futile(20));
        let held = shortage.only(|resource| resource != Resource::Files);
        assert!(held.lacking().is_zero());
    }
}
