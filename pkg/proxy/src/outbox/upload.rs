//! Uploads pending writes to the backing cache.

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    mem,
    panic::AssertUnwindSafe,
    slice,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, future::join_all, stream};
use gorego_storage::{BlobStore, CHUNK_SIZE, Digest, Error, Result};
use reapi::v2::ActionResult;
use tokio::time::sleep;

use super::{Depth, Outcome, WriteKey, fingerprint};
use crate::{
    missing::by_function,
    outputs::{Upward, is_complete},
    store::Tiers,
};

/// The number of pending writes in a batch, and about the bytes of their blobs.
const BATCH: usize = 1000;
const BATCH_BYTES: u64 = 256 << 20;
/// The number of results that are uploaded at once.
const RESULTS: usize = 32;
/// The number of blobs that are uploaded alone at once after they were refused together.
const ALONE: usize = 8;
/// The number of those in a batch if their refusal may pass.
const FEW: usize = 32;
/// The shortest and the longest pause after a pass that left something.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// The outcome of one pass over the outbox.
#[derive(Default)]
struct Pass {
    outcomes: Vec<(u64, Outcome)>,
    uploaded: bool,
    /// The reason why something is left.
    error: Option<Error>,
}

impl Pass {
    fn record(&mut self, number: u64, outcome: Outcome) {
        match &outcome {
            Outcome::Done => self.uploaded = true,
            Outcome::Unreached(error) | Outcome::Refused(error) => {
                self.error.get_or_insert_with(|| error.clone());
            }
            Outcome::Rejected(_) => {}
        }
        self.outcomes.push((number, outcome));
    }

    async fn settle(&mut self, tiers: &Tiers) {
        let outcomes = mem::take(&mut self.outcomes);
        tiers
            .outbox
            .settle(outcomes, tiers.options.outbox_retry)
            .await;
    }
}

/// Uploads pending writes until the proxy is closed.
pub(crate) async fn run(tiers: Arc<Tiers>) {
    let mut depth = tiers.outbox.depth();
    let (mut pause, mut round) = (SHORTEST, 0);
    while depth.wait_for(|depth| depth.entries > 0).await.is_ok() {
        let pass = tiers.upload_pending(&mut round).await;
        if pass.uploaded {
            pause = SHORTEST;
        }
        let Depth { entries, bytes, .. } = *tiers.outbox.depth().borrow();
        if let Some(error) = pass.error {
            tracing::warn!(entries, bytes, %error, "pending writes wait for the backing cache");
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST);
        } else if entries == 0 {
            tracing::info!("all pending writes are uploaded");
        }
    }
}

impl Tiers {
    /// Goes once through the pending writes in order. A write that fails stays behind, so that it holds
    /// up no other. An outage ends the pass.
    async fn upload_pending(self: &Arc<Self>, round: &mut usize) -> Pass {
        let mut pass = Pass::default();
        let (mut from, end) = (0, self.outbox.queue().end());
        loop {
            let batch = self.outbox.queue().first(from..end, BATCH, BATCH_BYTES);
            let Some((last, _)) = batch.last() else {
                return pass;
            };
            from = last.saturating_add(1);
            // Another one each time, in case that the backing cache fails for this one alone.
            *round = round.wrapping_add(1);
            let probed = round.checked_rem(batch.len()).and_then(|at| batch.get(at));
            if let Some((_, key)) = probed
                && let Err(error) = self.probe(key.digest()).await
            {
                pass.error = Some(error);
                return pass;
            }
            let upload = AssertUnwindSafe(self.upload_batch(batch, &mut pass));
            let uploaded = upload.catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!("upload of pending writes panicked");
                Ok(())
            });
            pass.settle(self).await;
            if let Err(error) = uploaded {
                pass.error = Some(error);
                return pass;
            }
        }
    }

    /// Fails if the backing cache is down, or if this proxy may not use it.
    async fn probe(&self, digest: &Digest) -> Result<()> {
        match self.backing.find_missing(slice::from_ref(digest)).await {
            Err(error) if error.is_general() => {
                self.outbox.queue().acceptance.interrupted();
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Uploads the blobs of a batch, then its results.
    async fn upload_batch(
        self: &Arc<Self>,
        batch: Vec<(u64, WriteKey)>,
        pass: &mut Pass,
    ) -> Result<()> {
        let (mut blobs, mut results) = (HashMap::new(), Vec::new());
        for (number, key) in batch {
            match key {
                WriteKey::Blob(digest) => drop(blobs.insert(digest, number)),
                WriteKey::Result(..) => results.push((number, key)),
            }
        }
        self.upload_blobs(&blobs, pass).await;
        for chunk in results.chunks(RESULTS) {
            let uploads = chunk.iter().map(|(number, key)| async move {
                let uploaded = self.upload_result(*number, key).await;
                (*number, uploaded.err().unwrap_or(Outcome::Done))
            });
            let outcomes = join_all(uploads).await;
            let is_unreached = |(_, outcome): &_| matches!(outcome, Outcome::Unreached(_));
            let are_unreached = outcomes.iter().all(is_unreached);
            for (number, outcome) in outcomes {
                pass.record(number, outcome);
            }
            pass.settle(self).await;
            // All of them may name something that fails by itself.
            if are_unreached && let Some((_, key)) = chunk.first() {
                self.probe(key.digest()).await?;
            }
        }
        Ok(())
    }

    async fn upload_blobs(self: &Arc<Self>, blobs: &HashMap<Digest, u64>, pass: &mut Pass) {
        let record = |pass: &mut Pass, digest: &Digest, uploaded: Result<()>| {
            if let Some(number) = blobs.get(digest) {
                let outcome = uploaded.map_or_else(Outcome::from, |()| Outcome::Done);
                pass.record(*number, outcome);
            }
        };
        let mut in_order: Vec<(&Digest, &u64)> = blobs.iter().collect();
        in_order.sort_unstable_by_key(|(_, number)| **number);
        for digests in by_function(in_order.into_iter().map(|(digest, _)| *digest).collect()) {
            let missing = match self.backing.find_missing(&digests).await {
                Ok(missing) => missing,
                Err(error) if error.is_general() => {
                    for digest in &digests {
                        record(pass, digest, Err(error.clone()));
                    }
                    continue;
                }
                // The upload of each tells more.
                Err(_) => digests.clone(),
            };
            let pushed = self.push_up(missing.clone()).await;
            let mut pushed: HashMap<Digest, Result<()>> = pushed.into_iter().collect();
            let mut again: HashSet<Digest> = refused_together(&missing, &pushed);
            for digest in &missing {
                if matches!(pushed.get(digest), Some(Err(Error::NotFound(_))))
                    && let Some(number) = blobs.get(digest)
                    && self.outbox.restore(*number, digest).await
                {
                    again.insert(*digest);
                }
            }
            for digest in digests.iter().filter(|digest| !again.contains(digest)) {
                record(pass, digest, pushed.remove(digest).unwrap_or(Ok(())));
            }
            pass.settle(self).await;
            let again = again.into_iter().map(|digest| async move {
                let pushed = self.push_one(&digest).await;
                (digest, pushed.map(drop))
            });
            let mut again = stream::iter(again.collect::<Vec<_>>()).buffer_unordered(ALONE);
            while let Some((digest, pushed)) = again.next().await {
                record(pass, &digest, pushed);
            }
        }
        pass.settle(self).await;
    }

    /// Uploads a result, unless the backing cache has a newer one. Where the times do not tell, a
    /// complete result of the backing cache stays unless ours replaced it.
    async fn upload_result(self: &Arc<Self>, number: u64, key: &WriteKey) -> Result<(), Outcome> {
        let WriteKey::Result(instance, action) = key else {
            return Ok(());
        };
        let Some((entry, _)) = self.outbox.read(number, key).await? else {
            return Err(Outcome::Rejected(Error::NotFound(*action)));
        };
        let ours = entry.result;
        let upward: Arc<dyn BlobStore> = Arc::new(Upward(Arc::clone(self)));
        let trees = &self.options.memory.bringing;
        match is_complete(action, ours.clone(), upward, trees).await {
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
        while let Some(theirs) = self.actions.get(instance, action).await.map_err(unread)? {
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
            let is_complete = is_complete(action, theirs.clone(), blobs, trees).await;
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

/// Returns the blobs to upload alone, since another one may be the reason for their refusal: all that
/// would be dropped for it, and a few of the others.
fn refused_together(missing: &[Digest], pushed: &HashMap<Digest, Result<()>>) -> HashSet<Digest> {
    let small = |digest: &&Digest| digest.size() <= CHUNK_SIZE as u64;
    if missing.iter().filter(small).count() < 2 {
        return HashSet::new();
    }
    let mut few = 0..FEW;
    let is_refused = |digest: &&Digest| match pushed.get(digest) {
        Some(Err(error @ Error::Refused { .. })) => !error.may_pass() || few.next().is_some(),
        _ => false,
    };
    let together = missing.iter().filter(small).filter(is_refused);
    together.copied().collect()
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
