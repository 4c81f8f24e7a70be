//! Walks through trees that wait for their next page, cached between the calls of `GetTree`.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use gorego_storage::{Digest, TreeWalk};

/// The most walks that wait for their next page.
const MAX_WALKS: usize = 64;
/// The memory of a walk for each directory that it remembers, in bytes.
const PER_DIRECTORY: u64 = 64;

/// A cache of unfinished tree walks. A page token without a cached walk starts again from the root.
#[derive(Debug)]
pub(crate) struct Walks {
    waiting: Mutex<VecDeque<(Digest, TreeWalk)>>,
    max_directories: u64,
}

impl Walks {
    /// Creates walks within this many bytes.
    pub(crate) fn within(bytes: u64) -> Self {
        Self {
            waiting: Mutex::default(),
            max_directories: bytes / PER_DIRECTORY,
        }
    }

    /// Removes and returns the walk below this root that has reached the highest position. It can continue anywhere
    /// before that.
    pub(crate) fn take(&self, root: &Digest) -> Option<TreeWalk> {
        let mut waiting = self.lock();
        let (at, _) = waiting
            .iter()
            .enumerate()
            .filter(|(_, (other, _))| other == root)
            .max_by_key(|(_, (_, walk))| walk.furthest())?;
        waiting.remove(at).map(|(_, walk)| walk)
    }

    /// Caches a walk until newer ones need its memory.
    pub(crate) fn cache(&self, root: Digest, walk: TreeWalk) {
        if u64::from(walk.known()) > self.max_directories {
            return;
        }
        let mut waiting = self.lock();
        waiting.push_back((root, walk));
        let known = |(_, walk): &(_, TreeWalk)| u64::from(walk.known());
        let mut directories: u64 = waiting.iter().map(known).sum();
        while directories > self.max_directories || waiting.len() > MAX_WALKS {
            let Some(oldest) = waiting.pop_front() else {
                return;
            };
            directories -= known(&oldest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Digest, TreeWalk)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gorego_storage::{DigestFunction, MemoryStore};

    use super::*;

    fn root(number: usize) -> Digest {
        DigestFunction::Sha256.digest(&number.to_le_bytes())
    }

    /// A walk that knows one directory, its root.
    fn walk(number: usize) -> TreeWalk {
        TreeWalk::new(Arc::<MemoryStore>::default(), root(number))
    }

    /// The numbers of the walks that are cached of `count` walks.
    fn cached(walks: &Walks, count: usize) -> Vec<usize> {
        for number in 0..count {
            walks.cache(root(number), walk(number));
        }
        let is_cached = |number: &usize| walks.take(&root(*number)).is_some();
        (0..count).filter(is_cached).collect()
    }

    #[test]
    fn the_latest_walks_are_cached_within_the_memory_for_walks() {
        assert_eq!(cached(&Walks::within(3 * PER_DIRECTORY), 5), [2, 3, 4]);
        assert_eq!(cached(&Walks::within(0), 5), [0; 0]);
        assert_eq!(
            cached(&Walks::within(1 << 20), MAX_WALKS + 1).first(),
            Some(&1)
        );
    }

    #[test]
    fn a_walk_is_continued_by_one_client_only() {
        let walks = Walks::within(1 << 20);
        walks.cache(root(1), walk(1));
        assert!(walks.take(&root(1)).is_some());
        assert!(walks.take(&root(1)).is_none());
    }
}
