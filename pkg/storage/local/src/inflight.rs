//! Uploads in progress: the newest attempt of each, and the uploads of the same blob.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use gorego_storage::Digest;

/// Values by key, each dropped with the last of its users.
struct Registry<K, V>(Mutex<HashMap<K, (V, usize)>>);

struct User<K: Eq + Hash, V> {
    registry: Arc<Registry<K, V>>,
    key: K,
}

impl<K: Eq + Hash + Clone, V: Default> Registry<K, V> {
    /// Adds a user of the value under `key`, and reads or changes that.
    fn join<T>(self: &Arc<Self>, key: &K, work: impl FnOnce(&mut V) -> T) -> (User<K, V>, T) {
        let mut map = self.0.lock();
        let (value, users) = map.entry(key.clone()).or_default();
        *users += 1;
        let done = work(value);
        drop(map);
        let (registry, key) = (Arc::clone(self), key.clone());
        (User { registry, key }, done)
    }

    fn has_one_user(&self, key: &K) -> bool {
        let map = self.0.lock();
        map.get(key).is_some_and(|(_, users)| *users == 1)
    }
}

impl<K, V> Default for Registry<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V> Drop for User<K, V> {
    fn drop(&mut self) {
        let mut map = self.registry.0.lock();
        if let Some((_, users)) = map.get_mut(&self.key) {
            *users -= 1;
            if *users == 0 {
                map.remove(&self.key);
            }
        }
    }
}

#[derive(Default)]
pub(super) struct Claims(Arc<Registry<String, Attempts>>);

#[derive(Default)]
struct Attempts {
    file: Arc<tokio::sync::Mutex<()>>,
    newest: CancellationToken,
}

/// The right to write one partial upload's file, until dropped.
pub(super) struct Claim {
    // Dropped in this order: the file is free before its entry goes.
    _file: OwnedMutexGuard<()>,
    superseded: CancellationToken,
    user: User<String, Attempts>,
}

impl Claims {
    /// Takes an upload over: stops the attempt in progress, and waits until its file is free.
    pub(super) async fn claim(&self, path: &str) -> Claim {
        let (user, (file, superseded)) = self.0.join(&path.to_owned(), |attempts| {
            attempts.newest.cancel();
            attempts.newest = CancellationToken::new();
            (Arc::clone(&attempts.file), attempts.newest.clone())
        });
        Claim {
            _file: file.lock_owned().await,
            superseded,
            user,
        }
    }

    /// Claims an upload without a sender. A client that resumes it meanwhile waits.
    pub(super) fn claim_idle(&self, path: &str) -> Option<Claim> {
        let (user, (file, superseded)) = self.0.join(&path.to_owned(), |attempts| {
            (Arc::clone(&attempts.file), attempts.newest.clone())
        });
        let file = file.try_lock_owned().ok()?;
        // Another user is a client that has not locked the file yet.
        self.0.has_one_user(&user.key).then_some(Claim {
            _file: file,
            superseded,
            user,
        })
    }
}

impl Claim {
    pub(super) fn path(&self) -> &str {
        &self.user.key
    }

    /// Completes when a newer attempt takes the upload over.
    pub(super) fn superseded(&self) -> WaitForCancellationFutureOwned {
        self.superseded.clone().cancelled_owned()
    }
}

/// The blobs that are being uploaded as streams.
#[derive(Default)]
pub(super) struct Watchers(Arc<Registry<Digest, CancellationToken>>);

impl Watchers {
    /// Watches a blob from now on; completes when it is published. Look it up only after this, so that the end of
    /// no upload is missed.
    pub(super) fn watch(&self, digest: &Digest) -> impl Future<Output = ()> + use<> {
        let (user, token) = self.0.join(digest, |token| token.clone());
        async move {
            let _user = user;
            token.cancelled().await;
        }
    }

    /// Notifies the uploads of this blob that another one published it.
    pub(super) fn published(&self, digest: &Digest) {
        let token = self.0.0.lock().get_mut(digest).map(|(token, _)| {
            // Later uploads wait for the next publication: the blob may be evicted by then.
            std::mem::take(token)
        });
        if let Some(token) = token {
            token.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn the_newest_claim_waits_until_earlier_ones_are_dropped() {
        let claims = Claims::default();
        let first = claims.claim("u").await;
        assert!(first.superseded().now_or_never().is_none());
        let mut second = Box::pin(claims.claim("u"));
        assert!(second.as_mut().now_or_never().is_none());
        first.superseded().await;
        let mut third = Box::pin(claims.claim("u"));
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        second.await.superseded().await;
        let third = third.await;
        assert!(third.superseded().now_or_never().is_none());
        assert!(claims.claim_idle("u").is_none());
        drop(third);
        assert!(claims.claim_idle("u").is_some());
    }
}
