//! Whether the index knows all that is on the disk.

use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};

/// Set once the scan has reached everything.
#[derive(Debug, Default)]
pub(super) struct Scanned(AtomicBool);

/// What the index says of something.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known<T> {
    Here(T),
    Nowhere,
    /// Only the disk can tell.
    Unseen,
}

impl Scanned {
    pub(super) fn set(&self) {
        self.0.store(true, Release);
    }

    pub(super) fn get(&self) -> bool {
        self.0.load(Acquire)
    }

    /// What comes of asking the index.
    pub(super) fn known<T>(&self, ask: impl FnOnce() -> Option<T>) -> Known<T> {
        // Before the index is: the scan may find it, and end, in between.
        let all = self.get();
        match ask() {
            Some(found) => Known::Here(found),
            None if all => Known::Nowhere,
            None => Known::Unseen,
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
        assert_eq!(scanned.known(ends_meanwhile), Known::Unseen);
        assert_eq!(scanned.known(|| None::<()>), Known::Nowhere);
        assert_eq!(scanned.known(|| Some(1)), Known::Here(1));
    }
}
