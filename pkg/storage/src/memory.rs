//! A store in memory, for tests.

mod links;

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use gorego_limits::Budget;
use parking_lot::Mutex;
use prost::Message as _;
use reapi::v2::ActionResult;
use scopeguard::ScopeGuard;
use tokio::sync::watch;

use crate::{
    ActionCache, ActionCacheExt as _, Blob, BlobStore, BlobStream, CachedResult, Digest, Error,
    Peek, Put, Result, UploadId, Uploads, decoded::result_memory,
};

/// A store in memory, for tests. Its size is not limited, and it never evicts.
#[derive(Default)]
pub struct MemoryStore {
    blobs: watch::Sender<HashMap<Digest, Bytes>>,
    results: Mutex<HashMap<(String, Digest), ActionResult>>,
    partial: Mutex<HashMap<(UploadId, Digest), Vec<u8>>>,
}

impl MemoryStore {
    /// Removes a blob, as an eviction does.
    pub fn remove(&self, digest: &Digest) {
        self.blobs.send_modify(|blobs| drop(blobs.remove(digest)));
    }

    fn has(&self, digest: &Digest) -> bool {
        digest.is_empty_blob() || self.blobs.borrow().contains_key(digest)
    }

    fn content(&self, digest: &Digest) -> Result<Bytes> {
        if digest.is_empty_blob() {
            return Ok(Bytes::new());
        }
        let found = self.blobs.borrow().get(digest).cloned();
        found.ok_or(Error::NotFound(*digest))
    }

    fn publish(&self, digest: &Digest, content: Bytes) -> Result<Put> {
        let mut digests = [Some(digest.only()), digest.other()].into_iter().flatten();
        let Some(digest) = digests.find(|digest| digest.is_of(&content)) else {
            return Err(Error::mismatch(digest, digest.function().digest(&content)));
        };
        self.blobs
            .send_modify(|blobs| drop(blobs.insert(digest, content)));
        Ok(Put::Stored)
    }

    async fn put_stream(&self, digest: &Digest, stream: BlobStream) -> Result<Put> {
        let offset = stream.resume.as_ref().map_or(0, |resume| resume.offset);
        let key = stream.resume.map(|resume| (resume.upload, *digest));
        let content = self.resume(digest, key.as_ref(), offset)?;
        // Kept when the upload breaks off, so that it can be resumed.
        let mut upload = scopeguard::guard(content, |content| {
            if let Some(key) = key {
                self.partial.lock().insert(key, content);
            }
        });
        let receive = async {
            let mut chunks = stream.chunks;
            while upload.len() as u64 <= digest.size()
                && let Some(chunk) = chunks.next().await
            {
                upload.extend_from_slice(&chunk?);
            }
            Ok::<_, Error>(false)
        };
        let existed = tokio::select! {
            biased;
            () = self.published(digest) => true,
            received = receive => received?,
        };
        let content = ScopeGuard::into_inner(upload);
        if existed {
            return Ok(Put::Existed);
        }
        if content.len() as u64 > digest.size() {
            let actual = format_args!("more than {} bytes", digest.size());
            return Err(Error::mismatch(digest, actual));
        }
        let put = self.publish(digest, content.into());
        put.map_err(|error| error.if_resumed(offset > 0))
    }

    /// Takes the stored bytes of an upload, up to the offset where it resumes.
    fn resume(
        &self,
        digest: &Digest,
        key: Option<&(UploadId, Digest)>,
        offset: u64,
    ) -> Result<Vec<u8>> {
        let Some(key) = key else {
            return Ok(Vec::new());
        };
        let mut partial = self.partial.lock();
        let committed = partial.get(key).map_or(0, Vec::len) as u64;
        if committed < offset {
            return Err(Error::UploadOffset {
                digest: *digest,
                offset,
                committed,
            });
        }
        let mut content = partial.remove(key).unwrap_or_default();
        content.truncate(usize::try_from(offset).unwrap_or(usize::MAX));
        Ok(content)
    }

    async fn published(&self, digest: &Digest) {
        let mut blobs = self.blobs.subscribe();
        let _ = blobs.wait_for(|blobs| blobs.contains_key(digest)).await;
    }
}

#[async_trait]
impl BlobStore for MemoryStore {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let mut seen = HashSet::new();
        let missing = digests.iter().filter(|d| !self.has(d) && seen.insert(**d));
        Ok(missing.copied().collect())
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        let content = self.content(digest)?;
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
        Ok(self.partial.lock().get(&key).map_or(0, Vec::len) as u64)
    }
}

#[async_trait]
impl ActionCache for MemoryStore {
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        let name = (instance.to_owned(), *action);
        let found = self.results.lock().get(&name).cloned().map(Box::new);
        let result = found.ok_or(Error::NoResult(*action))?;
        let bytes = result_memory(result.encoded_len() as u64);
        let permit = memory.reserve(bytes).await.map_err(Error::no_memory)?;
        Ok(CachedResult { result, permit })
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        let name = (instance.to_owned(), *action);
        self.results.lock().insert(name, result);
        Ok(())
    }
}

#[async_trait]
impl Peek for MemoryStore {
    async fn peek_blob(&self, digest: &Digest) -> Result<Bytes> {
        BlobStore::get(self, digest, 0).await?.into_bytes().await
    }

    async fn peek_result(&self, instance: &str, action: &Digest) -> Result<ActionResult> {
        let found = self.find(instance, action).await?;
        found.ok_or(Error::NoResult(*action))
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}
