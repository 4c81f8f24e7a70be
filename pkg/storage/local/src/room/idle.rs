//! Idle files, which are evicted by age like blobs: partial uploads without a sender, and quarantined files.

use std::{
    cmp::Reverse,
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use crate::index::room_of;
use gorego_storage::{Candidate, EntryId};

/// Distinguishes the numbers of idle files from those of index entries.
const IDLE: u64 = 1 << 63;
/// The most idle files, however small, since each takes memory and an inode.
const MAX_FILES: usize = 10_000;

/// The idle files of one store, by numbers that are hashes of their paths.
#[derive(Default)]
pub(crate) struct Idle {
    files: HashMap<u64, IdleFile>,
    hash: RandomState,
    bytes: u64,
}

struct IdleFile {
    path: Arc<str>,
    since_ms: u64,
    room: u64,
}

impl Idle {
    /// Adds a file, or replaces the one known by this path.
    pub(super) fn add(&mut self, path: &str, size: u64, since_ms: u64) {
        self.remove(path);
        let file = IdleFile {
            path: path.into(),
            since_ms,
            room: room_of(size),
        };
        self.bytes += file.room;
        self.files.insert(self.number(path), file);
    }

    /// Removes a file from the accounts; returns its room, `None` if it is unknown.
    pub(crate) fn remove(&mut self, path: &str) -> Option<u64> {
        let file = self.files.remove(&self.number(path))?;
        self.bytes -= file.room;
        Some(file.room)
    }

    fn number(&self, path: &str) -> u64 {
        self.hash.hash_one(path) | IDLE
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn count(&self) -> u64 {
        self.files.len() as u64
    }

    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let candidate = |(number, file): (&u64, &IdleFile)| Candidate {
            entry: EntryId(*number),
            last_use: file.since_ms,
            bytes: file.room,
            leased: false,
            in_use: false,
            partial: true,
        };
        self.files.iter().map(candidate).collect()
    }

    /// Returns the path of a candidate's file; `None` if it is not idle, or was used since.
    pub(crate) fn path_of(&self, candidate: &Candidate) -> Option<Arc<str>> {
        let file = self.files.get(&candidate.entry.0)?;
        let unused = file.since_ms == candidate.last_use && file.room == candidate.bytes;
        unused.then(|| Arc::clone(&file.path))
    }

    pub(crate) fn since(&self, ms: u64) -> Vec<Arc<str>> {
        let old = self.files.values().filter(|file| file.since_ms <= ms);
        old.map(|file| Arc::clone(&file.path)).collect()
    }

    /// Returns the paths of the files to remove: the oldest, until the others take at most a tenth of `limit` and
    /// number at most [`MAX_FILES`]. The newest does not count, but is returned if it alone takes over a quarter.
    pub(crate) fn excess(&self, limit: u64) -> Vec<Arc<str>> {
        let mut files: Vec<_> = self.files.values().collect();
        files.sort_unstable_by_key(|file| Reverse((file.since_ms, &file.path)));
        let mut sum = 0;
        let beyond = files.into_iter().enumerate().filter(|(age, file)| {
            if *age == 0 {
                return file.room > limit / 4;
            }
            sum += file.room;
            sum > limit / 10 || *age >= MAX_FILES
        });
        beyond.map(|(_, file)| Arc::clone(&file.path)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    fn idle(sizes: &[u64]) -> Idle {
        let mut idle = Idle::default();
        for (since, size) in (0..).zip(sizes) {
            idle.add(&format!("uploads/{since}"), *size, since);
        }
        idle
    }

    fn excess_of(sizes: &[u64], limit: u64) -> Vec<String> {
        let paths = idle(sizes).excess(limit).into_iter();
        let mut paths: Vec<_> = paths.map(|path| path.to_string()).collect();
        paths.sort();
        paths
    }

    #[test]
    fn partial_uploads_hold_a_tenth_of_the_limit_and_the_newest_a_quarter() {
        let limit = 1000 * 4 * KIB;
        let tenth = 100 * 4 * KIB;
        assert!(excess_of(&[], limit).is_empty());
        assert!(excess_of(&[tenth / 2, tenth / 2, limit / 4], limit).is_empty());
        assert_eq!(
            excess_of(&[1, tenth / 2, tenth / 2, limit / 4], limit),
            ["uploads/0"]
        );
        assert_eq!(
            excess_of(&[tenth, 1, 1, limit / 4 + 1], limit),
            ["uploads/0", "uploads/3"]
        );
        // One that was the newest is not any more.
        assert_eq!(excess_of(&[limit / 4, 1], limit), ["uploads/0"]);
    }

    #[test]
    fn partial_uploads_are_bounded_in_number() {
        let sizes = vec![1; MAX_FILES + 2];
        assert_eq!(excess_of(&sizes, u64::MAX), ["uploads/0", "uploads/1"]);
    }

    #[test]
    fn an_idle_file_counts_once_and_is_found_by_its_candidate() {
        let mut idle = idle(&[5000, 1]);
        idle.add("uploads/0", 1, 7);
        assert_eq!((idle.bytes(), idle.count()), (8192, 2));
        let mut seen = idle.candidates();
        seen.sort_unstable_by_key(|candidate| candidate.last_use);
        let shown = seen[1];
        assert_eq!(
            (shown.last_use, idle.path_of(&shown).unwrap().as_ref()),
            (7, "uploads/0")
        );
        idle.add("uploads/0", 1, 8);
        assert_eq!(idle.path_of(&shown), None, "it was used since");
        assert_eq!(idle.remove("uploads/0"), Some(4096));
        assert_eq!(
            (idle.remove("uploads/0"), idle.path_of(&shown)),
            (None, None)
        );
        assert_eq!(idle.since(1), ["uploads/1".into()]);
        assert!(idle.since(0).is_empty());
    }
}
