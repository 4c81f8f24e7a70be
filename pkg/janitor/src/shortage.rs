//! The shortage of the file system itself, which others fill too.

use gorego_storage::Usage;

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
    /// The amount that was free or used by the store.
    shared: Amount,
}

impl Shortage {
    pub(crate) fn of(usage: &Usage, marks: &Marks) -> Self {
        let free = free(usage);
        let shared = free.plus(taken(usage));
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
            shared,
        }
    }

    /// Returns the amount that was lacking.
    pub(crate) const fn lacking(&self) -> Amount {
        self.lacking
    }

    /// Returns the amount still to be evicted after `evicted`.
    pub(crate) fn left(&self, usage: &Usage, evicted: Amount) -> Amount {
        let left = self
            .level
            .minus(free(usage))
            .min(self.lacking.minus(evicted));
        let futile = self.futile(usage, evicted);
        Amount {
            bytes: if futile.0 { 0 } else { left.bytes },
            files: if futile.1 { 0 } else { left.files },
        }
    }

    /// Whether most of the evicted amount did not become free.
    pub(crate) fn is_futile(&self, usage: &Usage, evicted: Amount) -> bool {
        let (bytes, files) = self.futile(usage, evicted);
        (self.lacking.bytes > 0 && bytes) || (self.lacking.files > 0 && files)
    }

    fn futile(&self, usage: &Usage, evicted: Amount) -> (bool, bool) {
        // What others free or take meanwhile counts as well, and may end a pass early.
        let lost = self.shared.minus(free(usage).plus(taken(usage)));
        let futile =
            |evicted: u64, lost: u64, probe: u64| evicted >= probe && lost >= evicted / 4 * 3;
        (
            futile(evicted.bytes, lost.bytes, PROBE.bytes),
            futile(evicted.files, lost.files, PROBE.files),
        )
    }
}

/// Returns the free amount of the file system, as far as it reports it.
fn free(usage: &Usage) -> Amount {
    Amount {
        bytes: usage.free_on_disk.unwrap_or(u64::MAX),
        files: usage.free_files.unwrap_or(u64::MAX),
    }
}

const fn taken(usage: &Usage) -> Amount {
    Amount {
        bytes: usage.used,
        files: usage.files,
    }
}

#[cfg(test)]
mod tests {
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

    const fn evicted(bytes: u64) -> Amount {
        Amount {
            bytes,
            files: bytes >> 12,
        }
    }

    #[test]
    fn the_shortage_is_that_of_the_beginning() {
        let shortage = Shortage::of(&usage(1 << 21, 1 << 19), &MARKS);
        assert_eq!(shortage.lacking().bytes, 1 << 19);
        // Others took as much as eviction freed.
        let after = usage((1 << 21) - (1 << 18), (1 << 19) + (1 << 17));
        assert_eq!(shortage.left(&after, evicted(1 << 18)).bytes, 1 << 18);
        assert!(shortage.left(&after, evicted(1 << 19)).is_zero());
        // It was met, whoever did it.
        assert!(
            shortage
                .left(&usage(1 << 20, 1 << 20), evicted(1))
                .is_zero()
        );
    }

    #[test]
    fn eviction_ends_when_it_does_not_free_anything() {
        let shortage = Shortage::of(&usage(1 << 21, 0), &MARKS);
        assert_eq!(shortage.lacking().bytes, 1 << 20);
        let after = |bytes: u64| usage((1 << 21) - bytes, 0);
        let small = PROBE.bytes / 2;
        assert!(!shortage.left(&after(small), evicted(small)).is_zero());
        assert!(!shortage.is_futile(&after(small), evicted(small)));
        assert!(
            shortage
                .left(&after(PROBE.bytes), evicted(PROBE.bytes))
                .is_zero()
        );
        assert!(shortage.is_futile(&after(PROBE.bytes), evicted(PROBE.bytes)));
        // Uploads that take what eviction frees are no reason to end it.
        let shared = usage(1 << 21, 0);
        assert!(!shortage.is_futile(&shared, evicted(PROBE.bytes)));
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
        let evicted = |files| Amount { bytes: 0, files };
        assert!(shortage.is_futile(&usage(980, 0), evicted(20)));
        assert!(!shortage.is_futile(&usage(980, 20), evicted(20)));
    }
}
