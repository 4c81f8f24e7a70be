//! What action results name, and where it is.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use gorego_storage::{
    ActionCache, Blob, BlobStore, CompletenessChecking, Digest, Error, LocalStore, Put, Result,
    TreeMemory,
};
use reapi::v2::ActionResult;

use crate::store::Tiers;

/// What the trees of results may take in memory while they are looked through, all together.
#[derive(Debug, Default)]
pub(crate) struct Trees {
    /// For whoever only looks.
    pub(crate) looking: Arc<TreeMemory>,
    /// For whoever brings up what is found. That may take long, and nobody who only looks waits for it.
    pub(crate) bringing: Arc<TreeMemory>,
}

/// Whether all that the result names is in `blobs`.
pub(crate) async fn is_complete(
    action: &Digest,
    result: ActionResult,
    blobs: Arc<dyn BlobStore>,
    memory: &Arc<TreeMemory>,
) -> Result<bool> {
    let checked = CompletenessChecking::new(Arc::new(Only(result)), blobs);
    let checked = checked.within(Arc::clone(memory));
    Ok(checked.get("", action).await?.is_some())
}

/// What the result names and the local store has, as far as that can be told without the backing cache.
pub(crate) async fn local_outputs(
    tiers: &Tiers,
    action: &Digest,
    result: &ActionResult,
) -> Result<Vec<Digest>> {
    let here = Arc::new(Here {
        local: Arc::clone(&tiers.local),
        found: Mutex::default(),
    });
    let mut files = result.clone();
    // One tree that is not here says nothing of the others.
    let directories = std::mem::take(&mut files.output_directories);
    let parts = directories.into_iter().map(|directory| ActionResult {
        output_directories: vec![directory],
        ..ActionResult::default()
    });
    for part in parts.chain([files]) {
        let looking = &tiers.trees.looking;
        is_complete(action, part, Arc::clone(&here) as _, looking).await?;
    }
    let mut found = here.found.lock().unwrap_or_else(PoisonError::into_inner);
    let mut found = std::mem::take(&mut *found);
    found.sort_unstable_by_key(Digest::to_string);
    found.dedup();
    Ok(found)
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

/// Keeps in mind which of the blobs that it is asked for are in the local store, and says of none that it
/// is not.
#[derive(Debug)]
struct Here {
    local: Arc<LocalStore>,
    found: Mutex<Vec<Digest>>,
}

#[async_trait]
impl BlobStore for Here {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let missing = self.local.find_missing(digests).await?;
        let mut missing = missing.into_iter().peekable();
        // In the order in which they were asked for.
        let here = digests
            .iter()
            .filter(|digest| missing.next_if_eq(digest).is_none());
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.extend(here);
        Ok(Vec::new())
    }

    /// A directory that is not here is as good as an empty one: the rest is looked through all the same.
    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        match BlobStore::get(&*self.local, digest, offset).await {
            Err(Error::NotFound(_)) => Ok(Blob::Bytes(Bytes::new())),
            found => found,
        }
    }

    async fn put(&self, digest: &Digest, _: Blob) -> Result<Put> {
        Err(Error::Unavailable(format!("{digest} is not to be put")))
    }
}

/// The proxy for whoever wants a blob to be in the backing cache: it is brought up from here if it
/// has to be.
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
            Err(here) => match self.0.backing.get(digest, offset).await {
                Err(Error::NotFound(_)) if here.may_pass() => Err(here),
                there => there,
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
