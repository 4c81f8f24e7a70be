//! The folders between the roots of the trees and their files. Each takes a block of the disk, so
//! they are counted, and go with their last file.

use std::{
    collections::HashSet,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// What a folder takes, in bytes, on most file systems.
pub(super) const FOLDER_ROOM: u64 = 4096;

/// See the module.
#[derive(Debug)]
pub(super) struct Folders {
    count: AtomicU64,
    changing: Mutex<()>,
    /// Until the scan has counted what was there before: what it must not count again.
    made: Mutex<Option<HashSet<String>>>,
}

impl Folders {
    /// Before the scan.
    pub(super) fn new() -> Self {
        Self {
            count: AtomicU64::new(0),
            changing: Mutex::new(()),
            made: Mutex::new(Some(HashSet::new())),
        }
    }

    fn made_since(&self) -> MutexGuard<'_, Option<HashSet<String>>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while one is made or removed and counted: otherwise another could remove it in between.
    pub(super) fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One was made.
    pub(super) fn made(&self, path: &str) {
        if let Some(made) = &mut *self.made_since() {
            made.insert(path.to_owned());
        }
        self.count.fetch_add(1, Relaxed);
    }

    /// One was removed.
    pub(super) fn removed(&self, path: &str) {
        let counted = self
            .made_since()
            .as_mut()
            .is_none_or(|made| made.remove(path));
        if counted {
            self.count.fetch_sub(1, Relaxed);
        }
    }

    /// The scan found one; says whether it was here before the store was opened.
    pub(super) fn found(&self, path: &str) -> bool {
        let old = self
            .made_since()
            .as_ref()
            .is_some_and(|made| !made.contains(path));
        self.count.fetch_add(u64::from(old), Relaxed);
        old
    }

    /// The scan found all of them.
    pub(super) fn scan_done(&self) {
        *self.made_since() = None;
    }

    /// Returns the number of folders.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// All of them were counted anew, by a caller that keeps others from changing them.
    pub(super) fn recounted(&self, count: u64) {
        self.count.store(count, Relaxed);
    }

    /// What they take, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.count().saturating_mul(FOLDER_ROOM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_counts_once_whether_the_scan_or_an_upload_comes_first() {
        let folders = Folders::new();
        folders.made("new");
        assert!(!folders.found("new"));
        assert!(folders.found("old"));
        assert_eq!(folders.bytes(), 2 * FOLDER_ROOM);
        // Made, and found empty by the scan; then made again.
        folders.removed("new");
        folders.made("new");
        // Never counted, so there is nothing to take back.
        folders.removed("unseen");
        assert_eq!(folders.bytes(), 2 * FOLDER_ROOM);
        folders.scan_done();
        folders.removed("old");
        folders.made("newer");
        folders.removed("new");
        assert_eq!(folders.bytes(), FOLDER_ROOM);
    }
}
