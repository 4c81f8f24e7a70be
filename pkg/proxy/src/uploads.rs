//! Uploads to the backing cache: the one way for complete blobs, with at most one upload of each at a time.
//!
//! An upload is owned by the proxy: if its caller is cancelled, a later one joins it. The client of the backing cache
//! retries it with backoff, as its content can be read again.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gorego_storage::{BlobStore as _, Digest, Error, Put, Result};
use gorego_storage_local::CompleteUpload;
use tokio::sync::{Semaphore, watch};

use crate::{
    batches::{batches, is_small},
    inflight::{Inflight, Operation},
    tiers::Tiers,
};

/// The most batches of small blobs in memory, of all callers.
const BATCHES: usize = 32;
/// The most batches and large blobs that are uploaded at once for one caller.
const AT_ONCE: usize = 8;

/// The outcome of an upload; none while it is in progress.
type UploadOutcome = watch::Sender<Option<Result<Put>>>;
type UploadTask = Operation<Digest, UploadOutcome>;

/// The uploads in progress.
#[derive(Debug)]
pub(crate) struct Uploads {
    tiers: Tiers,
    running: Inflight<Digest, UploadOutcome>,
    batches: Semaphore,
}

impl Uploads {
    pub(crate) fn new(tiers: Tiers) -> Self {
        Self {
            tiers,
            running: Inflight::default(),
            batches: Semaphore::new(BATCHES),
        }
    }

    /// Waits for an upload of the blob in progress; `None` if there is none.
    pub(crate) async fn running(&self, digest: &Digest) -> Option<Result<Put>> {
        let outcome = self.running.get(digest)?.subscribe();
        Some(wait(digest, outcome).await)
    }

    fn join(&self, digest: &Digest) -> (watch::Receiver<Option<Result<Put>>>, Option<UploadTask>) {
        let join = |outcome: &Arc<UploadOutcome>| Some(outcome.subscribe());
        let joined = self.running.join(digest, UploadOutcome::default, join);
        joined.unwrap_or_else(|| (UploadOutcome::default().subscribe(), None))
    }

    /// Uploads a verified blob that is not published yet.
    pub(crate) async fn upload_staged(
        &self,
        digest: &Digest,
        staged: &CompleteUpload,
    ) -> Result<Put> {
        loop {
            let (outcome, new) = self.join(digest);
            let is_own = new.is_some();
            if let Some(upload) = new {
                let (blob, tiers) = (staged.blob()?, self.tiers.clone());
                self.tiers.spawn(async move {
                    let uploaded = tiers.backing.put(&upload.key, blob).await;
                    finish(upload, uploaded);
                });
            }
            match wait(digest, outcome).await {
                // The blob that another caller uploaded may have been at fault.
                Err(error) if !is_own && !matches!(error, Error::Unavailable(_)) => {
                    tracing::debug!(%digest, %error, "another upload failed; trying this one");
                }
                uploaded => return uploaded,
            }
        }
    }

    /// Uploads a blob of the local tier.
    pub(crate) async fn upload(self: &Arc<Self>, digest: &Digest) -> Result<Put> {
        let uploaded = self.upload_batch(vec![*digest]).await.pop();
        uploaded.map_or(Err(Error::NotFound(*digest)), |(_, put)| put)
    }

    /// Uploads blobs of the local tier, small ones in batches. Returns a result for each.
    pub(crate) async fn upload_all(
        self: &Arc<Self>,
        digests: Vec<Digest>,
    ) -> Vec<(Digest, Result<Put>)> {
        let batches = batches(digests).into_iter();
        let uploads = stream::iter(batches.map(|batch| self.upload_batch(batch)));
        let uploads = uploads.buffer_unordered(AT_ONCE).flat_map(stream::iter);
        uploads.collect().await
    }

    async fn upload_batch(self: &Arc<Self>, batch: Vec<Digest>) -> Vec<(Digest, Result<Put>)> {
        let (mut joined, mut new) = (Vec::with_capacity(batch.len()), Vec::new());
        for digest in batch {
            let (outcome, upload) = self.join(&digest);
            joined.push((digest, outcome));
            new.extend(upload);
        }
        if !new.is_empty() {
            let uploads = Arc::clone(self);
            self.tiers
                .spawn(async move { uploads.put_batch(new).await });
        }
        let mut uploaded = Vec::with_capacity(joined.len());
        for (digest, outcome) in joined {
            uploaded.push((digest, wait(&digest, outcome).await));
        }
        uploaded
    }

    async fn put_batch(&self, mut batch: Vec<UploadTask>) {
        if let Some(large) = batch.pop_if(|upload| !is_small(&upload.key)) {
            let uploaded = match self.tiers.local.get(&large.key, 0).await {
                Ok(blob) => self.tiers.backing.put(&large.key, blob).await,
                Err(error) => Err(error),
            };
            return finish(large, uploaded);
        }
        let Ok(_permit) = self.batches.acquire().await else {
            return;
        };
        let digests: Vec<Digest> = batch.iter().map(|upload| upload.key).collect();
        let contents = self.tiers.local.get_batch(&digests).await;
        let (mut readable, mut blobs): (Vec<UploadTask>, Vec<(Digest, Bytes)>) = Default::default();
        for (upload, content) in batch.into_iter().zip(contents) {
            match content {
                Ok(content) => {
                    blobs.push((upload.key, content));
                    readable.push(upload);
                }
                Err(error) => finish(upload, Err(error)),
            }
        }
        let uploaded = self.tiers.backing.put_batch(blobs).await;
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
fn finish(upload: UploadTask, uploaded: Result<Put>) {
    let outcome = Arc::clone(&upload.value);
    drop(upload);
    outcome.send_replace(Some(uploaded));
}

/// Publishes a blob in the local tier, though that is no condition of a successful write.
pub(crate) async fn publish(digest: &Digest, complete: CompleteUpload) {
    if let Err(error) = complete.publish().await {
        tracing::debug!(%digest, %error, "failed to store an uploaded blob in the local tier");
    }
}
