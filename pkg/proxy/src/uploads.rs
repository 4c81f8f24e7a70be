//! Uploads to the backing cache: the one way for complete blobs, with at most one upload of each at a time.
//!
//! An upload is owned by the proxy: if its caller is cancelled, a later one joins it. The client of the backing cache
//! retries it with backoff, as its content can be read again.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use gorego_storage::{BlobStore as _, Digest, Error, Put, Result};
use gorego_storage_local::CompleteUpload;
use tokio::sync::{Semaphore, watch};

use crate::{
    batches::{batches, is_small},
    recent::Recent,
    shared::Shared,
    tiers::Tiers,
};

/// The most batches of small blobs in memory, of all callers.
const BATCHES: usize = 32;
/// The most batches and large blobs that are uploaded at once for one caller.
const AT_ONCE: usize = 8;

/// The longest time for which a client relies on a reported blob: the length of a build.
const BUILD: Duration = Duration::from_hours(3);

/// The outcome of an upload; none while it is in progress.
type UploadOutcome = watch::Sender<Option<Result<Put>>>;
type Waiter = watch::Receiver<Option<Result<Put>>>;

/// The way of blobs to the backing cache.
#[derive(Debug)]
pub(crate) struct Uploads {
    pub(crate) tiers: Tiers,
    running: Shared<Digest, UploadOutcome>,
    batches: Semaphore,
    /// Empty unless blobs that only the local tier had were reported within the length of a build.
    pub(crate) reported: Recent<()>,
}

impl Uploads {
    pub(crate) fn new(tiers: Tiers) -> Self {
        Self {
            tiers,
            running: Shared::default(),
            batches: Semaphore::new(BATCHES),
            reported: Recent::new(BUILD, 1),
        }
    }

    /// Waits for an upload of the blob in progress; `None` if there is none.
    pub(crate) async fn running(&self, digest: &Digest) -> Option<Result<Put>> {
        let outcome = self.running.get(digest)?.subscribe();
        Some(wait(digest, outcome).await)
    }

    /// Joins the upload of a blob. A new one is returned, too: the caller carries it out.
    fn join(&self, digest: &Digest) -> (Waiter, Option<Arc<UploadOutcome>>) {
        let join = |upload: &Arc<UploadOutcome>| {
            let is_running = upload.borrow().is_none();
            is_running.then(|| upload.subscribe())
        };
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
                let (blob, tiers, digest) = (staged.blob()?, self.tiers.clone(), *digest);
                self.tiers.spawn(async move {
                    upload.send_replace(Some(tiers.backing.put(&digest, blob).await));
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
            new.extend(upload.map(|upload| (digest, upload)));
        }
        if !new.is_empty() {
            let uploads = Arc::clone(self);
            self.tiers
                .spawn(async move { uploads.carry_out(new).await });
        }
        let mut uploaded = Vec::with_capacity(joined.len());
        for (digest, outcome) in joined {
            uploaded.push((digest, wait(&digest, outcome).await));
        }
        uploaded
    }

    async fn carry_out(&self, mut batch: Vec<(Digest, Arc<UploadOutcome>)>) {
        if let Some((large, upload)) = batch.pop_if(|(digest, _)| !is_small(digest)) {
            let uploaded = match self.tiers.local.get(&large, 0).await {
                Ok(blob) => self.tiers.backing.put(&large, blob).await,
                Err(error) => Err(error),
            };
            upload.send_replace(Some(uploaded));
            return;
        }
        let Ok(_permit) = self.batches.acquire().await else {
            return;
        };
        let digests: Vec<Digest> = batch.iter().map(|(digest, _)| *digest).collect();
        let contents = self.tiers.local.get_batch(&digests).await;
        let (mut readable, mut blobs) = (Vec::new(), Vec::new());
        for ((digest, upload), content) in batch.into_iter().zip(contents) {
            match content {
                Ok(content) => {
                    blobs.push((digest, content));
                    readable.push(upload);
                }
                Err(error) => drop(upload.send_replace(Some(Err(error)))),
            }
        }
        let uploaded = self.tiers.backing.put_batch(blobs).await;
        for (upload, uploaded) in readable.into_iter().zip(uploaded) {
            upload.send_replace(Some(uploaded));
        }
    }
}

async fn wait(digest: &Digest, mut outcome: Waiter) -> Result<Put> {
    let outcome = outcome.wait_for(Option::is_some).await;
    let outcome = outcome.ok().and_then(|outcome| outcome.clone());
    outcome.unwrap_or_else(|| {
        let cut_off = format!("upload of {digest} to the backing cache was cut off");
        Err(Error::Unavailable(cut_off))
    })
}
