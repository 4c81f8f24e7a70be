//! Uploads that want to know when another client finishes the same blob first.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use gorego_storage::Digest;

/// The blobs that are being uploaded as streams.
#[derive(Clone, Default)]
pub(super) struct Watchers {
    map: Arc<Mutex<HashMap<Digest, (CancellationToken, usize)>>>,
    /// The map's size, so that publishing takes no lock when nobody watches.
    count: Arc<AtomicUsize>,
}

/// Watches one blob until dropped.
pub(super) struct Watch {
    watchers: Watchers,
    digest: Digest,
    token: CancellationToken,
}

impl Watchers {
    fn map(&self) -> MutexGuard<'_, HashMap<Digest, (CancellationToken, usize)>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches a blob. Look whether it is there after this, not before.
    pub(super) fn watch(&self, digest: &Digest) -> Watch {
        let mut map = self.map();
        let (token, users) = map.entry(*digest).or_default();
        *users += 1;
        let token = token.clone();
        self.count.store(map.len(), SeqCst);
        drop(map);
        Watch {
            watchers: self.clone(),
            digest: *digest,
            token,
        }
    }

    /// Tells those who watch this blob that it is there.
    pub(super) fn published(&self, digest: &Digest) {
        if self.count.load(SeqCst) == 0 {
            return;
        }
        if let Some((token, _)) = self.map().get_mut(digest) {
            // Those who begin to watch from now on wait for the next time: the blob may be gone
            // again by then.
            std::mem::take(token).cancel();
        }
    }
}

impl Watch {
    /// Completes when the blob was published.
    pub(super) fn published(&self) -> WaitForCancellationFutureOwned {
        self.token.clone().cancelled_owned()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut map = self.watchers.map();
        if let Some((_, users)) = map.get_mut(&self.digest) {
            *users -= 1;
            if *users == 0 {
                map.remove(&self.digest);
            }
        }
        self.watchers.count.store(map.len(), SeqCst);
    }
}
