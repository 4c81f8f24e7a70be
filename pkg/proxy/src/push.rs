//! Uploads of what is here to the backing cache: one of each blob at a time, which belongs to nobody who
//! waits for it, so that those who give up find it further on when they come again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use gorego_storage::{BlobStore, Digest, Error, Put, Result};
use gorego_storage_local::Complete;
use tokio::sync::{Semaphore, oneshot, watch};

use crate::store::Tiers;

/// How many batches of small blobs are in memory at once.
const BATCHES: usize = 32;

/// The uploads under way.
#[derive(Debug)]
pub(crate) struct Pushes {
    running: Mutex<HashMap<Digest, Waiting>>,
    batches: Semaphore,
}

impl Default for Pushes {
    fn default() -> Self {
        Self {
            running: Mutex::default(),
            batches: Semaphore::new(BATCHES),
        }
    }
}

/// Waits for an upload's outcome.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    digest: Digest,
    outcome: watch::Receiver<Option<Result<Put>>>,
}

/// An upload to be carried out. It ends also when its task is cut off.
struct Pushing {
    tiers: Arc<Tiers>,
    digest: Digest,
    outcome: watch::Sender<Option<Result<Put>>>,
}

impl Pushes {
    fn map(&self) -> MutexGuard<'_, HashMap<Digest, Waiting>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The upload of that blob which is under way.
    pub(crate) fn running(&self, digest: &Digest) -> Option<Waiting> {
        self.map().get(digest).cloned()
    }
}

impl Waiting {
    pub(crate) async fn outcome(mut self) -> Result<Put> {
        let outcome = self.outcome.wait_for(Option::is_some).await;
        let outcome = outcome.ok().and_then(|outcome| outcome.clone());
        outcome.unwrap_or_else(|| Err(cut_off(&self.digest)))
    }
}

impl Pushing {
    fn finish(self, outcome: Result<Put>) {
        // Whoever comes from now on does not find it under way.
        self.tiers.pushes.map().remove(&self.digest);
        self.outcome.send_replace(Some(outcome));
    }
}

impl Drop for Pushing {
    fn drop(&mut self) {
        if self.outcome.borrow().is_none() {
            self.tiers.pushes.map().remove(&self.digest);
            self.outcome.send_replace(Some(Err(cut_off(&self.digest))));
        }
    }
}

fn cut_off(digest: &Digest) -> Error {
    Error::Unavailable(format!(
        "the upload of {digest} to the backing cache was cut off"
    ))
}

impl Tiers {
    /// The upload of that blob, and what to carry out if it is new.
    fn join_push(self: &Arc<Self>, digest: &Digest) -> (Waiting, Option<Pushing>) {
        let mut map = self.pushes.map();
        if let Some(running) = map.get(digest) {
            return (running.clone(), None);
        }
        let (outcome, receiver) = watch::channel(None);
        let waiting = Waiting {
            digest: *digest,
            outcome: receiver,
        };
        map.insert(*digest, waiting.clone());
        let pushing = Pushing {
            tiers: Arc::clone(self),
            digest: *digest,
            outcome,
        };
        (waiting, Some(pushing))
    }

    /// Puts a blob of the local store into the backing cache.
    pub(crate) async fn push_one(self: &Arc<Self>, digest: &Digest) -> Result<Put> {
        let (waiting, new) = self.join_push(digest);
        if let Some(pushing) = new {
            self.spawn(async move {
                let pushed = pushing.tiers.push_now(&pushing.digest).await;
                pushing.finish(pushed);
            });
        }
        waiting.outcome().await
    }

    async fn push_now(&self, digest: &Digest) -> Result<Put> {
        let blob = self.local.get(digest, 0).await?;
        let epoch = self.existence.epoch();
        let put = self.backing.put(digest, blob).await?;
        self.took(epoch, [digest]);
        Ok(put)
    }

    /// The same for small blobs, together.
    pub(crate) async fn push_small(
        self: &Arc<Self>,
        digests: Vec<Digest>,
    ) -> Vec<(Digest, Result<Put>)> {
        let (mut waiting, mut new) = (Vec::new(), Vec::new());
        for digest in digests {
            let (joined, pushing) = self.join_push(&digest);
            waiting.push((digest, joined));
            new.extend(pushing);
        }
        if !new.is_empty() {
            let tiers = Arc::clone(self);
            self.spawn(async move { tiers.push_batch(new).await });
        }
        let mut outcomes = Vec::with_capacity(waiting.len());
        for (digest, joined) in waiting {
            outcomes.push((digest, joined.outcome().await));
        }
        outcomes
    }

    async fn push_batch(&self, pushes: Vec<Pushing>) {
        let digests: Vec<Digest> = pushes.iter().map(|pushing| pushing.digest).collect();
        let Ok(_permit) = self.pushes.batches.acquire().await else {
            return;
        };
        let (mut read, mut blobs): (Vec<Pushing>, Vec<(Digest, Bytes)>) = Default::default();
        let contents = self.local.get_batch(&digests).await;
        for (pushing, content) in pushes.into_iter().zip(contents) {
            match content {
                Ok(content) => {
                    blobs.push((pushing.digest, content));
                    read.push(pushing);
                }
                Err(error) => pushing.finish(Err(error)),
            }
        }
        let epoch = self.existence.epoch();
        let put = self.backing.put_batch(blobs).await;
        for (pushing, put) in read.into_iter().zip(put) {
            if put.is_ok() {
                self.took(epoch, [&pushing.digest]);
            }
            pushing.finish(put);
        }
    }

    /// Sends a complete blob to the backing cache under its actual digest, then makes it visible.
    pub(crate) async fn send(self: &Arc<Self>, mut complete: Complete) -> Result<Put> {
        // Nobody else is to be told of what is wrong with this one.
        let digest = &complete.verify().await?;
        let (waiting, pushing) = loop {
            let (waiting, new) = self.join_push(digest);
            if let Some(pushing) = new {
                break (waiting, pushing);
            }
            match waiting.outcome().await {
                Ok(put) => return self.show(digest, complete).await.map(|()| put),
                Err(error @ Error::Unavailable(_)) => {
                    return self.without_backing(digest, complete, error).await;
                }
                // It may have been at fault itself, or what it read.
                Err(error) => tracing::debug!(%digest, %error, "trying the upload anew"),
            }
        };
        let (give_back, given_back) = oneshot::channel();
        self.spawn(async move {
            match pushing.tiers.send_now(&pushing.digest, complete).await {
                Ok(put) => pushing.finish(Ok(put)),
                Err((error, complete)) => {
                    // Before anybody hears of it, so that it is there by then.
                    let _ = give_back.send(complete);
                    pushing.finish(Err(error));
                }
            }
        });
        match (waiting.outcome().await, given_back.await) {
            (Err(error), Ok(Some(complete))) => self.without_backing(digest, complete, error).await,
            (outcome, _) => outcome,
        }
    }

    /// What comes of it tells whether the backing cache has it, and nothing else: whatever was not sent
    /// is given back.
    async fn send_now(
        &self,
        digest: &Digest,
        complete: Complete,
    ) -> Result<Put, (Error, Option<Complete>)> {
        let blob = complete.blob().map_err(|error| (error, None))?;
        let epoch = self.existence.epoch();
        match self.backing.put(digest, blob).await {
            Ok(put) => {
                let shown = self.show(digest, complete).await;
                shown.map_err(|error| (error, None))?;
                self.took(epoch, [digest]);
                Ok(put)
            }
            Err(error) => Err((error, Some(complete))),
        }
    }

    /// What the backing cache did not take is accepted here, where that may be.
    pub(crate) async fn without_backing(
        self: &Arc<Self>,
        digest: &Digest,
        complete: Complete,
        error: Error,
    ) -> Result<Put> {
        if !self.degrades(&error) {
            return Err(error);
        }
        self.accept(*digest, complete.publish()).await
    }
}
