//! Downloads by `ByteStream.Read`, resumed where they broke off, and verified before their end.

use std::{sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes};
use futures::{FutureExt as _, StreamExt as _, stream};
use reapi::bytestream::ReadRequest;
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit},
    time,
};
use tonic::Code;

use super::{
    RemoteCapabilities,
    breaker::Attempt,
    compression::{FrameDecoder, compressor},
    failure::Failure,
    grpc::{self, Answer, Link},
    methods::READ,
    missing,
    peer::{Peer, StreamPermits},
    retry::Retry,
};
use gorego_storage::{Blob, BlobStream, Digest, Error, Hasher, ReadName, Result};

/// The time to wait for the end of a stream whose content is complete and correct.
const GRACE: Duration = Duration::from_secs(1);

struct Download {
    peer: Arc<Peer>,
    digest: Digest,
    zstd: bool,
    /// The offset from which content is returned; earlier bytes are only hashed.
    wanted_from: u64,
    /// The position in the blob that was reached, in bytes.
    at: u64,
    /// The position at which the present answer began.
    begun_at: u64,
    /// The hash of the content so far.
    hasher: Hasher,
    attempt: Option<Attempt>,
    arriving: Option<OpenRead>,
    retry: Retry,
    has_ended: bool,
    _permits: (StreamPermits, Option<OwnedSemaphorePermit>),
}

struct OpenRead {
    answer: Answer,
    decompressing: Option<FrameDecoder>,
    /// Content that is not decompressed yet.
    compressed: Bytes,
}

/// Starts a download of the content from `offset` on, which is before the end. Returns once some of it
/// arrived. The whole blob is read, since its hash is that of the whole.
pub(super) async fn start(
    peer: &Arc<Peer>,
    capabilities: &RemoteCapabilities,
    digest: &Digest,
    offset: u64,
) -> Result<Blob> {
    // A resource name of SHA-256 omits the function, so that the peer may infer the other one.
    let other = digest.other().map(|other| other.function());
    let is_ambiguous = other.is_some_and(|f| capabilities.digest_functions.contains(&f));
    if is_ambiguous && !missing::find_missing(peer, &[*digest]).await?.is_empty() {
        return Err(Error::NotFound(*digest));
    }
    let compress = peer.compress(capabilities, digest.size());
    let error = |failure| peer.error(&format_args!("reading {digest}"), failure);
    let permits = peer.stream_permits(digest.size()).await.map_err(error)?;
    let mut download = Download {
        peer: Arc::clone(peer),
        digest: *digest,
        zstd: compress.is_some(),
        wanted_from: offset,
        at: 0,
        begun_at: 0,
        hasher: Hasher::new(digest.function()),
        attempt: None,
        arriving: None,
        retry: peer.retry(),
        has_ended: false,
        _permits: (permits, compress),
    };
    let first = download.next().await?;
    Ok(Blob::Stream(stream_of(first, download)))
}

/// Returns the first content, then the rest. A reader that needs no more of it can still wait for its end.
fn stream_of(first: Option<Bytes>, download: Download) -> BlobStream {
    let download = Arc::new(Mutex::new(download));
    let rest = Arc::clone(&download);
    let chunks = stream::try_unfold(download, |download| async move {
        let chunk = download.lock().await.next().await?;
        Ok(chunk.map(|chunk| (chunk, download)))
    });
    let verified = async move {
        let mut download = rest.lock().await;
        while download.next().await?.is_some() {}
        Ok(())
    };
    BlobStream {
        chunks: stream::iter(first.map(Ok)).chain(chunks).boxed(),
        resume: None,
        verified: Some(verified.boxed()),
    }
}

impl Download {
    /// Returns the next content that is wanted; the last only once all is verified.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        while !self.has_ended {
            match self.advance().await {
                Ok(Some(mut piece)) => {
                    self.check(&piece).await?;
                    let wanted = self.at.saturating_sub(self.wanted_from);
                    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
                    piece.advance(piece.len().saturating_sub(wanted));
                    if !piece.is_empty() {
                        return Ok(Some(piece));
                    }
                }
                Ok(None) => {
                    return Err(self.mismatch(&format!("{} bytes, of which no more come", self.at)));
                }
                Err(failure) => self.recover(failure).await?,
            }
        }
        Ok(None)
    }

    /// Hashes a piece. If it is the last one, checks the hash, and that no more content arrives. Ignores the peer's
    /// status after that, and its absence.
    async fn check(&mut self, piece: &[u8]) -> Result<()> {
        let size = self.digest.size();
        let too_long = || format!("more than {size} bytes");
        self.at += piece.len() as u64;
        if self.at > size {
            return Err(self.mismatch(&too_long()));
        }
        self.hasher.update(piece);
        if self.at < size {
            return Ok(());
        }
        let actual = self.hasher.clone().finish();
        if actual != self.digest {
            return Err(self.mismatch(&actual.to_string()));
        }
        let grace = self.peer.options.timeout.min(GRACE);
        let more = time::timeout(grace, self.piece()).await;
        if let Ok(Ok(Some(_))) = more {
            return Err(self.mismatch(&too_long()));
        }
        self.arriving = None;
        self.has_ended = true;
        Ok(())
    }

    /// Returns the error of wrong content. If the download was resumed, the resumption may be the cause.
    fn mismatch(&self, actual: &str) -> Error {
        let (digest, peer) = (&self.digest, &self.peer.name);
        if self.begun_at == 0 {
            return Error::mismatch(digest, format_args!("{actual}, from {peer}"));
        }
        tracing::warn!(%digest, actual, %peer, "a resumed download brought other content");
        Error::Unavailable(format!(
            "reading {digest}: {peer} returned other content when the download was resumed; retry"
        ))
    }

    /// Waits before a retry. Returns the error if there is none.
    async fn recover(&mut self, failure: Failure) -> Result<()> {
        self.arriving = None;
        let progressed = self.at > self.begun_at;
        if progressed {
            self.retry.progressed();
            // Once for each progress.
            self.begun_at = self.at;
            // Some peers resume compressed content at another position.
            self.zstd = false;
        }
        if self.zstd && failure.is_unknown_form() {
            self.peer.known.correct(|known| known.zstd_streams = false);
            self.zstd = false;
            return Ok(());
        }
        let may_pass = failure.is_retryable() || progressed && failure.is_resumable();
        if may_pass && self.retry.pause(Duration::MAX).await {
            return Ok(());
        }
        if failure.code() == Some(Code::NotFound) {
            return Err(Error::NotFound(self.digest));
        }
        let operation = format_args!("reading {}", self.digest);
        Err(self.peer.error(&operation, failure))
    }

    /// Waits for the next piece, of a new answer if need be; `None` at the end. A call counts as answered
    /// once it brought a piece.
    async fn advance(&mut self) -> Result<Option<Bytes>, Failure> {
        let mut link = None;
        if self.arriving.is_none() {
            let (opened, attempt) = self.peer.open(&self.retry).await?;
            (link, self.attempt) = (Some(opened), Some(attempt));
        }
        let patience = self.peer.options.timeout;
        let piece = async {
            if let Some(link) = link {
                self.begin(link).await?;
            }
            self.piece().await
        };
        let piece = time::timeout(patience, piece).await;
        let piece = piece.unwrap_or(Err(Failure::TimedOut(patience)));
        if (self.at == self.begun_at || piece.is_err())
            && let Some(attempt) = &mut self.attempt
        {
            attempt.record(piece.as_ref().err());
        }
        piece
    }

    async fn begin(&mut self, link: Link) -> Result<(), Failure> {
        self.begun_at = self.at;
        let name = ReadName {
            instance: self.peer.instance.clone(),
            compressor: compressor(self.zstd),
            digest: self.digest,
        };
        let request = ReadRequest {
            resource_name: name.to_string(),
            read_offset: i64::try_from(self.at).unwrap_or(i64::MAX),
            read_limit: 0,
        };
        let decompressing = self.zstd.then(FrameDecoder::new).transpose();
        let decompressing = decompressing.map_err(Failure::Own)?;
        let request = grpc::body(stream::iter([grpc::framed(&request)]));
        self.arriving = Some(OpenRead {
            answer: link.call(READ, request).await?,
            decompressing,
            compressed: Bytes::new(),
        });
        Ok(())
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some(arriving) = &mut self.arriving else {
            return Ok(None);
        };
        // One byte too many distinguishes content of the right size from longer content.
        let most = self.digest.size().saturating_sub(self.at) + 1;
        loop {
            let Some(decompressing) = &mut arriving.decompressing else {
                return Ok(arriving.answer.content().await?);
            };
            let piece = decompressing.next(&mut arriving.compressed, most);
            let piece = piece.map_err(|why| {
                let (at, peer) = (self.at, &self.peer.name);
                let actual =
                    format_args!("not decompressible after {at} bytes: {why}, from {peer}");
                Failure::Own(Error::mismatch(&self.digest, actual))
            })?;
            if piece.is_some() {
                return Ok(piece);
            }
            match arriving.answer.content().await? {
                Some(content) => arriving.compressed = content,
                None => return Ok(None),
            }
        }
    }
}
