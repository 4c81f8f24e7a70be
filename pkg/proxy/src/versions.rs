//! Versions of action results, which keep results read earlier from replacing later writes.

use std::{
    hash::{BuildHasher as _, Hash, RandomState},
    sync::Arc,
};

use tokio::sync::{Mutex, OwnedMutexGuard};

/// The number of locks. Names with the same lock share a version, so a write under one name may keep a fetched result
/// of another from being stored.
const LOCKS: usize = 1024;

/// The numbers of writes by name. Holding the lock of a name excludes other writes.
#[derive(Debug)]
pub(crate) struct Versions {
    hasher: RandomState,
    locks: Box<[Arc<Mutex<u64>>]>,
}

impl Default for Versions {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            locks: (0..LOCKS).map(|_| Arc::default()).collect(),
        }
    }
}

impl Versions {
    /// Locks a name, whose version is the guarded number.
    pub(crate) async fn lock(&self, name: &impl Hash) -> OwnedMutexGuard<u64> {
        let hash = self.hasher.hash_one(name) % LOCKS as u64;
        let lock = self.locks.get(usize::try_from(hash).unwrap_or_default());
        lock.cloned().unwrap_or_default().lock_owned().await
    }
}
