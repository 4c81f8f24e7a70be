//! The store behind another server.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};

use crate::{
    RemoteCapabilities, RemoteError, RemoteOptions,
    batches::{self, Direction},
    canary::Canary,
    capabilities::Known,
    download,
    failure::mismatch,
    missing,
    peer::Peer,
    upload,
};
use gorego_storage::{
    Blob, BlobStore, BreakerState, Compressor, Digest, DigestFunction, Error, InstanceName, Put,
    Result, UploadId, Uploads, WriteName,
};

/// The size up to which blobs travel in batches, even alone, in bytes; larger ones have streams.
pub(crate) const SMALL: u64 = 64 * 1024;
/// The size from which blobs are worth compressing, in bytes.
pub(crate) const WORTH_COMPRESSING: u64 = 1024;
/// The time that a client waits for the capabilities of a peer that was never reached.
const CAPABILITIES_TIMEOUT: Duration = Duration::from_secs(5);
/// The number of compressed downloads and uploads at a time. A download may take a window of 8 MiB.
const MAX_COMPRESSED: usize = 64;

/// The store of another server, reached over gRPC. It connects on the first call, and reconnects when
/// necessary. A put whose content was sent to the end is reported as stored even if the peer had the
/// blob: peers do not report that for small uploads.
pub struct RemoteStore {
    pub(crate) peer: Arc<Peer>,
    pub(crate) instance: InstanceName,
    pub(crate) zstd: bool,
    /// Limits compressed downloads and uploads, each of which takes memory.
    compressed: Arc<Semaphore>,
    pub(crate) known: Arc<Known>,
    pub(crate) canary: Arc<Canary>,
}

impl RemoteStore {
    /// Creates a store within a Tokio runtime. It has not connected yet.
    pub fn new(options: &RemoteOptions) -> Result<Self, RemoteError> {
        let instance = InstanceName::parse(&options.instance_name)?;
        let peer = Arc::new(Peer::new(options)?);
        let canary = Arc::<Canary>::default();
        drop(peer.spawn(Arc::clone(&canary).watch(Arc::downgrade(&peer), instance.clone())));
        Ok(Self {
            peer,
            instance,
            zstd: options.zstd,
            compressed: Arc::new(Semaphore::new(MAX_COMPRESSED)),
            known: Arc::default(),
            canary,
        })
    }

    /// Returns the state of the breaker. It stays open until the first call after the cool-down.
    pub fn breaker(&self) -> watch::Receiver<BreakerState> {
        self.peer.breaker.state.subscribe()
    }

    /// Returns the peer's capabilities, requested every few minutes and after an outage.
    pub async fn capabilities(&self) -> Result<Arc<RemoteCapabilities>> {
        self.known.get(&self.peer, self.instance.as_str()).await
    }

    /// Returns the peer's capabilities if they include this function.
    pub(crate) async fn offered(
        &self,
        function: DigestFunction,
    ) -> Result<Arc<RemoteCapabilities>> {
        let capabilities = self.capabilities().await;
        let capabilities = capabilities.map_err(|error| self.unless_lacking(function, error))?;
        capabilities.check(&self.peer, function)?;
        Ok(capabilities)
    }

    /// Replaces an outage by a refusal if the peer, by its last answer, lacks this function: such an
    /// operation must not be postponed until the outage ends.
    pub(crate) fn unless_lacking(&self, function: DigestFunction, error: Error) -> Error {
        if !matches!(error, Error::Unavailable(_)) {
            return error;
        }
        let last = self.known.last();
        let refusal = last.and_then(|last| last.check(&self.peer, function).err());
        refusal.unwrap_or(error)
    }

    /// Permits compression of a stream of `bytes` bytes if it is enabled, supported, worth it, and few
    /// other streams are compressed.
    pub(crate) fn compress(
        &self,
        capabilities: &RemoteCapabilities,
        bytes: u64,
    ) -> Option<OwnedSemaphorePermit> {
        if !self.zstd || !capabilities.zstd_streams || bytes < WORTH_COMPRESSING {
            return None;
        }
        Arc::clone(&self.compressed).try_acquire_owned().ok()
    }

    pub(crate) fn write_name(&self, digest: &Digest, upload: &UploadId, zstd: bool) -> String {
        let name = WriteName {
            instance: self.instance.clone(),
            upload: segment_of(upload),
            compressor: compressor(zstd),
            digest: *digest,
        };
        name.to_string()
    }

    async fn is_missing(&self, digest: &Digest) -> Result<bool> {
        Ok(!missing::find(self, &[*digest]).await?.is_empty())
    }
}

impl fmt::Debug for RemoteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RemoteStore").field(&self.peer.name).finish()
    }
}

pub(crate) const fn compressor(zstd: bool) -> Compressor {
    if zstd {
        Compressor::Zstd
    } else {
        Compressor::Identity
    }
}

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
        missing::find(self, digests).await
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
        if (offset == size || is_ambiguous) && self.is_missing(&digest).await? {
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
            return Err(mismatch(digest, format_args!("{len} bytes")));
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

/// Returns the id as a segment of a resource name; the hash of one that cannot be a segment.
fn segment_of(upload: &UploadId) -> UploadId {
    let text = upload.as_str();
    let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    if (1..=128).contains(&text.len()) && text.bytes().all(is_plain) {
        return upload.clone();
    }
    let hash = DigestFunction::Sha256.digest(text.as_bytes());
    UploadId::new(&hash.hex())
}

/// Returns a random UUID of version 4, the id of a new upload.
pub(crate) fn random_upload() -> UploadId {
    let [a, b, c, d, e] = [32, 16, 12, 12, 48].map(|bits| fastrand::u64(..1 << bits));
    UploadId::new(&format!("{a:08x}-{b:04x}-4{c:03x}-a{d:03x}-{e:012x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_upload_has_a_random_uuid() {
        let (one, other) = (random_upload(), random_upload());
        assert_ne!(one, other);
        let parts: Vec<_> = one.as_str().split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(one.as_str().as_bytes()[14], b'4');
        assert!(b"89ab".contains(&one.as_str().as_bytes()[19]));
    }

    #[test]
    fn ids_that_cannot_be_in_a_resource_name_are_hashed_and_stay_distinct() {
        let plain = UploadId::new("7f6ef5a6-2d0b-4b3c-9f53-0b8f4b1f7d3a");
        assert_eq!(segment_of(&plain), plain);
        let [a, b] = ["../a", "../b"].map(|text| segment_of(&UploadId::new(text)));
        assert_ne!(a, b);
        assert!(!a.as_str().contains('/'));
        assert_eq!(a, segment_of(&UploadId::new("../a")));
    }
}
