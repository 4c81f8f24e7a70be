//! Computes from the usage of a store how much eviction has to free.

use gorego_storage::Usage;

use crate::amount::Amount;

/// The marks at which eviction starts and stops.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Marks {
    /// The share of the limit above which eviction starts.
    pub high: f64,
    /// The share of the limit down to which eviction continues.
    pub low: f64,
    /// Free bytes of the file system below which eviction also starts.
    pub min_free: u64,
}

impl Marks {
    /// Returns the usage above which a store with this limit evicts, in bytes.
    pub fn high_bytes(&self, limit: u64) -> u64 {
        share(limit, self.high)
    }

    /// Returns the usage down to which eviction continues, in bytes.
    pub fn low_bytes(&self, limit: u64) -> u64 {
        share(limit, self.low)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a share of a disk is never negative, and may be some bytes off"
)]
fn share(limit: u64, share: f64) -> u64 {
    (limit as f64 * share.clamp(0.0, 1.0)) as u64
}

/// The amounts to be freed, and the leases that may be broken for that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Demand {
    /// The amount down to the low mark. Leases are not broken for it.
    pub(crate) soft: Amount,
    /// The amount that uploads wait for. Some leases are broken if nothing else can be evicted.
    pub(crate) hard: Amount,
    /// The most bytes that all leases may hold. Beyond that the oldest leased entries count as unleased.
    pub(crate) leases_allowed: u64,
    /// The most leased bytes that may be evicted for the waiting upload.
    pub(crate) leases_breakable: u64,
}

impl Demand {
    /// Returns the demand on an idle janitor: zero below the high mark, unless the file system has a
    /// shortage or uploads wait.
    pub(crate) fn of(usage: &Usage, marks: &Marks, on_disk: Amount) -> Self {
        let mut demand = Self::down_to_low(usage, marks, on_disk);
        let full = usage.used.saturating_add(usage.wanted) > marks.high_bytes(usage.limit);
        if !full && on_disk.is_zero() {
            demand.soft = Amount::default();
        }
        demand
    }

    /// Returns the demand on a janitor that has started to evict and continues down to the low mark.
    /// `on_disk` is the shortage of the file system.
    pub(crate) fn down_to_low(usage: &Usage, marks: &Marks, on_disk: Amount) -> Self {
        let after = usage.used.saturating_add(usage.wanted);
        let beyond_low = after.saturating_sub(marks.low_bytes(usage.limit));
        let tenth = usage.capacity() / 10;
        let mut demand = Self {
            soft: Amount::of_bytes(beyond_low).max(on_disk),
            hard: Amount {
                bytes: usage.wanted.max(usage.wanted_on_disk.unwrap_or(0)),
                files: usage.wanted_files,
            },
            leases_allowed: leases_allowed(usage, marks),
            leases_breakable: tenth.saturating_sub(usage.leases_broken),
        };
        // The oldest entries are not known until the scan has ended.
        if usage.scanning {
            demand.soft = Amount::default();
            demand.leases_breakable = 0;
        }
        demand
    }

    /// Returns the larger of the soft and the hard amount.
    pub(crate) fn total(&self) -> Amount {
        self.soft.max(self.hard)
    }
}

/// Returns four fifths of the capacity, but less than the low mark, so that entries without a lease
/// always have some room.
fn leases_allowed(usage: &Usage, marks: &Marks) -> u64 {
    let (capacity, low) = (usage.capacity(), marks.low_bytes(usage.limit));
    let allowed = (capacity - capacity / 5).min(low - low / 17);
    allowed.saturating_sub(usage.folders)
}

#[cfg(test)]
mod tests {
    use gorego_storage::EvictionTotal;
    use proptest::prelude::*;

    use super::*;
    use crate::shortage::Shortage;

    const MARKS: Marks = Marks {
        high: 0.95,
        low: 0.85,
        min_free: 100,
    };

    fn usage(used: u64) -> Usage {
        Usage {
            used,
            limit: 1000,
            ..Usage::default()
        }
    }

    fn soft(usage: &Usage) -> u64 {
        let lacking = Shortage::of(usage, &MARKS).lacking;
        Demand::of(usage, &MARKS, lacking).total().bytes
    }

    #[test]
    fn eviction_starts_above_the_high_mark_and_goes_down_to_the_low_one() {
        let started = |used| Demand::down_to_low(&usage(used), &MARKS, Amount::default());
        assert_eq!(soft(&usage(950)), 0);
        assert_eq!(soft(&usage(951)), 101);
        assert_eq!(started(900).total().bytes, 50);
        assert_eq!(started(850).total().bytes, 0);
    }

    #[test]
    fn a_shortage_of_disk_space_starts_eviction() {
        let on_disk = |used, free| Usage {
            free_on_disk: Some(free),
            ..usage(used)
        };
        assert_eq!(soft(&on_disk(500, 100)), 0);
        assert_eq!(soft(&on_disk(500, 99)), 1);
        assert_eq!(soft(&on_disk(500, 0)), 100);
        // The larger demand counts.
        assert_eq!(soft(&on_disk(900, 99)), 50);
        assert_eq!(soft(&on_disk(900, 0)), 100);
        // On a disk filled by others, the store keeps half of the rest.
        assert_eq!(soft(&on_disk(20, 50)), 0);
        assert_eq!(soft(&on_disk(60, 40)), 10);
        assert_eq!(soft(&on_disk(20, 0)), 10);
    }

    #[test]
    fn leases_leave_room_for_unleased_entries() {
        let allowed = |low, folders, free_on_disk| {
            let marks = Marks { low, ..MARKS };
            let usage = Usage {
                folders,
                free_on_disk,
                ..usage(950)
            };
            Demand::of(&usage, &marks, Amount::default()).leases_allowed
        };
        assert_eq!(allowed(0.9, 0, None), 800);
        assert_eq!(allowed(0.5, 0, None), 471);
        assert_eq!(allowed(0.9, 300, None), 500);
        assert_eq!(allowed(0.9, 0, Some(0)), 760);
    }

    #[test]
    fn waiting_uploads_are_a_hard_demand() {
        let waiting = |used, wanted| {
            let usage = Usage {
                wanted,
                ..usage(used)
            };
            let demand = Demand::of(&usage, &MARKS, Amount::default());
            (demand.hard.bytes, demand.soft.bytes)
        };
        assert_eq!(waiting(500, 0), (0, 0));
        assert_eq!(waiting(500, 100), (100, 0));
        assert_eq!(waiting(960, 0), (0, 110));
        assert_eq!(waiting(960, 50), (50, 160));
        let on_disk = Usage {
            wanted_on_disk: Some(70),
            wanted_files: 3,
            ..usage(500)
        };
        let hard = Demand::of(&on_disk, &MARKS, Amount::default()).hard;
        let expected = Amount {
            bytes: 70,
            files: 3,
        };
        assert_eq!(hard, expected);
    }

    #[test]
    fn one_upload_breaks_leases_of_at_most_a_tenth_of_the_capacity() {
        let breakable = |leases_broken, free_on_disk| {
            let usage = Usage {
                leases_broken,
                free_on_disk,
                ..usage(900)
            };
            Demand::of(&usage, &MARKS, Amount::default()).leases_breakable
        };
        assert_eq!(breakable(0, None), 100);
        assert_eq!(breakable(30, None), 70);
        assert_eq!(breakable(300, None), 0);
        assert_eq!(breakable(0, Some(0)), 90);
    }

    #[test]
    fn during_the_scan_only_waiting_uploads_evict_and_no_leases_are_broken() {
        let usage = Usage {
            scanning: true,
            wanted: 10,
            ..usage(990)
        };
        let demand = Demand::of(&usage, &MARKS, Amount::of_bytes(500));
        assert_eq!((demand.soft, demand.hard.bytes), (Amount::default(), 10));
        assert_eq!(demand.leases_breakable, 0);
    }

    proptest! {
        #[test]
        fn extreme_usages_do_not_overflow(
            (used, idle_uploads, folders, files) in any::<(u64, u64, u64, u64)>(),
            (limit, wanted, leases_broken, wanted_files) in any::<(u64, u64, u64, u64)>(),
            (upload, count, evicted, unwritten, writing) in any::<(u64, u64, u64, u64, u64)>(),
            (wanted_on_disk, free_on_disk, free_files) in any::<(Option<u64>, Option<u64>, Option<u64>)>(),
            scanning in any::<bool>(),
            (high, low) in (0.0..=1.0, 0.0..=1.0),
            min_free in any::<u64>(),
        ) {
            let usage = Usage {
                used, unwritten, writing, idle_uploads, folders, limit, wanted, wanted_on_disk, wanted_files,
                upload, leases_broken, files, free_on_disk, free_files, scanning,
                evicted: EvictionTotal { count, bytes: evicted },
            };
            let marks = Marks { high, low, min_free };
            let shortage = Shortage::of(&usage, &marks);
            let on_disk = shortage.left(&usage);
            let start = Demand::of(&usage, &marks, on_disk);
            let started = Demand::down_to_low(&usage, &marks, on_disk);
            prop_assert!(started.total().covers(start.total()));
            prop_assert_eq!(start.hard, started.hard);
        }
    }
}
