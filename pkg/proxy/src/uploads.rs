//! Uploads to the backing cache: the one way for blobs that are complete, at most one of each blob at a time.
//!
//! An upload is owned by the proxy: if its caller goes away, a later one joins it. The client of the backing
//! cache retries it with backoff, as its content can be read again.

use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt as _, stream};
use gorego_storage::{BlobStore as _, Digest, Error, Put, Result};
use gorego_storage_local::{Complete, LocalStore};
use tokio::sync::{Semaphore, watch};

use crate::{
    backing::BackingBlobs,
    batches::{batches, is_small},
    inflight::{Inflight, Operation},
    tasks::Tasks,
};

/// The most batches of small blobs in memory, of all callers.
const BATCHES: usize = 32;
/// The most batches or large blobs of one caller that are uploaded at once.
const AT_ONCE: usize = 8;

/// The outcome of an upload; none while it is in progress.
type Outcome = watch::Sender<Option<Result<Put>>>;
type Upload = Operation<Digest, Outcome>;

/// The uploads in progress.
pub(crate) struct Uploads {
    local: Arc<LocalStore>,
    backing: Arc<BackingBlobs>,
    running: Inflight<Digest, Outcome>,
    batches: Semaphore,
    tasks: Tasks,
}

impl Uploads {
    pub(crate) fn new(local: Arc<LocalStore>, backing: Arc<BackingBlobs>, tasks: Tasks) -> Self {
        Self {
            local,
            backing,
            running: Inflight::default(),
            batches: Semaphore::new(BATCHES),
            tasks,
        }
    }

    /// Waits for an upload of the blob in progress; `None` if there is none.
    pub(crate) async fn running(&self, digest: &Digest) -> Option<Result<Put>> {
        let outcome = self.running.get(digest)?.subscribe();
        Some(wait(digest, outcome).await)
    }

    fn join(&self, digest: &Digest) -> (watch::Receiver<Option<Result<Put>>>, Option<Upload>) {
        let join = |outcome: &Arc<Outcome>| Some(outcome.subscribe());
        let joined = self.running.join(digest, Outcome::default, join);
        joined.unwrap_or_else(|| (Outcome::default().subscribe(), None))
    }

    /// Uploads a blob of the local tier.
    pub(crate) async fn upload(self: &Arc<Self>, digest: &Digest) -> Result<Put> {
        let (outcome, new) = self.join(digest);
        if let Some(upload) = new {
            let uploads = Arc::clone(self);
            self.tasks.spawn(async move {
                let uploaded = match uploads.local.get(&upload.key, 0).await {
                    Ok(blob) => uploads.backing.put(&upload.key, blob).await,
                    Err(error) => Err(error),
                };
                finish(upload, uploaded);
            });
        }
        wait(digest, outcome).await
    }

    /// Uploads a verified blob, and publishes it in the local tier. Returns it if neither was done.
    pub(crate) async fn upload_complete(
        self: &Arc<Self>,
        digest: &Digest,
        complete: Complete,
    ) -> (Result<Put>, Option<Complete>) {
        // The upload takes the blob only if it publishes it.
        let shared = Arc::new(Mutex::new(Some(complete)));
        let take = |shared: &Mutex<Option<Complete>>| {
            shared.lock().unwrap_or_else(PoisonError::into_inner).take()
        };
        let uploaded = loop {
            let (outcome, new) = self.join(digest);
            let is_own = new.is_some();
            if let Some(upload) = new {
                let (uploads, shared) = (Arc::clone(self), Arc::clone(&shared));
                self.tasks.spawn(async move {
                    let uploaded = uploads.put_complete(&upload.key, &shared).await;
                    if uploaded.is_ok()
                        && let Some(complete) = take(&shared)
                    {
                        publish(&upload.key, complete).await;
                    }
                    finish(upload, uploaded);
                });
            }
            match wait(digest, outcome).await {
                // The blob that another caller uploaded may have been at fault.
                Err(error) if !is_own && !matches!(error, Error::Unavailable(_)) => {
                    tracing::debug!(%digest, %error, "another upload failed; trying this one");
                }
                uploaded => break uploaded,
            }
        };
        let complete = take(&shared);
        match complete {
            Some(complete) if uploaded.is_ok() => {
                publish(digest, complete).await;
                (uploaded, None)
            }
            complete => (uploaded, complete),
        }
    }

    async fn put_complete(
        &self,
        digest: &Digest,
        complete: &Mutex<Option<Complete>>,
    ) -> Result<Put> {
        let blob = {
            let complete = complete.lock().unwrap_or_else(PoisonError::into_inner);
            complete.as_ref().map(Complete::blob)
        };
        let blob = blob.unwrap_or(Err(Error::NotFound(*digest)))?;
        self.backing.put(digest, blob).await
    }

    /// Uploads blobs of the local tier, small ones in batches. Returns a result for each.
    pub(crate) async fn upload_all(
        self: &Arc<Self>,
        digests: Vec<Digest>,
    ) -> Vec<(Digest, Result<Put>)> {
        let uploads = batches(digests).into_iter().map(|batch| async move {
            match batch.as_slice() {
                [large] if !is_small(large) => vec![(*large, self.upload(large).await)],
                _ => self.upload_small(batch).await,
            }
        });
        let uploads = stream::iter(uploads).buffer_unordered(AT_ONCE);
        uploads.flat_map(stream::iter).collect().await
    }

    async fn upload_small(self: &Arc<Self>, batch: Vec<Digest>) -> Vec<(Digest, Result<Put>)> {
        let (mut joined, mut new) = (Vec::with_capacity(batch.len()), Vec::new());
        for digest in batch {
            let (outcome, upload) = self.join(&digest);
            joined.push((digest, outcome));
            new.extend(upload);
        }
        if !new.is_empty() {
            let uploads = Arc::clone(self);
            self.tasks
                .spawn(async move { uploads.put_small(new).await });
        }
        let mut uploaded = Vec::with_capacity(joined.len());
        for (digest, outcome) in joined {
            uploaded.push((digest, wait(&digest, outcome).await));
        }
        uploaded
    }

    async fn put_small(&self, uploads: Vec<Upload>) {
        let Ok(_permit) = self.batches.acquire().await else {
            return;
        };
        let digests: Vec<Digest> = uploads.iter().map(|upload| upload.key).collect();
        let contents = self.local.get_batch(&digests).await;
        let (mut readable, mut blobs) = (Vec::new(), Vec::new());
        for (upload, content) in uploads.into_iter().zip(contents) {
            match content {
                Ok(content) => {
                    blobs.push((upload.key, content));
                    readable.push(upload);
                }
                Err(error) => finish(upload, Err(error)),
            }
        }
        let uploaded = self.backing.put_batch(blobs).await;
        for (upload, uploaded) in readable.into_iter().zip(uploaded) {
            finish(upload, uploaded);
        }
    }
}

async fn wait(digest: &Digest, mut outcome: watch::Receiver<Option<Result<Put>>>) -> Result<Put> {
    let outcome = outcome.wait_for(Option::is_some).await;
    let outcome = outcome.ok().and_then(|outcome| outcome.clone());
    outcome.unwrap_or_else(|| {
        let cut_off = format!("upload of {digest} to the backing cache was cut off");
        Err(Error::Unavailable(cut_off))
    })
}

/// Ends an upload. Callers from now on start another.
fn finish(upload: Upload, uploaded: Result<Put>) {
    let outcome = Arc::clone(&upload.value);
    drop(upload);
    outcome.send_replace(Some(uploaded));
}

/// Publishes a blob in the local tier, though that is no condition of a successful write.
pub(crate) async fn publish(digest: &Digest, complete: Complete) {
    if let Err(error) = complete.publish().await {
        tracing::debug!(%digest, %error, "failed to store an uploaded blob in the local tier");
    }
}
