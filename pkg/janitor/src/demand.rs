//! How much has to go, from how full a store is.

use gorego_storage::Usage;

/// Where eviction starts and stops.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Marks {
    /// Eviction starts above this share of the limit.
    pub high: f64,
    /// And goes on down to this share.
    pub low: f64,
    /// It starts, too, when the file system has less than this left, in bytes.
    pub min_free: u64,
}

impl Marks {
    /// The usage beyond which eviction starts, in bytes, for a store with this limit.
    pub fn high_bytes(&self, limit: u64) -> u64 {
        share(limit, self.high)
    }

    /// The usage down to which it goes on, in bytes.
    pub fn low_bytes(&self, limit: u64) -> u64 {
        share(limit, self.low)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a share of a disk, which may be some bytes off, and is never negative"
)]
fn share(limit: u64, share: f64) -> u64 {
    (limit as f64 * share.clamp(0.0, 1.0)) as u64
}

/// How many bytes have to be freed, and how far to go for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// To get back to the low mark. Leases are respected.
    pub soft: u64,
    /// For uploads that wait. Leases are broken if nothing else is left.
    pub hard: u64,
    /// How much leased entries may hold together; beyond this the oldest count as unleased.
    pub leases_allowed: u64,
}

impl Demand {
    /// What has to be freed by a janitor at rest: nothing below the high mark, unless uploads wait.
    pub fn of(usage: &Usage, marks: &Marks) -> Self {
        let full = usage.used.saturating_add(usage.wanted) > marks.high_bytes(usage.limit);
        let demand = Self::down_to_low(usage, marks);
        if full || on_disk(usage, marks) > 0 {
            demand
        } else {
            Self { soft: 0, ..demand }
        }
    }

    /// What has to be freed by a janitor at work, which does not stop before the low mark.
    pub fn down_to_low(usage: &Usage, marks: &Marks) -> Self {
        let after = usage.used.saturating_add(usage.wanted);
        let beyond_low = after.saturating_sub(marks.low_bytes(usage.limit));
        let beyond_limit = usage.used.saturating_sub(usage.limit);
        Self {
            soft: beyond_low.max(on_disk(usage, marks)),
            hard: match usage.wanted {
                0 => 0,
                wanted => wanted.saturating_add(beyond_limit),
            },
            leases_allowed: leases_allowed(usage, marks),
        }
    }

    /// The larger of the two.
    pub fn bytes(&self) -> u64 {
        self.soft.max(self.hard)
    }
}

/// Four fifths of the limit, but never so much that at the low mark nothing is left for what has no
/// lease: a blob that was just uploaded would be the next to go.
fn leases_allowed(usage: &Usage, marks: &Marks) -> u64 {
    let low = marks.low_bytes(usage.limit);
    let allowed = (usage.limit - usage.limit / 5).min(low - low / 17);
    allowed.saturating_sub(usage.folders)
}

/// What the file system itself is short of. Where others have filled it, the store keeps half of
/// what is left for the two of them: giving up everything would not free what was asked for
/// either, and the store would be of no use.
fn on_disk(usage: &Usage, marks: &Marks) -> u64 {
    let free = usage.free_on_disk.unwrap_or(u64::MAX);
    let half = free.saturating_add(usage.used) / 2;
    marks.min_free.min(half).saturating_sub(free)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

    #[test]
    fn eviction_starts_above_the_high_mark_and_goes_down_to_the_low_one() {
        assert_eq!(Demand::of(&usage(950), &MARKS).bytes(), 0);
        assert_eq!(Demand::of(&usage(951), &MARKS).bytes(), 101);
        assert_eq!(Demand::down_to_low(&usage(900), &MARKS).bytes(), 50);
        assert_eq!(Demand::down_to_low(&usage(850), &MARKS).bytes(), 0);
    }

    #[test]
    fn a_full_disk_starts_eviction_too() {
        let on_disk = |used, free| Usage {
            free_on_disk: Some(free),
            ..usage(used)
        };
        assert_eq!(Demand::of(&on_disk(500, 100), &MARKS).bytes(), 0);
        assert_eq!(Demand::of(&on_disk(500, 99), &MARKS).bytes(), 1);
        assert_eq!(Demand::of(&on_disk(500, 0), &MARKS).bytes(), 100);
        // Whichever asks for more.
        assert_eq!(Demand::of(&on_disk(900, 99), &MARKS).bytes(), 50);
        assert_eq!(Demand::of(&on_disk(900, 0), &MARKS).bytes(), 100);
    }

    #[test]
    fn on_a_disk_that_others_fill_the_store_keeps_half_of_what_is_left() {
        let on_disk = |used, free| {
            let free_on_disk = Some(free);
            let usage = Usage {
                free_on_disk,
                ..usage(used)
            };
            Demand::of(&usage, &MARKS).bytes()
        };
        assert_eq!(on_disk(20, 50), 0);
        assert_eq!(on_disk(60, 40), 10);
        assert_eq!(on_disk(20, 0), 10);
    }

    #[test]
    fn leases_leave_room_for_what_has_none() {
        let allowed = |low, folders| {
            let marks = Marks { low, ..MARKS };
            let usage = Usage {
                folders,
                ..usage(950)
            };
            Demand::of(&usage, &marks).leases_allowed
        };
        assert_eq!(allowed(0.9, 0), 800);
        assert_eq!(allowed(0.5, 0), 471);
        assert_eq!(allowed(0.9, 300), 500);
    }

    #[test]
    fn what_uploads_wait_for_is_a_hard_need() {
        let waiting = |used, wanted| {
            let usage = Usage {
                wanted,
                ..usage(used)
            };
            let demand = Demand::of(&usage, &MARKS);
            (demand.hard, demand.soft)
        };
        assert_eq!(waiting(500, 0), (0, 0));
        assert_eq!(waiting(500, 100), (100, 0));
        assert_eq!(waiting(960, 0), (0, 110));
        assert_eq!(waiting(960, 50), (50, 160));
        // The limit was lowered: what is beyond it has to go first.
        assert_eq!(waiting(1200, 50), (250, 400));
    }

    proptest! {
        #[test]
        fn no_figures_overflow(
            used: u64, idle_uploads: u64, folders: u64, limit: u64, wanted: u64, free: Option<u64>,
            high in 0.0..=1.0, low in 0.0..=1.0, min_free: u64,
        ) {
            let free_on_disk = free;
            let usage = Usage { used, idle_uploads, folders, limit, wanted, free_on_disk };
            let marks = Marks { high, low, min_free };
            let (start, go_on) = (Demand::of(&usage, &marks), Demand::down_to_low(&usage, &marks));
            prop_assert!(start.bytes() <= go_on.bytes());
            prop_assert_eq!(start.hard, go_on.hard);
        }
    }
}
