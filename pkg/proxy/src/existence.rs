//! What the backing cache is known to have, for a while.

use std::{
    collections::HashMap,
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gorego_storage::{BlobStore, Digest, DigestFunction};
use tokio::time::Instant;

/// How many digests are kept at most, in two halves; some 60 bytes each.
const CAPACITY: usize = 512 * 1024;

/// The blobs that the backing cache reported as present. Missing ones are never recorded. An outage
/// ends all records, since the backing cache may come back without its blobs.
pub(crate) struct Existence {
    ttl: Duration,
    start: Instant,
    backing: Arc<dyn BlobStore>,
    halves: Mutex<Halves>,
}

/// The older half goes when the younger one is full: what is asked for again is young again.
#[derive(Default)]
struct Halves {
    /// The number of outages seen before these answers.
    since: Epoch,
    young: HashMap<Key, u32>,
    old: HashMap<Key, u32>,
}

/// The time between two outages of the backing cache, in which it may be believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Epoch(u64);

/// Enough of a hash to tell blobs apart, its function, and the size.
type Key = ([u8; 32], DigestFunction, u64);

fn key(digest: &Digest) -> Key {
    (digest.hash_prefix(), digest.function(), digest.size())
}

impl Existence {
    /// Believes each word of `backing` for `ttl`; with zero, none.
    pub(crate) fn new(ttl: Duration, backing: Arc<dyn BlobStore>) -> Self {
        Self {
            ttl,
            start: Instant::now(),
            backing,
            halves: Mutex::default(),
        }
    }

    fn halves(&self) -> MutexGuard<'_, Halves> {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        let since = self.epoch();
        if halves.since != since {
            *halves = Halves {
                since,
                ..Halves::default()
            };
        }
        halves
    }

    /// Returns the current epoch. Take it before asking the backing cache for an answer to be
    /// stored.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.backing.outages())
    }

    /// Seconds since this was made.
    fn now(&self) -> u32 {
        u32::try_from(self.start.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    /// Records that the backing cache has these blobs, as it answered in `epoch`.
    pub(crate) fn insert<'a>(&self, epoch: Epoch, digests: impl IntoIterator<Item = &'a Digest>) {
        let now = self.now();
        let mut halves = self.halves();
        if halves.since != epoch {
            return;
        }
        for digest in digests {
            if halves.young.len() >= CAPACITY / 2 {
                halves.old = mem::take(&mut halves.young);
            }
            halves.young.insert(key(digest), now);
        }
    }

    /// Those of `digests` that are not known to be there.
    pub(crate) fn unknown<'a>(&self, digests: impl IntoIterator<Item = &'a Digest>) -> Vec<Digest> {
        let now = self.now();
        let halves = self.halves();
        let known = |digest: &Digest| {
            let key = key(digest);
            let said = halves.young.get(&key).or_else(|| halves.old.get(&key));
            said.is_some_and(|said| {
                Duration::from_secs(u64::from(now.saturating_sub(*said))) < self.ttl
            })
        };
        let unknown = digests.into_iter().filter(|digest| !known(digest));
        unknown.copied().collect()
    }

    /// Whether this one is known to be there.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.unknown([digest]).is_empty()
    }

    /// It was not there after all.
    pub(crate) fn remove(&self, digest: &Digest) {
        let mut halves = self.halves();
        halves.young.remove(&key(digest));
        halves.old.remove(&key(digest));
    }
}

impl fmt::Debug for Existence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Existence")
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use gorego_storage::MemoryStore;
    use tokio::time::advance;

    use super::*;

    fn existence() -> Existence {
        Existence::new(TTL, Arc::<MemoryStore>::default())
    }

    const TTL: Duration = Duration::from_mins(5);

    #[tokio::test(start_paused = true)]
    async fn a_word_is_believed_for_its_time() {
        let existence = existence();
        let digest = DigestFunction::Sha256.digest(b"content");
        let other = DigestFunction::Blake3.digest(b"content");
        existence.insert(existence.epoch(), [&digest]);
        assert!(existence.has(&digest));
        assert!(!existence.has(&other));
        advance(TTL / 2).await;
        assert!(existence.has(&digest));
        advance(TTL / 2).await;
        assert!(!existence.has(&digest));
    }

    #[tokio::test(start_paused = true)]
    async fn a_word_taken_back_is_forgotten() {
        let existence = existence();
        let digest = DigestFunction::Sha256.digest(b"content");
        existence.insert(existence.epoch(), [&digest]);
        existence.remove(&digest);
        assert!(!existence.has(&digest));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_bounded() {
        let existence = existence();
        let digest = |n: usize| DigestFunction::Sha256.digest(&n.to_le_bytes());
        for n in 0..=CAPACITY {
            existence.insert(existence.epoch(), [&digest(n)]);
        }
        let halves = existence.halves();
        assert!(halves.young.len() + halves.old.len() <= CAPACITY);
        drop(halves);
        assert!(existence.has(&digest(CAPACITY)));
        assert!(!existence.has(&digest(0)));
    }
}
