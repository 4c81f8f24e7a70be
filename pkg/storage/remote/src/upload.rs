//! Uploads by `ByteStream.Write`, resumed as far as their content can be read again.

mod write;

use std::{mem, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, future, stream};
use reapi::bytestream::QueryWriteStatusRequest;
use tonic::Code;

use self::write::Content;
use super::{
    RemoteCapabilities,
    compression::{FrameEncoder, compressor},
    failure::Failure,
    methods::{Call, Limits},
    peer::{Peer, StreamPermits},
    retry::Retry,
};
use gorego_storage::{
    Blob, BlobFile, Chunks, Digest, DigestFunction, Error, Hasher, Put, Result, UploadId, WriteName,
};

struct RemoteUpload<'a> {
    peer: &'a Peer,
    digest: &'a Digest,
    /// The content. A stream can be read once.
    source: Blob,
    id: UploadId,
    /// Set if the caller chose the id: it may resume the upload later, and counts the bytes it sent.
    is_named: bool,
    zstd: bool,
    /// The position in the blob at which the next attempt starts, in bytes.
    offset: u64,
    /// The most bytes that the peer has reported. A retry counts as progress only beyond this.
    furthest: u64,
    retry: Retry,
    permits: Arc<StreamPermits>,
}

/// Stores content of the right length.
pub(super) async fn put(
    peer: &Peer,
    capabilities: &RemoteCapabilities,
    digest: &Digest,
    mut source: Blob,
) -> Result<Put> {
    let permits = peer.stream_permits(0).await;
    let permits = permits.map_err(|failure| error(peer, digest, failure))?;
    let resume = match &mut source {
        Blob::Stream(stream) => stream.resume.take(),
        Blob::Bytes(_) | Blob::File(_) => None,
    };
    let is_named = resume.is_some();
    let (id, offset, compress) = match resume {
        Some(resume) => (resume.upload, resume.offset, None),
        None => (
            random_upload(),
            0,
            peer.compress(capabilities, digest.size()),
        ),
    };
    let mut upload = RemoteUpload {
        peer,
        digest,
        source,
        id,
        is_named,
        zstd: compress.is_some(),
        offset,
        furthest: 0,
        retry: peer.retry(),
        permits: Arc::new(permits),
    };
    if offset > 0 {
        match upload.query().await? {
            None => return Ok(Put::Existed),
            Some(committed) if committed < offset || offset > digest.size() => {
                return Err(Error::UploadOffset {
                    digest: *digest,
                    offset,
                    committed,
                });
            }
            Some(_) => {}
        }
    }
    loop {
        if let Some(put) = upload.attempt().await? {
            return Ok(put);
        }
    }
}

/// Returns the number of bytes of an uncompressed upload that the peer has; `None` if it is complete.
pub(super) async fn query(
    peer: &Peer,
    digest: &Digest,
    upload: &UploadId,
    retry: &mut Retry,
) -> Result<Option<u64>> {
    let request = QueryWriteStatusRequest {
        resource_name: name(peer, digest, upload, false),
    };
    let call = Call(request, Limits::decoded(usize::MAX), 0);
    match peer.call_until(&call, retry).await {
        Ok(answer) if answer.complete => Ok(None),
        Ok(answer) => Ok(u64::try_from(answer.committed_size).ok().or(Some(0))),
        Err(failure) if matches!(failure.code(), Some(Code::NotFound | Code::Unimplemented)) => {
            Ok(Some(0))
        }
        Err(failure) => Err(error(peer, digest, failure)),
    }
}

fn error(peer: &Peer, digest: &Digest, failure: Failure) -> Error {
    peer.error(&format_args!("storing {digest}"), failure)
}

fn name(peer: &Peer, digest: &Digest, upload: &UploadId, zstd: bool) -> String {
    let name = WriteName {
        instance: peer.instance.clone(),
        upload: segment_of(upload),
        compressor: compressor(zstd),
        digest: *digest,
    };
    name.to_string()
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
fn random_upload() -> UploadId {
    let [low, mid, high, variant, node] =
        [32, 16, 12, 12, 48].map(|bits| fastrand::u64(..1 << bits));
    UploadId::new(&format!(
        "{low:08x}-{mid:04x}-4{high:03x}-a{variant:03x}-{node:012x}"
    ))
}

impl RemoteUpload<'_> {
    async fn query(&mut self) -> Result<Option<u64>> {
        query(self.peer, self.digest, &self.id, &mut self.retry).await
    }

    /// Sends the content from the offset on. `None` if another attempt is to follow.
    async fn attempt(&mut self) -> Result<Option<Put>> {
        let (size, zstd) = (self.digest.size(), self.zstd);
        let mut content = Content {
            source: chunks(&mut self.source, self.offset),
            digest: self.digest,
            name: name(self.peer, self.digest, &self.id, zstd),
            start: self.offset,
            compressing: zstd.then(|| FrameEncoder::new(size)).transpose()?,
            read: 0,
            sent: 0,
            ended: false,
            finished: false,
            rest: Bytes::new(),
        };
        let outcome = write::write(self.peer, &self.retry, &mut content, &self.permits).await;
        if content.has_wrong_size() && (content.finished || outcome.is_err()) {
            return Err(self.wrong(&format!("{} bytes", self.offset + content.read)));
        }
        let failure = match outcome {
            Ok(put) => return Ok(Some(put)),
            Err(Failure::Own(error)) => {
                report(&self.source, &error);
                return Err(error);
            }
            Err(failure) => failure,
        };
        self.recover(failure, content).await
    }

    /// Decides what follows a failure: an error, another attempt, or nothing if the peer has the blob.
    async fn recover(&mut self, failure: Failure, content: Content<'_>) -> Result<Option<Put>> {
        let (code, finished) = (failure.code(), content.finished);
        let is_untouched = content.is_untouched();
        let chunks = content.source;
        let is_stream = matches!(self.source, Blob::Stream(_));
        match code {
            Some(Code::AlreadyExists) => return Ok(Some(Put::Existed)),
            Some(Code::InvalidArgument) if !is_stream && self.offset == 0 => {
                self.check().await?;
            }
            Some(Code::InvalidArgument | Code::Aborted)
                if is_stream
                    && finished
                    && (self.offset > 0 || code == Some(Code::InvalidArgument)) =>
            {
                let peer = &self.peer.name;
                return Err(self.wrong(&format!("content that {peer} rejects: {failure}")));
            }
            Some(Code::Aborted) if self.is_named => return Err(Error::Superseded(*self.digest)),
            _ => {}
        }
        if let Blob::Stream(source) = &mut self.source {
            if !is_untouched {
                return Err(error(self.peer, self.digest, failure));
            }
            source.chunks = chunks;
        }
        if self.zstd && failure.is_unknown_form() {
            self.peer.known.correct(|known| known.zstd_streams = false);
            self.zstd = false;
            self.restart();
            return Ok(None);
        }
        // A refused resumption is retried as a new upload.
        let may_pass = failure.is_retryable() || !is_stream && self.offset > 0;
        let restarts = self.zstd || code == Some(Code::Aborted) || !failure.is_retryable();
        if !may_pass || !self.retry.pause(Duration::MAX).await {
            return Err(error(self.peer, self.digest, failure));
        }
        if restarts && !is_stream {
            self.restart();
        }
        if restarts || is_stream {
            return Ok(None);
        }
        let Some(committed) = self.query().await? else {
            return Ok(Some(Put::Stored));
        };
        self.offset = committed.min(self.digest.size());
        if self.offset > self.furthest {
            self.furthest = self.offset;
            self.retry.progressed();
        }
        Ok(None)
    }

    fn restart(&mut self) {
        self.id = random_upload();
        self.offset = 0;
    }

    /// Fails if the content does not match its digest.
    async fn check(&mut self) -> Result<()> {
        let hasher = Hasher::new(self.digest.function());
        let hashed = chunks(&mut self.source, 0).try_fold(hasher, |mut hasher, chunk| {
            hasher.update(&chunk);
            future::ok(hasher)
        });
        let hashed = hashed
            .await
            .inspect_err(|error| report(&self.source, error));
        let actual = hashed?.finish();
        if actual == *self.digest {
            Ok(())
        } else {
            Err(Error::mismatch(self.digest, actual))
        }
    }

    /// The error of wrong content. If the upload was resumed, the part before the offset may be wrong.
    fn wrong(&self, actual: &str) -> Error {
        Error::mismatch(self.digest, actual).if_resumed(self.offset > 0)
    }
}

/// Returns the content from `offset` on. A stream starts there already, and can be taken once.
fn chunks(source: &mut Blob, offset: u64) -> Chunks {
    match source {
        Blob::Bytes(bytes) => {
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            Blob::Bytes(bytes.slice(offset.min(bytes.len())..)).into_chunks()
        }
        Blob::File(file) => Blob::File(BlobFile {
            file: Arc::clone(&file.file),
            path: file.path.clone(),
            offset: file.offset + offset,
            len: file.len.saturating_sub(offset),
            guard: None,
        })
        .into_chunks(),
        Blob::Stream(stream) => mem::replace(&mut stream.chunks, stream::empty().boxed()),
    }
}

/// Reports a file that could not be read to its owner.
fn report(source: &Blob, error: &Error) {
    if let (Blob::File(file), Error::Io { .. }) = (source, error)
        && let Some(guard) = &file.guard
    {
        guard.unreadable();
    }
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
