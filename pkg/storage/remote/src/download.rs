//! Downloads by `ByteStream.Read`, resumed where they broke off, and verified before their end.

mod checked;

use std::{sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes};
use futures::{FutureExt as _, StreamExt as _, stream};
use gorego_limits::Permit;
use reapi::bytestream::ReadRequest;
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit},
    time,
};
use tonic::Code;

use super::{
    RemoteCapabilities, RemoteStore,
    breaker::CallStart,
    capabilities::CapabilityCache,
    compression::FrameDecoder,
    failure::Failure,
    grpc::{self, Answer, Link},
    methods::READ,
    peer::Peer,
    retry::Retry,
    store::compressor,
};
use gorego_storage::{Blob, BlobStream, Digest, Error, Hasher, InstanceName, ReadName, Result};

struct Download {
    peer: Arc<Peer>,
    known: Arc<CapabilityCache>,
    instance: InstanceName,
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
    /// The last content, [`OVERLAP`] bytes at most.
    tail: Bytes,
    /// The bytes that a resumed download requests again, for comparison.
    overlap: Bytes,
    /// Set once it was resumed: from then on the resumption may have caused wrong content.
    is_resumed: bool,
    /// The offset up to which content was returned before the restart, and the hash up to there.
    before_restart: Option<(u64, Hasher)>,
    arriving: Option<OpenRead>,
    retry: Retry,
    since: CallStart,
    has_ended: bool,
    _permits: (OwnedSemaphorePermit, Permit, Option<OwnedSemaphorePermit>),
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
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    digest: &Digest,
    offset: u64,
) -> Result<Blob> {
    let compress = store.compress(capabilities, digest.size());
    let peer = Arc::clone(&store.peer);
    let permits = async {
        let stream = peer.stream_permit().await?;
        Ok((stream, peer.window_permit(digest.size()).await?))
    };
    let error = |failure| peer.error(&format_args!("reading {digest}"), failure);
    let (permit, window) = permits.await.map_err(error)?;
    let mut download = Download {
        known: Arc::clone(&store.known),
        instance: store.instance.clone(),
        digest: *digest,
        zstd: compress.is_some(),
        wanted_from: offset,
        at: 0,
        begun_at: 0,
        hasher: Hasher::new(digest.function()),
        tail: Bytes::new(),
        overlap: Bytes::new(),
        is_resumed: false,
        before_restart: None,
        arriving: None,
        retry: peer.retry(),
        since: CallStart::default(),
        has_ended: false,
        peer,
        _permits: (permit, window, compress),
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
                Ok(Some(piece)) => {
                    let mut piece = self.take(piece).await?;
                    let wanted = self.at.saturating_sub(self.wanted_from);
                    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
                    piece.advance(piece.len().saturating_sub(wanted));
                    if !piece.is_empty() {
                        return Ok(Some(piece));
                    }
                }
                Ok(None) => {
                    let actual = format!("{} bytes, of which no more come", self.at);
                    self.restart(self.mismatch(&actual))?;
                }
                Err(Failure::Own(error @ Error::Mismatch { .. })) => self.restart(error)?,
                Err(failure) => self.recover(failure).await?,
            }
        }
        Ok(None)
    }

    /// Waits before a retry. Returns the error if there is none.
    async fn recover(&mut self, failure: Failure) -> Result<()> {
        self.arriving = None;
        let progressed = self.at > self.begun_at;
        if progressed {
            self.retry.progressed();
            // Once for each progress.
            self.begun_at = self.at;
        }
        if !progressed && self.zstd && failure.is_unknown_form() {
            self.known.correct(|known| known.zstd_streams = false);
            self.zstd = false;
            return Ok(());
        }
        let may_pass = failure.is_retryable() || progressed && failure.is_resumable();
        if may_pass && self.retry.pause(Duration::MAX).await {
            return Ok(());
        }
        Err(if failure.code() == Some(Code::NotFound) {
            Error::NotFound(self.digest)
        } else {
            let operation = format_args!("reading {}", self.digest);
            self.peer.error(&operation, failure)
        })
    }

    /// Waits for the next piece, of a new answer if need be; `None` at the end. A call counts as answered
    /// once it brought a piece.
    async fn advance(&mut self) -> Result<Option<Bytes>, Failure> {
        let patience = self.peer.timeout;
        let timed_out = || Err(Failure::TimedOut(patience));
        if self.arriving.is_some() {
            let piece = time::timeout(patience, self.piece()).await;
            return piece
                .unwrap_or_else(|_| timed_out())
                .inspect_err(|failure| {
                    self.peer.breaker.broke_off(self.since, failure);
                });
        }
        let peer = Arc::clone(&self.peer);
        let (link, attempt) = peer.open(&self.retry).await?;
        let piece = async {
            self.begin(link).await?;
            self.piece().await
        };
        let piece = time::timeout(patience, piece).await;
        let piece = piece.unwrap_or_else(|_| timed_out());
        self.since = attempt.ended(piece.as_ref().err());
        piece
    }

    async fn begin(&mut self, link: Link) -> Result<(), Failure> {
        self.is_resumed |= self.at > 0;
        self.overlap = self.tail.clone();
        self.begun_at = self.at;
        let offset = self.at.saturating_sub(self.overlap.len() as u64);
        let name = ReadName {
            instance: self.instance.clone(),
            compressor: compressor(self.zstd),
            digest: self.digest,
        };
        let request = ReadRequest {
            resource_name: name.to_string(),
            read_offset: i64::try_from(offset).unwrap_or(i64::MAX),
            read_limit: 0,
        };
        let decompressing = self.zstd.then(FrameDecoder::new).transpose();
        let decompressing =
            decompressing.map_err(|why| Failure::Own(Error::Unavailable(why.to_string())))?;
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
        let most = self.digest.size().saturating_sub(self.at) + self.overlap.len() as u64 + 1;
        loop {
            let Some(decompressing) = &mut arriving.decompressing else {
                return Ok(arriving.answer.content().await?);
            };
            let piece = decompressing.next(&mut arriving.compressed, most);
            let piece = piece.map_err(|why| {
                let actual = format!("not decompressible after {} bytes: {why}", self.at);
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
