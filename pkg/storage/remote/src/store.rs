//! The store behind another server.

use std::{fmt, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::{
    RemoteCapabilities, RemoteError, RemoteOptions, canary::Canary, capabilities::CapabilityCache,
    peer::Peer,
};
use gorego_storage::{
    BreakerState, Compressor, Digest, DigestFunction, Error, InstanceName, Result, UploadId,
    WriteName,
};

/// The size up to which blobs travel in batches, even alone, in bytes; larger ones have streams.
pub(crate) const SMALL: u64 = 64 * 1024;
/// The size from which blobs are worth compressing, in bytes.
pub(crate) const WORTH_COMPRESSING: u64 = 1024;
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
    pub(crate) known: Arc<CapabilityCache>,
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
    let [low, mid, high, variant, node] =
        [32, 16, 12, 12, 48].map(|bits| fastrand::u64(..1 << bits));
    UploadId::new(&format!(
        "{low:08x}-{mid:04x}-4{high:03x}-a{variant:03x}-{node:012x}"
    ))
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
