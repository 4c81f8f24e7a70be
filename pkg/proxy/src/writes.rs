//! Which results were written lately, so that nobody overwrites them with what was read before.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};
use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hash},
};

use tokio::sync::{Mutex, OwnedMutexGuard};

/// How many names share a count: some of what was read is not kept for nothing.
const SHARES: usize = 1024;

/// Counts the writes of results, by name.
#[derive(Debug)]
pub(crate) struct Writes {
    hasher: RandomState,
    shares: Box<[Share]>,
}

#[derive(Debug, Default)]
struct Share {
    count: AtomicU64,
    writing: Arc<Mutex<()>>,
}

impl Default for Writes {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            shares: (0..SHARES).map(|_| Share::default()).collect(),
        }
    }
}

impl Writes {
    fn share(&self, name: &impl Hash) -> Option<&Share> {
        let hash = usize::try_from(self.hasher.hash_one(name) % SHARES as u64);
        self.shares.get(hash.unwrap_or_default())
    }

    /// What was read before is out of date from now on.
    pub(crate) fn note(&self, name: &impl Hash) {
        if let Some(share) = self.share(name) {
            share.count.fetch_add(1, SeqCst);
        }
    }

    /// How many there were: whoever reads looks here first.
    pub(crate) fn count(&self, name: &impl Hash) -> u64 {
        self.share(name).map_or(0, |share| share.count.load(SeqCst))
    }

    /// Keeps others from writing; the count does not tell of it.
    pub(crate) async fn alone(&self, name: &impl Hash) -> Option<OwnedMutexGuard<()>> {
        let share = self.share(name)?;
        Some(Arc::clone(&share.writing).lock_owned().await)
    }
}
