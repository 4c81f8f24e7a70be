//! Brings the backing cache what was accepted while it was down, in the order in which it was.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use gorego_storage::{
    ActionCache, Blob, BlobStore, BlobStoreExt as _, CompletenessChecking, Digest, Error, Put,
    Result,
};
use reapi::v2::ActionResult;
use tokio::time::sleep;

use crate::{
    journal::{Journal, What},
    store::Tiers,
};

/// How many blobs go up together.
const TOGETHER: usize = 1000;
/// How long to wait after a failure, at first and at most.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// Replays whatever is accepted, until the proxy is closed.
pub(crate) async fn run(tiers: Arc<Tiers>) {
    let journal = Arc::clone(&tiers.journal);
    let mut depth = journal.depth();
    let mut wait = SHORTEST;
    while depth.wait_for(|depth| depth.entries > 0).await.is_ok() {
        let replayed = tiers.replay(&journal).await;
        let left = *journal.depth().borrow();
        match replayed {
            Ok(()) if left.entries == 0 => {
                tracing::info!("the backing cache has all that waited for it");
                wait = SHORTEST;
            }
            Ok(()) => wait = SHORTEST,
            Err(error) => {
                let (entries, bytes) = (left.entries, left.bytes);
                tracing::warn!(entries, bytes, %error, "writes wait for the backing cache");
                sleep(wait).await;
                wait = (wait * 2).min(LONGEST);
            }
        }
    }
}

impl Tiers {
    /// Brings up what has waited longest.
    async fn replay(self: &Arc<Self>, journal: &Arc<Journal>) -> Result<()> {
        let first = journal.first(TOGETHER).await?;
        if let [What::Action(instance, action, at)] = first.as_slice() {
            let result = journal.result(*at).await?;
            self.replay_action(instance, action, result).await?;
        } else {
            let blob = |what: &What| match what {
                What::Blob(digest) => Some(*digest),
                What::Action(..) => None,
            };
            self.replay_blobs(first.iter().filter_map(blob).collect())
                .await?;
        }
        journal.done(first.len()).await
    }

    async fn replay_blobs(self: &Arc<Self>, digests: Vec<Digest>) -> Result<()> {
        let missing = self.backing.find_missing(&digests).await?;
        let pushed = self.push_up(missing.clone()).await;
        for digest in missing.iter().filter(|digest| !pushed.contains(digest)) {
            if self.local.contains(digest).await? {
                let why = format!("the backing cache did not take {digest}");
                return Err(Error::Unavailable(why));
            }
            tracing::error!(%digest, "a blob that waited for the backing cache is gone");
        }
        Ok(())
    }

    /// Puts a result there, unless there is a newer one. Where nobody can tell which one is newer,
    /// the one that is there stays, if it is of use.
    async fn replay_action(
        self: &Arc<Self>,
        instance: &str,
        action: &Digest,
        ours: ActionResult,
    ) -> Result<()> {
        if let Some(theirs) = self.actions.get(instance, action).await? {
            let stays = theirs == ours
                || (!is_newer(&ours, &theirs)
                    && is_complete(action, theirs, Arc::clone(&self.backing)).await?);
            if stays {
                return Ok(());
            }
        }
        let up: Arc<dyn BlobStore> = Arc::new(Upward(Arc::clone(self)));
        if !is_complete(action, ours.clone(), up).await? {
            tracing::warn!(instance, %action, "a result whose outputs are gone is not replayed");
            return Ok(());
        }
        self.actions.put(instance, action, ours).await
    }
}

/// Whether the action that `ours` is of ended after that of `theirs`, as far as both tell.
fn is_newer(ours: &ActionResult, theirs: &ActionResult) -> bool {
    let ended = |result: &ActionResult| {
        let metadata = result.execution_metadata.as_ref()?;
        let at = metadata.execution_completed_timestamp.as_ref()?;
        Some((at.seconds, at.nanos))
    };
    ended(ours)
        .zip(ended(theirs))
        .is_some_and(|(ours, theirs)| ours > theirs)
}

async fn is_complete(
    action: &Digest,
    result: ActionResult,
    blobs: Arc<dyn BlobStore>,
) -> Result<bool> {
    let checked = CompletenessChecking::new(Arc::new(Only(result)), blobs);
    Ok(checked.get("", action).await?.is_some())
}

/// A result, whatever it is asked for.
#[derive(Debug)]
struct Only(ActionResult);

#[async_trait]
impl ActionCache for Only {
    async fn get(&self, _: &str, _: &Digest) -> Result<Option<ActionResult>> {
        Ok(Some(self.0.clone()))
    }

    async fn size(&self, _: &str, _: &Digest) -> Result<u64> {
        Ok(prost::Message::encoded_len(&self.0) as u64)
    }

    async fn put(&self, _: &str, _: &Digest, _: ActionResult) -> Result<()> {
        Err(Error::Unavailable("nothing is kept here".to_owned()))
    }
}

/// The proxy for whoever wants a blob to be in the backing cache: it is brought up from here if it
/// has to be.
struct Upward(Arc<Tiers>);

#[async_trait]
impl BlobStore for Upward {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let not_local = self.0.local.find_missing(digests).await?;
        self.0.find_missing_above(digests, not_local).await
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        self.0.get(digest, offset).await
    }

    async fn put(&self, digest: &Digest, _: Blob) -> Result<Put> {
        Err(Error::Unavailable(format!("{digest} is not to be put")))
    }
}

impl std::fmt::Debug for Upward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Upward").field(&self.0.local).finish()
    }
}
