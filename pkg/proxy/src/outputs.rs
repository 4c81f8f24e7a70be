//! The outputs of action results, and which tier has them.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use gorego_limits::Budget;
use gorego_storage::{Blob, BlobStore, Digest, Error, Outputs, Put, Result, find_outputs};
use reapi::v2::ActionResult;

use crate::store::Tiers;

/// Reports whether `blobs` has all outputs of the result.
pub(crate) async fn is_complete(
    action: &Digest,
    result: &ActionResult,
    blobs: Arc<dyn BlobStore>,
    memory: &Budget,
) -> Result<bool> {
    let outputs = Outputs::of(action, result, Arc::clone(&blobs), memory.clone());
    let found = match outputs {
        Ok(outputs) => find_outputs(outputs, &*blobs).await,
        Err(error) => Err(error),
    };
    match found {
        Ok(()) => Ok(true),
        Err(error) if error.is_result_miss() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the outputs of the result that the local store has, as far as their trees are there, too. They
/// get a lease.
pub(crate) async fn local_outputs(
    tiers: &Tiers,
    action: &Digest,
    result: &ActionResult,
) -> Result<Vec<Digest>> {
    let local = Arc::clone(&tiers.local) as Arc<dyn BlobStore>;
    let memory = tiers.options.memory.looking.clone();
    let mut found = Vec::new();
    let mut outputs = match Outputs::of(action, result, Arc::clone(&local), memory) {
        Err(error) if error.is_result_miss() => return Ok(found),
        outputs => outputs?,
    };
    loop {
        let digests = match outputs.next().await {
            // A tree that is missing says nothing of the others.
            Err(error) if error.is_result_miss() => continue,
            digests => digests?,
        };
        let Some(digests) = digests else { break };
        // In the order in which they were asked for.
        let mut missing = local.find_missing(&digests).await?.into_iter().peekable();
        let is_local = |digest: &Digest| missing.next_if_eq(digest).is_none();
        found.extend(digests.into_iter().filter(is_local));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// A store that uploads to the backing cache what it lacks of the blobs looked up, from the local tier.
pub(crate) struct Upward(pub(crate) Arc<Tiers>);

#[async_trait]
impl BlobStore for Upward {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let not_local = self.0.local.find_missing(digests).await?;
        match self.0.find_missing_above(digests, not_local).await? {
            // They are not gone: they are not there yet.
            (_, Some(error)) => Err(error),
            (missing, None) => Ok(missing),
        }
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        match BlobStore::get(&*self.0.local, digest, offset).await {
            Ok(blob) => Ok(blob),
            // Not as for a client, to whom an outage may be a miss.
            Err(local) => match self.0.backing.get(digest, offset).await {
                Err(Error::NotFound(_)) if local.may_pass() => Err(local),
                backing => backing,
            },
        }
    }

    async fn put(&self, digest: &Digest, _: Blob) -> Result<Put> {
        Err(Error::Unavailable(format!("{digest} is not to be put")))
    }
}

impl fmt::Debug for Upward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Upward").field(&self.0.local).finish()
    }
}
