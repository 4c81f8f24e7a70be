//! Reads, writes and lookups of blobs.

use std::{collections::HashSet, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::timeout;

use super::{
    RemoteStore,
    batches::{self, Direction},
    download, missing, upload,
};
use gorego_storage::{
    Blob, BlobStore, Digest, DigestFunction, Error, Put, Result, UploadId, Uploads,
};

/// The time that a client waits for the capabilities of a peer that was never reached.
const CAPABILITIES_TIMEOUT: Duration = Duration::from_secs(5);

#[async_trait]
impl BlobStore for RemoteStore {
    /// Returns the functions of the peer's last answer at once; all functions if it never answered, since
    /// it may be reachable when they are needed.
    async fn digest_functions(&self) -> Vec<DigestFunction> {
        let mut known = self.known.at_hand(&self.peer, &self.instance);
        if known.is_none() {
            let capabilities = timeout(CAPABILITIES_TIMEOUT, self.capabilities()).await;
            known = capabilities.ok().and_then(Result::ok);
        }
        known.map_or_else(
            || DigestFunction::ALL.to_vec(),
            |known| known.digest_functions.clone(),
        )
    }

    fn outages(&self) -> u64 {
        self.peer.breaker.outages()
    }

    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let instance = self.instance.as_str();
        let mut unique = missing::unique(digests);
        let mut calls = Vec::new();
        for function in DigestFunction::ALL {
            let of_it = unique.iter().filter(|digest| digest.function() == function);
            let of_it: Vec<Digest> = of_it.copied().collect();
            if !of_it.is_empty() {
                self.offered(function).await?;
            }
            let chunks = of_it.chunks(missing::CHUNK).map(<[Digest]>::to_vec);
            calls.extend(
                chunks.map(|digests| missing::find(&self.peer, instance, function, digests)),
            );
        }
        let missing: Vec<Vec<Digest>> = stream::iter(calls)
            .buffer_unordered(self.peer.max_calls)
            .try_collect()
            .await?;
        let missing: HashSet<Digest> = missing.into_iter().flatten().collect();
        if let Some(present) = unique.iter().find(|digest| !missing.contains(digest)) {
            self.canary.set(present);
        }
        unique.retain(|digest| missing.contains(digest));
        Ok(unique)
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        let (digest, size) = (*digest, digest.size());
        if offset > size {
            return Err(Error::OffsetPastEnd { digest, offset });
        }
        if digest.is_empty_blob() {
            return Ok(Blob::Bytes(Bytes::new()));
        }
        let capabilities = self.offered(digest.function()).await?;
        if batches::is_small(&capabilities, size) && offset < size {
            let content = Bytes::new();
            let read = batches::one(self, &capabilities, Direction::Read, &digest, content).await;
            let mut content = read?;
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            return Ok(Blob::Bytes(content.split_off(offset.min(content.len()))));
        }
        // A peer might refuse an empty range. A resource name of SHA-256 omits the function, so that the
        // peer may infer the other one.
        let other = digest.other().map(|other| other.function());
        let is_ambiguous = other.is_some_and(|f| capabilities.digest_functions.contains(&f));
        if (offset == size || is_ambiguous) && !self.find_missing(&[digest]).await?.is_empty() {
            return Err(Error::NotFound(digest));
        }
        if offset == size {
            return Ok(Blob::Bytes(Bytes::new()));
        }
        download::start(self, &capabilities, &digest, offset).await
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        let len = match &blob {
            Blob::Bytes(bytes) => bytes.len() as u64,
            Blob::File(file) => file.len,
            Blob::Stream(_) => digest.size(),
        };
        if len != digest.size() {
            return Err(Error::mismatch(digest, format_args!("{len} bytes")));
        }
        if digest.is_empty_blob() {
            return Ok(Put::Existed);
        }
        let capabilities = self.offered(digest.function()).await?;
        let put = match blob {
            Blob::Bytes(content) if batches::is_small(&capabilities, digest.size()) => {
                batches::one(self, &capabilities, Direction::Update, digest, content)
                    .await
                    .map(|_| Put::Stored)
            }
            blob => upload::put(self, &capabilities, digest, blob).await,
        };
        put.inspect(|_| self.canary.set(digest))
    }

    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        batches::get(self, digests).await
    }

    async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        let first = blobs.first().map(|(digest, _)| *digest);
        let puts = batches::put(self, blobs).await;
        if let (Some(digest), Some(Ok(_))) = (first, puts.first()) {
            self.canary.set(&digest);
        }
        puts
    }
}

#[async_trait]
impl Uploads for RemoteStore {
    async fn committed(&self, digest: &Digest, upload: &UploadId) -> Result<u64> {
        let name = self.write_name(digest, upload, false);
        let committed = upload::committed(&self.peer, digest, name).await;
        committed.map_err(|failure| {
            self.peer
                .error(&format_args!("upload of {digest}"), failure)
        })
    }
}
