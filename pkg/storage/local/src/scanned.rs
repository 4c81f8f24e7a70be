//! The index does not know everything on the disk until the scan after a start has ended.

use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};

/// Whether the scan has reached everything.
#[derive(Debug, Default)]
pub(super) struct Scanned(AtomicBool);

/// The answer of the index.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lookup<T> {
    Hit(T),
    Miss,
    /// Only the disk can tell.
    Unknown,
}

impl Scanned {
    pub(super) fn set(&self) {
        self.0.store(true, Release);
    }

    pub(super) fn get(&self) -> bool {
        self.0.load(Acquire)
    }

    /// Asks the index.
    pub(super) fn lookup<T>(&self, ask: impl FnOnce() -> Option<T>) -> Lookup<T> {
        // Read before the index: the scan may find the entry, and end, in between.
        let all = self.get();
        match ask() {
            Some(found) => Lookup::Hit(found),
            None if all => Lookup::Miss,
            None => Lookup::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_scan_finds_while_the_index_is_asked_is_not_nowhere() {
        let scanned = Scanned::default();
        let ends_meanwhile = || {
            scanned.set();
            None::<()>
        };
        assert_eq!(scanned.lookup(ends_meanwhile), Lookup::Unknown);
        assert_eq!(scanned.lookup(|| None::<()>), Lookup::Miss);
        assert_eq!(scanned.lookup(|| Some(1)), Lookup::Hit(1));
    }
}
