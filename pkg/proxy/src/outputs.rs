//! What action results name, and where it is.

use std::{
    fmt, mem,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gorego_limits::Budget;
use gorego_storage::{
    ActionCache, Blob, BlobStore, Chunks, CompletenessChecking, Digest, Error, Put, Result,
};
use gorego_storage_local::LocalStore;
use reapi::v2::ActionResult;

use crate::store::Tiers;

/// Whether all that the result names is in `blobs`. Only what was read to its end, and found to be right
/// there, tells of something that is not.
pub(crate) async fn is_complete(
    action: &Digest,
    result: ActionResult,
    blobs: Arc<dyn BlobStore>,
    memory: &Budget,
) -> Result<bool> {
    let rests = Rests::default();
    let read = Arc::new(Read {
        blobs,
        rests: Arc::clone(&rests),
    });
    let checked = CompletenessChecking::new(Arc::new(Only(result)), read);
    let checked = checked.within(memory.clone());
    let is_complete = checked.get("", action).await?.is_some();
    let rests = mem::take(&mut *rests.lock().unwrap_or_else(PoisonError::into_inner));
    for mut rest in rests {
        while rest.next().await.transpose()?.is_some() {}
    }
    Ok(is_complete)
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
    let directories = mem::take(&mut files.output_directories);
    let parts = directories.into_iter().map(|directory| ActionResult {
        output_directories: vec![directory],
        ..ActionResult::default()
    });
    for part in parts.chain([files]) {
        let looking = &tiers.options.memory.looking;
        is_complete(action, part, Arc::clone(&here) as _, looking).await?;
    }
    let mut found = here.found.lock().unwrap_or_else(PoisonError::into_inner);
    let mut found = mem::take(&mut *found);
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

/// What is left of content that somebody stopped reading.
type Rests = Arc<Mutex<Vec<Chunks>>>;

/// Gives what `blobs` gives, and keeps what its readers leave unread: content proves to be right only at
/// its end, also what was enough for them, such as nonsense.
struct Read {
    blobs: Arc<dyn BlobStore>,
    rests: Rests,
}

#[async_trait]
impl BlobStore for Read {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        self.blobs.find_missing(digests).await
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        let stream = match self.blobs.get(digest, offset).await? {
            Blob::Stream(stream) => stream,
            here => return Ok(here),
        };
        let unread = Unread {
            chunks: Some(stream.chunks),
            rests: Arc::clone(&self.rests),
        };
        let chunks = stream::unfold(unread, |mut unread| async move {
            let next = unread.chunks.as_mut()?.next().await;
            if !matches!(next, Some(Ok(_))) {
                unread.chunks = None;
            }
            Some((next?, unread))
        });
        Ok(Blob::stream(chunks))
    }

    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        self.blobs.get_batch(digests).await
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        self.blobs.put(digest, blob).await
    }
}

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Read").field(&self.blobs).finish()
    }
}

/// What is yet to be read of some content.
struct Unread {
    chunks: Option<Chunks>,
    rests: Rests,
}

impl Drop for Unread {
    fn drop(&mut self) {
        if let Some(chunks) = self.chunks.take() {
            let mut rests = self.rests.lock().unwrap_or_else(PoisonError::into_inner);
            rests.push(chunks);
        }
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
