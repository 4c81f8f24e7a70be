//! A store in memory: for tests, and the plainest statement of what a store does.

use std::{
    collections::HashMap,
    fmt, mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use gorego_limits::Budget;
use prost::Message as _;
use reapi::v2::ActionResult;
use tokio::sync::Notify;

use crate::{
    ActionCache, Blob, BlobStore, BlobStream, CachedResult, Digest, Error, Put, Result, Resume,
    UploadId, Uploads, decoded::result_memory,
};

/// Keeps everything, for ever, in memory. Not for production: nothing bounds it.
#[derive(Default)]
pub struct MemoryStore {
    state: Mutex<State>,
    /// Rung after every blob that was stored.
    changed: Notify,
}

#[derive(Default)]
struct State {
    blobs: HashMap<Digest, Bytes>,
    results: HashMap<(String, Digest), ActionResult>,
    partial: HashMap<(UploadId, Digest), Vec<u8>>,
}

impl MemoryStore {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes a blob, as eviction would.
    pub fn remove(&self, digest: &Digest) {
        self.state().blobs.remove(digest);
    }

    fn has(&self, digest: &Digest) -> bool {
        digest.is_empty_blob() || self.state().blobs.contains_key(digest)
    }

    fn publish(&self, digest: &Digest, content: Bytes) -> Result<Put> {
        let mut meant = [Some(digest.only()), digest.other()].into_iter().flatten();
        let Some(digest) = meant.find(|digest| digest.is_of(&content)) else {
            return Err(Error::Mismatch {
                expected: *digest,
                actual: digest.function().digest(&content).to_string(),
            });
        };
        self.state().blobs.insert(digest, content);
        self.changed.notify_waiters();
        Ok(Put::Stored)
    }

    async fn put_stream(&self, digest: &Digest, stream: BlobStream) -> Result<Put> {
        let mut receiving = self.resume(digest, stream.resume)?;
        let receive = async {
            let mut chunks = stream.chunks;
            while let Some(chunk) = chunks.next().await {
                receiving.push(&chunk?)?;
            }
            Ok(())
        };
        tokio::select! {
            biased;
            () = self.published(digest) => {
                receiving.take();
                return Ok(Put::Existed);
            }
            received = receive => received?,
        }
        let resumed = receiving.resumed;
        self.publish(digest, receiving.take().into())
            .map_err(|error| match error {
                Error::Mismatch { expected, actual } if resumed => {
                    Error::ResumedMismatch { expected, actual }
                }
                other => other,
            })
    }

    /// Takes over what is here of an upload, up to where it goes on.
    fn resume(&self, digest: &Digest, resume: Option<Resume>) -> Result<Receiving<'_>> {
        let offset = resume.as_ref().map_or(0, |resume| resume.offset);
        let key = resume.map(|resume| (resume.upload, *digest));
        let mut content = Vec::new();
        if let Some(key) = &key {
            let mut state = self.state();
            let committed = state.partial.get(key).map_or(0, Vec::len) as u64;
            if committed < offset {
                return Err(Error::UploadOffset {
                    digest: *digest,
                    offset,
                    committed,
                });
            }
            content = state.partial.remove(key).unwrap_or_default();
            content.truncate(usize::try_from(offset).unwrap_or(usize::MAX));
        }
        Ok(Receiving {
            store: self,
            digest: *digest,
            key,
            content,
            resumed: offset > 0,
        })
    }

    /// Completes when the blob is here.
    async fn published(&self, digest: &Digest) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed, so that looking comes after.
            changed.as_mut().enable();
            if self.has(digest) {
                return;
            }
            changed.await;
        }
    }
}

/// Content on its way. Dropped, it is kept for a later attempt if the client gave the upload a
/// name.
struct Receiving<'a> {
    store: &'a MemoryStore,
    digest: Digest,
    key: Option<(UploadId, Digest)>,
    content: Vec<u8>,
    resumed: bool,
}

impl Receiving<'_> {
    fn push(&mut self, chunk: &Bytes) -> Result<()> {
        self.content.extend_from_slice(chunk);
        if self.content.len() as u64 <= self.digest.size() {
            return Ok(());
        }
        self.take();
        Err(Error::Mismatch {
            expected: self.digest,
            actual: format!("more than {} bytes", self.digest.size()),
        })
    }

    /// The content, of which nothing is kept.
    fn take(&mut self) -> Vec<u8> {
        self.key = None;
        mem::take(&mut self.content)
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let content = mem::take(&mut self.content);
            self.store.state().partial.insert(key, content);
        }
    }
}

#[async_trait]
impl BlobStore for MemoryStore {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let mut seen = std::collections::HashSet::new();
        Ok(digests
            .iter()
            .filter(|d| !self.has(d) && seen.insert(**d))
            .copied()
            .collect())
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        let content = if digest.is_empty_blob() {
            Bytes::new()
        } else {
            self.state()
                .blobs
                .get(digest)
                .cloned()
                .ok_or(Error::NotFound(*digest))?
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        if from > content.len() {
            return Err(Error::OffsetPastEnd {
                digest: *digest,
                offset,
            });
        }
        Ok(Blob::Bytes(content.slice(from..)))
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        if self.has(digest) {
            return Ok(Put::Existed);
        }
        match blob {
            Blob::Bytes(content) => self.publish(digest, content),
            Blob::File(file) => self.publish(digest, Blob::File(file).into_bytes().await?),
            Blob::Stream(stream) => self.put_stream(digest, stream).await,
        }
    }
}

#[async_trait]
impl Uploads for MemoryStore {
    async fn committed(&self, digest: &Digest, upload: &UploadId) -> Result<u64> {
        let key = (upload.clone(), *digest);
        Ok(self
            .state()
            .partial
            .get(&key)
            .map_or(0, |content| content.len() as u64))
    }
}

#[async_trait]
impl ActionCache for MemoryStore {
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        let name = (instance.to_owned(), *action);
        let found = self.state().results.get(&name).cloned();
        let result = found.ok_or(Error::NoResult(*action))?;
        let bytes = result_memory(result.encoded_len() as u64);
        let permit = memory.reserve(bytes).await.map_err(Error::no_memory)?;
        Ok(CachedResult { result, permit })
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        self.state()
            .results
            .insert((instance.to_owned(), *action), result);
        Ok(())
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}
