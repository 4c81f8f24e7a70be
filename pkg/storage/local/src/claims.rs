//! Who is sending which partial upload: the newest attempt, always.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The uploads under way, by their file.
#[derive(Clone, Default)]
pub(super) struct Claims {
    map: Arc<Mutex<HashMap<String, Slot>>>,
}

#[derive(Default)]
struct Slot {
    file: Arc<tokio::sync::Mutex<()>>,
    newest: CancellationToken,
    users: usize,
}

/// The right to write one partial upload's file, until dropped.
pub(super) struct Claim {
    // Dropped in this order: the file is free before the slot goes.
    _file: OwnedMutexGuard<()>,
    superseded: CancellationToken,
    _user: User,
}

struct User {
    claims: Claims,
    path: String,
}

impl Claims {
    fn map(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an upload over: tells whoever is sending it to stop, and waits until its file is free.
    pub(super) async fn claim(&self, path: &str) -> Claim {
        let (user, file, superseded) = {
            let mut map = self.map();
            let slot = map.entry(path.to_owned()).or_default();
            slot.newest.cancel();
            slot.newest = CancellationToken::new();
            slot.users += 1;
            let user = User {
                claims: self.clone(),
                path: path.to_owned(),
            };
            (user, Arc::clone(&slot.file), slot.newest.clone())
        };
        Claim {
            _file: file.lock_owned().await,
            superseded,
            _user: user,
        }
    }

    /// Runs `work` if nobody is sending this upload, and lets nobody begin meanwhile. Only for
    /// short work: removing a file.
    pub(super) fn if_idle<T>(&self, path: &str, work: impl FnOnce() -> T) -> Option<T> {
        let map = self.map();
        (!map.contains_key(path)).then(work)
    }
}

impl Claim {
    /// Completes when a newer attempt wants the upload.
    pub(super) fn superseded(&self) -> WaitForCancellationFutureOwned {
        self.superseded.clone().cancelled_owned()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let mut map = self.claims.map();
        if let Some(slot) = map.get_mut(&self.path) {
            slot.users -= 1;
            if slot.users == 0 {
                map.remove(&self.path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn the_newest_claim_wins_once_its_predecessors_let_go() {
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
        assert!(claims.if_idle("u", || ()).is_none());
        drop(third);
        assert!(claims.if_idle("u", || ()).is_some());
    }
}
