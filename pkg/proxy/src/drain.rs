//! The drain of the outbox: uploads pending writes to the backing cache.

use std::{
    cmp::Ordering, collections::HashMap, panic::AssertUnwindSafe, sync::Arc, time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, future, stream};
use gorego_storage::{ActionCacheExt as _, BlobStore, Digest, Error, Put, Result, compare_ends};
use tokio::time::sleep;

use crate::{
    batches::is_small,
    outbox::{
        entry::{WriteKey, fingerprint},
        queue::{Depth, ReplayError},
    },
    outputs::is_complete,
    presence::UploadingBlobs,
    uploads::Uploads,
};

/// The number of pending writes in a batch.
const BATCH: usize = 1000;
/// The number of results that are uploaded at once.
const RESULTS: usize = 32;
/// The number of blobs uploaded one by one at a time, after a batch with them was refused.
const SINGLE_UPLOADS: usize = 8;
/// The most blobs of one batch that are tried alone after a refusal that may be temporary.
const MAX_SINGLES: usize = 32;
/// The shortest and the longest pause after a pass that left a write pending.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

impl Uploads {
    /// Uploads pending writes until the proxy is closed. A write leaves the outbox once it is stored, rejected or no
    /// longer needed. The pauses between passes double.
    pub(crate) async fn drain(self: Arc<Self>) {
        let mut depth = self.tiers.outbox.depth();
        let mut pause = SHORTEST;
        while depth.wait_for(|depth| depth.entries > 0).await.is_ok() {
            let drained = self.pass().await;
            let Depth { entries, bytes, .. } = *self.tiers.outbox.depth().borrow();
            if let Err(error) = drained {
                tracing::warn!(entries, bytes, %error, "writes are pending for the backing cache");
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST);
            } else {
                pause = SHORTEST;
                if entries == 0 {
                    tracing::info!("all pending writes are uploaded");
                }
            }
        }
    }

    /// Goes once through the pending writes in order. A write that fails delays no other; an outage ends the
    /// pass. Returns the first reason why a write stays pending.
    async fn pass(self: &Arc<Self>) -> Result<()> {
        let (mut from, end) = (0, self.tiers.outbox.queue.lock().next);
        let mut drained = Ok(());
        loop {
            let batch = self.tiers.outbox.queue.lock().first(from..end, BATCH);
            let Some((last, key)) = batch.last() else {
                return drained;
            };
            from = last.saturating_add(1);
            // No digest of a write, since the backing cache may fail for one alone.
            let probe = key.digest().function().digest(b"probe");
            if let Err(error) = self.tiers.backing.store.find_missing(&[probe]).await
                && error.is_general()
            {
                self.tiers.outbox.queue.lock().interrupted();
                return Err(error);
            }
            let upload = AssertUnwindSafe(self.drain_batch(batch)).catch_unwind();
            let panicked = |_| Err(Error::Unavailable("upload of a batch panicked".to_owned()));
            drained = drained.and(upload.await.unwrap_or_else(panicked));
        }
    }

    async fn drain_batch(self: &Arc<Self>, batch: Vec<(u64, WriteKey)>) -> Result<()> {
        let (mut blobs, mut results) = (Vec::new(), Vec::new());
        for (number, key) in batch {
            match key {
                WriteKey::Blob(digest) => blobs.push((number, digest)),
                WriteKey::Result(instance, action) => results.push((number, instance, action)),
            }
        }
        let drained = self.drain_blobs(blobs).await;
        let uploads = results
            .into_iter()
            .map(|(number, instance, action)| async move {
                (number, self.drain_result(number, &instance, &action).await)
            });
        drained.and(self.record_outcomes(uploads, RESULTS).await)
    }

    /// Runs uploads, some at once, and records their outcomes. Returns the first reason why a write stays pending.
    async fn record_outcomes(
        &self,
        uploads: impl Iterator<Item = impl Future<Output = (u64, Result<(), ReplayError>)>>,
        at_once: usize,
    ) -> Result<()> {
        let mut uploads = stream::iter(uploads).buffer_unordered(at_once);
        let mut drained = Ok(());
        let (outbox, retry) = (&self.tiers.outbox, self.tiers.options.outbox_retry);
        while let Some((number, uploaded)) = uploads.next().await {
            drained = drained.and(outbox.record_outcome(number, uploaded, retry).await);
        }
        drained
    }

    /// Uploads blobs together. Then uploads alone the blobs that the local tier lacks, and the small blobs of a refused
    /// batch, of which another may have been the cause.
    async fn drain_blobs(self: &Arc<Self>, blobs: Vec<(u64, Digest)>) -> Result<()> {
        let digests: Vec<Digest> = blobs.iter().map(|(_, digest)| *digest).collect();
        // If the lookup fails, the error of each upload is more specific.
        let missing = self.tiers.backing.store.find_missing(&digests).await;
        let missing = missing.unwrap_or(digests);
        let small = missing.iter().filter(|digest| is_small(digest));
        let are_together = small.count() > 1;
        let uploaded = self.upload_all(missing).await;
        let mut uploaded: HashMap<Digest, Result<_>> = uploaded.into_iter().collect();
        let (mut ended, mut alone, mut singles) = (Vec::new(), Vec::new(), 0..MAX_SINGLES);
        for (number, digest) in blobs {
            let uploaded = uploaded.remove(&digest).unwrap_or(Ok(Put::Existed));
            let is_retried = match &uploaded {
                Err(Error::NotFound(_)) => true,
                Err(error @ Error::Refused { .. }) if are_together && is_small(&digest) => {
                    !error.may_pass() || singles.next().is_some()
                }
                _ => false,
            };
            if is_retried {
                alone.push((number, digest));
            } else {
                let uploaded = uploaded.map(drop).map_err(ReplayError::from);
                ended.push(future::ready((number, uploaded)));
            }
        }
        let drained = self
            .record_outcomes(ended.into_iter(), SINGLE_UPLOADS)
            .await;
        let alone = alone.into_iter().map(|(number, digest)| async move {
            let uploaded = match self.tiers.outbox.restore(number, &digest).await {
                Ok(()) => self.upload(&digest).await.map(drop),
                Err(error) => Err(error),
            };
            (number, uploaded.map_err(ReplayError::from))
        });
        drained.and(self.record_outcomes(alone, SINGLE_UPLOADS).await)
    }

    /// Uploads a pending result, unless the backing cache has a newer complete one. Where the completion times are
    /// equal or missing, a complete result of the backing cache stays unless the pending one replaced it.
    async fn drain_result(
        self: &Arc<Self>,
        number: u64,
        instance: &str,
        action: &Digest,
    ) -> Result<(), ReplayError> {
        let Some(entry) = self.tiers.outbox.read(number, action).await? else {
            let reason = format!("entry of a result of {action} is corrupt or missing");
            let (error, is_final) = (Error::Unavailable(reason), true);
            return Err(ReplayError { error, is_final });
        };
        let (ours, trees) = (entry.result, &self.tiers.options.memory.transfer_trees);
        let results = &self.tiers.backing_results;
        let blobs: Arc<dyn BlobStore> = Arc::new(UploadingBlobs(Arc::clone(self)));
        match is_complete(action, &ours, blobs, trees).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(instance, %action, "dropped a pending result with missing outputs");
                return Ok(());
            }
            // A tree was corrupted on its way to this proxy.
            Err(error @ Error::Mismatch { .. }) => return Err(temporary(error)),
            Err(error) => return Err(error.into()),
        }
        let name = (instance.to_owned(), *action);
        let lock = self.tiers.outbox.uploading.get_or_default(&name);
        let _locked = lock.lock().await;
        if !self.tiers.outbox.has_result(instance, action) {
            // A newer one was uploaded meanwhile.
            return Ok(());
        }
        let mut incomplete = None;
        // Nothing takes long between the last lookup and the put.
        while let Some(theirs) = results.find(instance, action).await.map_err(temporary)? {
            if theirs == ours {
                return Ok(());
            }
            let is_newer = match compare_ends(&ours, &theirs) {
                Some(Ordering::Greater) => true,
                Some(Ordering::Less) => false,
                Some(Ordering::Equal) | None => entry.replaced.contains(&fingerprint(&theirs)),
            };
            if is_newer || incomplete.as_ref() == Some(&theirs) {
                break;
            }
            let blobs = Arc::clone(&self.tiers.backing.store);
            let is_complete = is_complete(action, &theirs, blobs, trees).await;
            if is_complete.map_err(temporary)? {
                return Ok(());
            }
            incomplete = Some(theirs);
        }
        results.put(instance, action, ours).await?;
        self.tiers.outbox.queue.lock().accepted();
        Ok(())
    }
}

/// Returns the reason to retry a pending result. An error of the backing cache's result never rejects the pending one.
const fn temporary(error: Error) -> ReplayError {
    let is_final = false;
    ReplayError { error, is_final }
}
