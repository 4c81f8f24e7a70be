//! Partial uploads that nobody is sending, and quarantined files: known by their paths, so that they
//! can be evicted in the order of their age like blobs.

use std::{
    cmp::Reverse,
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::index::room_of;
use gorego_storage::{Candidate, EntryId};

/// Distinguishes the numbers of idle files from those of index entries.
const IDLE: u64 = 1 << 63;
/// The most files kept, however small they are: each takes memory and an inode.
const MAX_FILES: usize = 10_000;

/// The idle files of one store.
#[derive(Debug, Default)]
pub(super) struct Idle {
    files: Mutex<IdleFiles>,
    bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct IdleFiles {
    numbers: HashMap<Arc<str>, u64>,
    files: HashMap<u64, IdleFile>,
    next: u64,
}

#[derive(Clone, Debug)]
struct IdleFile {
    path: Arc<str>,
    since_ms: u64,
    room: u64,
}

impl Idle {
    fn lock(&self) -> MutexGuard<'_, IdleFiles> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a file, or replaces the one known by this path.
    pub(super) fn add(&self, path: &str, size: u64, since_ms: u64) {
        self.remove(path);
        let path: Arc<str> = path.into();
        let room = room_of(size);
        let mut files = self.lock();
        let number = files.next | IDLE;
        files.next += 1;
        files.numbers.insert(Arc::clone(&path), number);
        files.files.insert(
            number,
            IdleFile {
                path,
                since_ms,
                room,
            },
        );
        self.bytes.fetch_add(room, Relaxed);
    }

    /// Forgets a file; returns the room it takes, `None` when it is unknown.
    pub(super) fn remove(&self, path: &str) -> Option<u64> {
        let mut files = self.lock();
        let number = files.numbers.remove(path)?;
        let file = files.files.remove(&number)?;
        self.bytes.fetch_sub(file.room, Relaxed);
        Some(file.room)
    }

    /// Returns the disk space of all idle files, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Returns the number of idle files.
    pub(super) fn count(&self) -> u64 {
        self.lock().files.len() as u64
    }

    /// Offers all idle files as candidates.
    pub(super) fn visit(&self, see: &mut dyn FnMut(Candidate)) {
        for (number, file) in self.snapshot() {
            see(Candidate {
                entry: EntryId(number),
                last_use: file.since_ms,
                bytes: file.room,
                leased: false,
                in_use: false,
                partial: true,
            });
        }
    }

    /// The path of the file that a candidate stands for; `None` when it is no idle file any more.
    pub(super) fn path_of(&self, entry: EntryId) -> Option<Arc<str>> {
        let files = self.lock();
        files.files.get(&entry.0).map(|file| Arc::clone(&file.path))
    }

    /// The paths of the files that are idle since this time or longer.
    pub(super) fn since(&self, ms: u64) -> Vec<Arc<str>> {
        let files = self.snapshot().into_iter();
        files
            .filter(|(_, file)| file.since_ms <= ms)
            .map(|(_, file)| file.path)
            .collect()
    }

    /// The paths of the files beyond what all of them may hold in a store with this limit.
    pub(super) fn excess(&self, limit: u64) -> Vec<Arc<str>> {
        excess(self.snapshot(), limit)
    }

    fn snapshot(&self) -> Vec<(u64, IdleFile)> {
        let files = self.lock();
        let all = files.files.iter();
        all.map(|(number, file)| (*number, file.clone())).collect()
    }
}

/// The oldest of these files, as many as it takes for the others to hold at most a tenth of `limit`.
/// The newest is not counted, but goes if it is larger than a quarter.
fn excess(mut files: Vec<(u64, IdleFile)>, limit: u64) -> Vec<Arc<str>> {
    files.sort_unstable_by_key(|(number, file)| Reverse((file.since_ms, *number)));
    let mut sum = 0;
    let beyond = files.into_iter().enumerate().filter(|(age, (_, file))| {
        if *age == 0 {
            return file.room > limit / 4;
        }
        sum += file.room;
        sum > limit / 10 || *age >= MAX_FILES
    });
    beyond.map(|(_, (_, file))| file.path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    fn idle(sizes: &[u64]) -> Idle {
        let idle = Idle::default();
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
    fn a_path_counts_once_and_candidates_lead_back_to_it() {
        let idle = idle(&[5000, 1]);
        idle.add("uploads/0", 1, 7);
        assert_eq!((idle.bytes(), idle.count()), (8192, 2));
        let mut seen = Vec::new();
        idle.visit(&mut |candidate| seen.push((candidate.last_use, candidate.entry)));
        seen.sort_unstable();
        let (since, entry) = seen[1];
        assert_eq!(
            (since, idle.path_of(entry).unwrap().as_ref()),
            (7, "uploads/0")
        );
        assert_eq!(idle.remove("uploads/0"), Some(4096));
        assert_eq!(
            (idle.remove("uploads/0"), idle.path_of(entry)),
            (None, None)
        );
        assert_eq!(idle.since(1), ["uploads/1".into()]);
        assert!(idle.since(0).is_empty());
    }
}
