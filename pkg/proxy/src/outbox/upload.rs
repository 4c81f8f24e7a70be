//! Uploads pending writes to the backing cache.

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, stream};
use gorego_storage::{ActionCacheExt as _, BlobStore, CHUNK_SIZE, Digest, Error, Result};
use reapi::v2::ActionResult;
use tokio::time::sleep;

use super::{Depth, Outcome, WriteKey, file_name, fingerprint};
use crate::{
    outputs::{Upward, is_complete},
    store::Tiers,
};

/// The number of pending writes in a batch.
const BATCH: usize = 1000;
/// The number of results that are uploaded at once.
const RESULTS: usize = 32;
/// The number of blobs that are uploaded alone at once after they were refused together.
const ALONE: usize = 8;
/// The number of those in a batch if their refusal may pass.
const FEW: usize = 32;
/// The shortest and the longest pause after a pass that left something.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// Uploads pending writes until the proxy is closed.
pub(crate) async fn run(tiers: Arc<Tiers>) {
    let mut depth = tiers.outbox.depth();
    let (mut pause, mut round) = (SHORTEST, 0);
    while depth.wait_for(|depth| depth.entries > 0).await.is_ok() {
        let uploaded = tiers.upload_pending(&mut round).await;
        let Depth { entries, bytes, .. } = *tiers.outbox.depth().borrow();
        if let Err(error) = uploaded {
            tracing::warn!(entries, bytes, %error, "pending writes wait for the backing cache");
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

impl Tiers {
    /// Goes once through the pending writes in order. A write that fails stays behind, so that it holds
    /// up no other. An outage ends the pass. Returns the first reason why a write is left.
    async fn upload_pending(self: &Arc<Self>, round: &mut usize) -> Result<()> {
        let (mut from, end) = (0, self.outbox.queue().next);
        let mut uploaded = Ok(());
        loop {
            let batch = self.outbox.queue().first(from..end, BATCH);
            let Some((last, _)) = batch.last() else {
                return uploaded;
            };
            from = last.saturating_add(1);
            // Another one each time, in case that the backing cache fails for this one alone.
            *round = round.wrapping_add(1);
            let probed = round.checked_rem(batch.len()).and_then(|at| batch.get(at));
            if let Some((_, key)) = probed
                && let Err(error) = self.backing.find_missing(&[*key.digest()]).await
                && error.is_general()
            {
                self.outbox.queue().interrupted();
                return Err(error);
            }
            let upload = AssertUnwindSafe(self.upload_batch(batch)).catch_unwind();
            let panicked = |_| Err(Error::Unavailable("upload of a batch panicked".to_owned()));
            uploaded = uploaded.and(upload.await.unwrap_or_else(panicked));
        }
    }

    /// Uploads the blobs of a batch, then its results.
    async fn upload_batch(self: &Arc<Self>, batch: Vec<(u64, WriteKey)>) -> Result<()> {
        let (mut blobs, mut results) = (Vec::new(), Vec::new());
        for (number, key) in batch {
            match key {
                WriteKey::Blob(digest) => blobs.push((number, digest)),
                WriteKey::Result(instance, action) => results.push((number, instance, action)),
            }
        }
        let mut uploaded = self.upload_blobs(blobs).await;
        let uploads = results
            .into_iter()
            .map(|(number, instance, action)| async move {
                let uploaded = self.upload_result(number, &instance, &action).await;
                (number, uploaded.err().unwrap_or(Outcome::Done))
            });
        let uploads = stream::iter(uploads.collect::<Vec<_>>());
        let mut uploads = uploads.buffer_unordered(RESULTS).ready_chunks(RESULTS);
        while let Some(outcomes) = uploads.next().await {
            uploaded = uploaded.and(self.settle_uploads(outcomes).await);
        }
        uploaded
    }

    async fn settle_uploads(&self, outcomes: Vec<(u64, Outcome)>) -> Result<()> {
        self.outbox
            .settle(outcomes, self.options.outbox_retry)
            .await
    }

    /// Uploads blobs together, and alone those that were refused together or are lost.
    async fn upload_blobs(self: &Arc<Self>, blobs: Vec<(u64, Digest)>) -> Result<()> {
        let digests: Vec<Digest> = blobs.iter().map(|(_, digest)| *digest).collect();
        // Where that fails for one of them, the upload of each tells more.
        let missing = self.backing.find_missing(&digests).await.unwrap_or(digests);
        let pushed = self.push_up(missing.clone()).await;
        let mut pushed: HashMap<Digest, Result<()>> = pushed.into_iter().collect();
        let alone = to_upload_alone(&missing, &pushed);
        let is_alone = |(_, digest): &(u64, Digest)| alone.contains(digest);
        let (again, rest): (Vec<_>, Vec<_>) = blobs.into_iter().partition(is_alone);
        let outcomes = rest.into_iter().map(|(number, digest)| {
            let pushed = pushed.remove(&digest).unwrap_or(Ok(()));
            (number, Outcome::from(pushed))
        });
        let uploaded = self.settle_uploads(outcomes.collect()).await;
        let again = again.into_iter().map(|(number, digest)| async move {
            let pushed = async {
                self.outbox.restore(number, &digest).await?;
                self.push_one(&digest).await
            };
            (number, Outcome::from(pushed.await))
        });
        let again = stream::iter(again.collect::<Vec<_>>()).buffer_unordered(ALONE);
        uploaded.and(self.settle_uploads(again.collect().await).await)
    }

    /// Uploads a result, unless the backing cache has a newer one. Where the times do not tell, a
    /// complete result of the backing cache stays unless ours replaced it.
    async fn upload_result(
        self: &Arc<Self>,
        number: u64,
        instance: &str,
        action: &Digest,
    ) -> Result<(), Outcome> {
        let name = file_name(number, &WriteKey::result(instance, action));
        let Some(entry) = self.outbox.read(&name, action).await? else {
            let gone = Error::Unavailable(format!("entry {name} is corrupt or gone"));
            return Err(Outcome::Rejected(gone));
        };
        let ours = entry.result;
        let upward: Arc<dyn BlobStore> = Arc::new(Upward(Arc::clone(self)));
        let trees = &self.options.memory.bringing;
        match is_complete(action, &ours, upward, trees).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(instance, %action, "result whose outputs are gone is not uploaded");
                return Ok(());
            }
            // Damaged on its way to this proxy.
            Err(error @ Error::Mismatch { .. }) => return Err(Outcome::Refused(error)),
            Err(error) => return Err(error.into()),
        }
        let _lock = self.outbox.uploading.alone(&(instance, action)).await;
        if !self.outbox.has_result(instance, action) {
            // A newer one was uploaded meanwhile.
            return Ok(());
        }
        let mut incomplete = None;
        // The result that the put replaces is one that was looked at just before.
        while let Some(theirs) = self.actions.find(instance, action).await.map_err(unread)? {
            if theirs == ours {
                return Ok(());
            }
            let is_newer = match by_end(&ours, &theirs) {
                Some(Ordering::Greater) => true,
                Some(Ordering::Less) => false,
                Some(Ordering::Equal) | None => entry.replaced.contains(&fingerprint(&theirs)),
            };
            if is_newer || incomplete.as_ref() == Some(&theirs) {
                break;
            }
            let blobs = Arc::clone(&self.backing);
            let is_complete = is_complete(action, &theirs, blobs, trees).await;
            if is_complete.map_err(unread)? {
                return Ok(());
            }
            incomplete = Some(theirs);
        }
        self.actions.put(instance, action, ours).await?;
        self.outbox.accepted();
        Ok(())
    }
}

/// A result of the backing cache that cannot be read rejects none of ours.
fn unread(error: Error) -> Outcome {
    match Outcome::from(error) {
        Outcome::Rejected(error) => Outcome::Refused(error),
        outcome => outcome,
    }
}

/// Returns the blobs to upload alone: those that the local tier lacks, and small ones that may be
/// refused for the sake of another. Of those whose refusal may pass, a few are enough.
fn to_upload_alone(missing: &[Digest], pushed: &HashMap<Digest, Result<()>>) -> HashSet<Digest> {
    let is_small = |digest: &&Digest| digest.size() <= CHUNK_SIZE as u64;
    let are_together = missing.iter().filter(is_small).nth(1).is_some();
    let mut few = 0..FEW;
    let alone = missing.iter().filter(|digest| match pushed.get(digest) {
        Some(Err(Error::NotFound(_))) => true,
        Some(Err(error @ Error::Refused { .. })) if are_together && is_small(digest) => {
            !error.may_pass() || few.next().is_some()
        }
        _ => false,
    });
    alone.copied().collect()
}

/// Compares the ends of two actions, as far as both results tell.
fn by_end(ours: &ActionResult, theirs: &ActionResult) -> Option<Ordering> {
    let ended = |result: &ActionResult| {
        let metadata = result.execution_metadata.as_ref()?;
        let at = metadata.execution_completed_timestamp.as_ref()?;
        Some((at.seconds, at.nanos))
    };
    Some(ended(ours)?.cmp(&ended(theirs)?))
}
