//! The store behind another server.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};

use crate::{
    RemoteCapabilities, RemoteError, RemoteOptions,
    batches::{self, Read, Update},
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
    ReadName, Result, UploadId, Uploads, WriteName,
};

/// Blobs up to this many bytes travel in batches, even alone; design.md: above it, streams.
pub(crate) const SMALL: u64 = 64 * 1024;
/// Blobs from this many bytes on are worth compressing.
pub(crate) const WORTH_COMPRESSING: u64 = 1024;
/// How long a client that only wants to know what there is may have to wait for the peer.
pub(crate) const ASKING: Duration = Duration::from_secs(5);
/// Downloads and uploads that are compressed at once. A download may take a window of 8 MiB.
pub(crate) const MAX_COMPRESSED: usize = 64;

/// The store of another server, reached over gRPC. Connects when it is first asked something, and
/// again whenever it has to. A put that the peer was sent to its end is reported as stored even
/// if the peer had the blob before: small uploads are not told.
#[derive(Debug)]
pub struct RemoteStore {
    pub(crate) peer: Arc<Peer>,
    pub(crate) instance: InstanceName,
    pub(crate) zstd: bool,
    /// Downloads and uploads that are compressed; each takes memory for it.
    pub(crate) compressed: Arc<Semaphore>,
    pub(crate) known: Arc<Known>,
    pub(crate) canary: Arc<Canary>,
}

impl RemoteStore {
    /// A store that has not connected yet. Within a Tokio runtime.
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

    /// Whether the peer is asked at all. Stays open until somebody calls after the cool-down.
    pub fn breaker(&self) -> watch::Receiver<BreakerState> {
        self.peer.gate.state.subscribe()
    }

    /// What the peer can do, asked at most every few minutes and after it was out of reach.
    pub async fn capabilities(&self) -> Result<Arc<RemoteCapabilities>> {
        self.known.get(&self.peer, self.instance.as_str()).await
    }

    /// The peer's capabilities, which include this function.
    pub(crate) async fn offered(
        &self,
        function: DigestFunction,
    ) -> Result<Arc<RemoteCapabilities>> {
        let capabilities = self.capabilities().await;
        let capabilities = capabilities.map_err(|error| self.unless_lacking(function, error))?;
        capabilities.check(&self.peer, function)?;
        Ok(capabilities)
    }

    /// That something of this function failed: for good where the peer was out of reach and, by its last
    /// answer, would refuse it. Nobody is to put it off until the peer is back.
    pub(crate) fn unless_lacking(&self, function: DigestFunction, error: Error) -> Error {
        let last = match &error {
            Error::Unavailable(_) => self.known.last(),
            _ => None,
        };
        let refusal = last.and_then(|last| last.check(&self.peer, function).err());
        refusal.unwrap_or(error)
    }

    /// The instance to name where the caller names `instance`.
    pub(crate) fn instance<'a>(&'a self, instance: &'a str) -> &'a str {
        match self.instance.as_str() {
            "" => instance,
            own => own,
        }
    }

    /// Leave to compress content of `bytes` bytes on its way, if that is wanted, possible and worth it.
    /// When many others do, it goes as it is.
    pub(crate) fn compress(
        &self,
        capabilities: &RemoteCapabilities,
        bytes: u64,
    ) -> Option<OwnedSemaphorePermit> {
        let wanted = self.zstd && capabilities.zstd_streams && bytes >= WORTH_COMPRESSING;
        wanted
            .then(|| Arc::clone(&self.compressed).try_acquire_owned().ok())
            .flatten()
    }

    pub(crate) fn read_name(&self, digest: &Digest, compressor: Compressor) -> String {
        let name = ReadName {
            instance: self.instance.clone(),
            compressor,
            digest: *digest,
        };
        name.to_string()
    }

    pub(crate) fn write_name(
        &self,
        digest: &Digest,
        upload: &UploadId,
        compressor: Compressor,
    ) -> String {
        let name = WriteName {
            instance: self.instance.clone(),
            upload: speakable(upload),
            compressor,
            digest: *digest,
        };
        name.to_string()
    }
}

#[async_trait]
impl BlobStore for RemoteStore {
    /// Those of the peer's last answer, for which nobody waits. All if it never gave one: it may be there
    /// when they are needed.
    async fn digest_functions(&self) -> Vec<DigestFunction> {
        let last = self.known.at_hand(&self.peer, &self.instance);
        let known = match last {
            Some(last) => Some(last),
            None => timeout(ASKING, self.capabilities())
                .await
                .ok()
                .and_then(Result::ok),
        };
        known.map_or_else(
            || DigestFunction::ALL.to_vec(),
            |known| known.digest_functions.clone(),
        )
    }

    fn outages(&self) -> u64 {
        self.peer.gate.outages()
    }

    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        missing::find(self, digests).await
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        if offset > digest.size() {
            return Err(Error::OffsetPastEnd {
                digest: *digest,
                offset,
            });
        }
        if digest.is_empty_blob() {
            return Ok(Blob::Bytes(Bytes::new()));
        }
        let capabilities = self.offered(digest.function()).await?;
        if offset == digest.size() {
            // Nothing to read, which a peer might refuse: all that matters is whether it is there.
            let absent = !missing::find(self, &[*digest]).await?.is_empty();
            return if absent {
                Err(Error::NotFound(*digest))
            } else {
                Ok(Blob::Bytes(Bytes::new()))
            };
        }
        if batches::is_small(&capabilities, digest.size()) {
            let mut content = batches::transfer_one::<Read>(self, &capabilities, *digest).await?;
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            return Ok(Blob::Bytes(content.split_off(offset.min(content.len()))));
        }
        // A name of SHA-256 leaves the function out, so that the peer may take it for the other.
        if let Some(other) = digest.other()
            && capabilities.digest_functions.contains(&other.function())
            && !missing::find(self, &[*digest]).await?.is_empty()
        {
            return Err(Error::NotFound(*digest));
        }
        download::start(self, &capabilities, digest, offset).await
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        let len = match &blob {
            Blob::Bytes(bytes) => Some(bytes.len() as u64),
            Blob::File(file) => Some(file.len),
            Blob::Stream(_) => None,
        };
        if let Some(len) = len.filter(|len| *len != digest.size()) {
            return Err(mismatch(digest, format_args!("{len} bytes")));
        }
        if digest.is_empty_blob() {
            return Ok(Put::Existed);
        }
        let capabilities = self.offered(digest.function()).await?;
        let put = match blob {
            Blob::Bytes(content) if batches::is_small(&capabilities, digest.size()) => {
                batches::transfer_one::<Update>(self, &capabilities, (*digest, content)).await
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
        let name = self.write_name(digest, upload, Compressor::Identity);
        let committed = upload::committed(&self.peer, digest, name).await;
        committed.map_err(|failure| {
            self.peer
                .error(&format_args!("upload of {digest}"), failure)
        })
    }
}

/// An upload's name as it can stand in a resource name: another one takes the place of what cannot.
fn speakable(upload: &UploadId) -> UploadId {
    let text = upload.as_str();
    let plain = (1..=128).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if plain {
        upload.clone()
    } else {
        let hash = DigestFunction::Sha256.digest(text.as_bytes());
        UploadId::new(&hash.hex())
    }
}

/// A new name for an upload of our own: a random UUID.
pub(crate) fn random_upload() -> UploadId {
    const VERSION: u128 = 0x4 << 76;
    const VARIANT: u128 = 0x2 << 62;
    let random = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | VERSION | VARIANT;
    let mut text = String::with_capacity(36);
    for (index, digit) in format!("{random:032x}").chars().enumerate() {
        if matches!(index, 8 | 12 | 16 | 20) {
            text.push('-');
        }
        let _ = text.write_char(digit);
    }
    UploadId::new(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_of_our_own_has_a_random_uuid() {
        let (one, other) = (random_upload(), random_upload());
        assert_ne!(one, other);
        let parts: Vec<_> = one.as_str().split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(one.as_str().as_bytes()[14], b'4');
        assert!(b"89ab".contains(&one.as_str().as_bytes()[19]));
    }

    #[test]
    fn uploads_with_unspeakable_names_are_still_told_apart() {
        let plain = UploadId::new("7f6ef5a6-2d0b-4b3c-9f53-0b8f4b1f7d3a");
        assert_eq!(speakable(&plain), plain);
        let [a, b] = ["../a", "../b"].map(|text| speakable(&UploadId::new(text)));
        assert_ne!(a, b);
        assert!(!a.as_str().contains('/'));
        assert_eq!(a, speakable(&UploadId::new("../a")));
    }
}
