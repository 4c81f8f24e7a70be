//! The store behind another server.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{sync::watch, time::timeout};

use super::{
    RemoteCapabilities, RemoteError, RemoteOptions, batches, download, missing, peer::Peer, upload,
};
use gorego_storage::{
    BackingReport, Blob, BlobStore, BlobStoreExt as _, BreakerState, Digest, DigestFunction, Error,
    Put, Result, UploadId, Uploads,
};

/// The time that a client waits for the capabilities of a peer that was never reached.
const CAPABILITIES_TIMEOUT: Duration = Duration::from_secs(5);

/// The size up to which blobs travel in batches, even alone, in bytes; larger ones have streams.
const SMALL: u64 = 64 * 1024;

/// The store of another server, reached over gRPC. It connects on the first call, and reconnects when
/// necessary. A put whose content was sent to the end is reported as stored even if the peer had the
/// blob: peers do not report that for small uploads.
pub struct RemoteStore {
    pub(crate) peer: Arc<Peer>,
}

impl RemoteStore {
    /// Creates a store within a Tokio runtime. It has not connected yet.
    pub fn new(options: &RemoteOptions) -> Result<Self, RemoteError> {
        Peer::new(options).map(|peer| Self { peer })
    }

    /// Returns the state of the breaker. It stays open until the first call after the cool-down.
    pub fn breaker(&self) -> watch::Receiver<BreakerState> {
        self.peer.breaker.state.subscribe()
    }

    /// Reports the state of the calls.
    pub fn report(&self) -> BackingReport {
        let (peer, breaker) = (&self.peer, &self.peer.breaker);
        BackingReport {
            transitions: breaker.transitions(),
            outages: breaker.outages(),
            retries: peer.retries.load(Relaxed),
            inflight: breaker.pool.calls() as u64,
        }
    }

    /// Returns the peer's capabilities, requested every few minutes and after an outage.
    pub async fn capabilities(&self) -> Result<Arc<RemoteCapabilities>> {
        self.peer.capabilities().await
    }
}

impl fmt::Debug for RemoteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RemoteStore").field(&self.peer.name).finish()
    }
}

#[async_trait]
impl BlobStore for RemoteStore {
    /// Returns the functions of the peer's last answer at once, and requests a new one if it is old; all
    /// functions if it never answered, since it may be reachable when they are needed.
    async fn digest_functions(&self) -> Vec<DigestFunction> {
        let peer = Arc::clone(&self.peer);
        // One request outlives its caller, since the breaker needs its outcome. Others would only wait for that one.
        let request = (!peer.known.is_requested()).then(|| {
            self.peer
                .spawn(async move { peer.capabilities().await.ok() })
        });
        let answer = async {
            match request {
                Some(request) => request.await.ok().flatten().flatten(),
                None => self.peer.capabilities().await.ok(),
            }
        };
        let mut known = self.peer.known.last();
        if known.is_none() {
            known = timeout(CAPABILITIES_TIMEOUT, answer).await.ok().flatten();
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
        missing::find_missing(&self.peer, digests).await
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        let (digest, size) = (*digest, digest.size());
        if offset > size {
            return Err(Error::OffsetPastEnd { digest, offset });
        }
        if offset == size {
            // A peer might refuse an empty range.
            let is_present = self.contains(&digest).await?;
            let nothing = is_present.then(|| Blob::Bytes(Bytes::new()));
            return nothing.ok_or(Error::NotFound(digest));
        }
        if size > SMALL {
            let capabilities = self.peer.offered(digest.function()).await?;
            return download::start(&self.peer, &capabilities, &digest, offset).await;
        }
        let read = self.get_batch(&[digest]).await.pop();
        let mut content = read.unwrap_or(Err(Error::NotFound(digest)))?;
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(Blob::Bytes(content.split_off(offset.min(content.len()))))
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
        match blob {
            Blob::Bytes(content) if len <= SMALL => {
                let put = self.put_batch(vec![(*digest, content)]).await.pop();
                put.unwrap_or(Ok(Put::Existed))
            }
            blob => {
                let capabilities = self.peer.offered(digest.function()).await?;
                let put = upload::put(&self.peer, &capabilities, digest, blob).await;
                put.inspect(|_| self.peer.canary.set(digest))
            }
        }
    }

    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        batches::get(&self.peer, digests).await
    }

    async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        batches::put(&self.peer, blobs).await
    }
}

#[async_trait]
impl Uploads for RemoteStore {
    async fn committed(&self, digest: &Digest, upload: &UploadId) -> Result<u64> {
        let mut retry = self.peer.retry();
        let committed = upload::query(&self.peer, digest, upload, &mut retry).await?;
        Ok(committed.unwrap_or(digest.size()).min(digest.size()))
    }
}
