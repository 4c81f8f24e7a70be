//! The shortage of space and files on the file system, which other programs fill, too.

use gorego_storage::{Resource, Usage};

use crate::{Marks, amount::Amount};

/// Eviction for files starts when fewer are free than the lesser of one in 20 that the store could have
/// and 32 Ki.
const FILES: (u64, u64) = (20, 32 * 1024);
/// Eviction for files continues until this many times as many are free.
const FILES_LOW: u64 = 3;

/// The shortage at the beginning of a pass. It is not measured again during the pass: while other
/// programs fill the disk, that would evict the whole cache.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shortage {
    /// The amount that should be free.
    level: Amount,
    /// The part of `level` that was not free.
    pub(crate) lacking: Amount,
    /// The usage at that time.
    before: Usage,
}

impl Shortage {
    pub(crate) fn of(usage: &Usage, marks: &Marks) -> Self {
        let free = Amount::of(|resource| resource.free(usage));
        let shared = Amount::of(|resource| resource.shared(usage));
        // On a disk filled by others, the store keeps half of the free space and its own: evicting
        // everything would not reach `min_free` either.
        let bytes = marks.min_free.min(shared.bytes / 2);
        let (share, most) = FILES;
        let files = (shared.files / share).min(most);
        let wanted = if free.files < files { FILES_LOW } else { 0 };
        let level = Amount {
            bytes,
            files: files * wanted,
        };
        Self {
            level,
            lacking: level.minus(free),
            before: *usage,
        }
    }

    /// Keeps only the lacking amounts of resources that satisfy the condition.
    pub(crate) fn only(mut self, keep: impl Fn(Resource) -> bool) -> Self {
        let lacking = self.lacking;
        self.lacking = Amount::of(|resource| lacking.get(resource) * u64::from(keep(resource)));
        self
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

    /// Whether the resource was lacking, and most of the evicted amount did not become free. Amounts
    /// that other programs free or take meanwhile count, too, and may end a pass early.
    pub(crate) fn is_futile(&self, resource: Resource, usage: &Usage) -> bool {
        self.lacking.get(resource) > 0 && resource.is_lost(&self.before, usage)
    }

    fn evicted(&self, resource: Resource, usage: &Usage) -> u64 {
        let before = resource.evicted(&self.before);
        resource.evicted(usage).saturating_sub(before)
    }
}

#[cfg(test)]
mod tests {
    use gorego_storage::EvictionTotal;

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
        let evicted = EvictionTotal {
            count: bytes >> 12,
            bytes,
        };
        Usage { evicted, ..usage }
    }

    #[test]
    fn a_shortage_does_not_grow_while_others_fill_the_disk() {
        let shortage = Shortage::of(&usage(1 << 21, 1 << 19), &MARKS);
        assert_eq!(shortage.lacking.bytes, 1 << 19);
        // Others took as much as eviction freed.
        let taken = usage((1 << 21) - (1 << 18), (1 << 19) + (1 << 17));
        assert_eq!(shortage.left(&after(1 << 18, taken)).bytes, 1 << 18);
        assert!(shortage.left(&after(1 << 19, taken)).is_zero());
        // Space that others freed counts.
        assert!(shortage.left(&after(1, usage(1 << 20, 1 << 20))).is_zero());
    }

    #[test]
    fn eviction_that_frees_nothing_is_futile() {
        let shortage = Shortage::of(&usage(1 << 21, 0), &MARKS);
        assert_eq!(shortage.lacking.bytes, 1 << 20);
        let lost = |bytes: u64| after(bytes, usage((1 << 21) - bytes, 0));
        let is_futile = |usage: &Usage| shortage.is_futile(Resource::Bytes, usage);
        assert!(!shortage.left(&lost(1 << 15)).is_zero());
        assert!(!is_futile(&lost(1 << 15)));
        assert!(shortage.left(&lost(1 << 16)).is_zero());
        assert!(is_futile(&lost(1 << 16)));
        // Uploads that use the freed space do not make eviction futile.
        assert!(!is_futile(&after(1 << 16, usage(1 << 21, 0))));
    }

    #[test]
    fn a_shortage_of_files_begins_while_some_are_free() {
        let usage = |files, free| Usage {
            files,
            free_files: Some(free),
            ..usage(0, u64::MAX / 2)
        };
        let lacking = |files, free| Shortage::of(&usage(files, free), &MARKS).lacking;
        assert!(lacking(1900, 100).is_zero());
        assert_eq!(lacking(1901, 99).files, 300 - 99);
        assert_eq!(lacking(1000, 0).files, 150);
        assert_eq!(lacking(1 << 40, 0).files, 3 << 15);
        let unknown = Usage {
            free_files: None,
            ..usage(1000, 0)
        };
        assert!(Shortage::of(&unknown, &MARKS).lacking.is_zero());
        let shortage = Shortage::of(&usage(1000, 0), &MARKS);
        let is_futile = |free| {
            let after = after(20 << 12, usage(980, free));
            shortage.is_futile(Resource::Files, &after)
        };
        assert!(is_futile(0) && !is_futile(20));
        let held = shortage.only(|resource| resource != Resource::Files);
        assert!(held.lacking.is_zero());
    }
}
