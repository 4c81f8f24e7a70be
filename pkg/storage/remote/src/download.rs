//! `ByteStream.Read` that goes on where it broke off, and ends well only with the right content.

mod checked;

use std::{sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes};
use futures::{FutureExt as _, StreamExt as _, stream};
use gorego_limits::Permit;
use reapi::bytestream::ReadRequest;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time,
};
use tonic::Code;

use super::{
    RemoteCapabilities, RemoteStore,
    breaker::Since,
    capabilities::Known,
    compression::Decompressing,
    failure::{Failure, mismatch},
    grpc::{self, Answer, Link},
    methods::READ,
    peer::Peer,
    retry::Retry,
};
use gorego_storage::{Blob, BlobStream, Compressor, Digest, Error, Hasher, Result};

/// A download under way.
struct Download {
    peer: Arc<Peer>,
    name: String,
    digest: Digest,
    /// The name under which it is not compressed.
    plain_name: String,
    zstd: bool,
    known: Arc<Known>,
    /// The first byte that is not only hashed.
    wanted_from: u64,
    /// How far it has come in the blob, in bytes.
    at: u64,
    /// How far it had come when it was last begun.
    begun_at: u64,
    /// Of all that came so far.
    hasher: Hasher,
    /// The last bytes that came, [`OVERLAP`] at most.
    tail: Bytes,
    /// The bytes expected once more after the download was resumed.
    overlap: Bytes,
    /// Whether it was resumed, in which case wrong content may be the fault of the resumption.
    resumed: bool,
    /// The position and the hash of what its reader had when it was begun anew.
    given: Option<(u64, Hasher)>,
    arriving: Option<Arriving>,
    retry: Retry,
    since: Since,
    ended: bool,
    _permits: (OwnedSemaphorePermit, Permit, Option<OwnedSemaphorePermit>),
}

/// One answer of the peer.
struct Arriving {
    answer: Answer,
    decompressing: Option<Decompressing>,
    /// Arrived and not yet decompressed.
    compressed: Bytes,
}

/// Content from `offset` on, which is before the end. Its first piece has come when this returns. All
/// of the blob is fetched, also what is not asked for, since its hash is that of the whole.
pub(super) async fn start(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    digest: &Digest,
    offset: u64,
) -> Result<Blob> {
    let compress = store.compress(capabilities, digest.size());
    let compressor = if compress.is_some() {
        Compressor::Zstd
    } else {
        Compressor::Identity
    };
    let peer = Arc::clone(&store.peer);
    let permits = async {
        let stream = peer.stream_permit().await?;
        Ok((stream, peer.window_permit(digest.size()).await?))
    };
    let permits = permits.await;
    let (permit, window) =
        permits.map_err(|failure| peer.error(&format_args!("reading {digest}"), failure))?;
    let mut download = Download {
        name: store.read_name(digest, compressor),
        digest: *digest,
        plain_name: store.read_name(digest, Compressor::Identity),
        zstd: compress.is_some(),
        known: Arc::clone(&store.known),
        wanted_from: offset,
        at: 0,
        begun_at: 0,
        hasher: Hasher::new(digest.function()),
        tail: Bytes::new(),
        overlap: Bytes::new(),
        resumed: false,
        given: None,
        arriving: None,
        retry: peer.retry(),
        since: Since::default(),
        ended: false,
        peer,
        _permits: (permit, window, compress),
    };
    let first = download.next().await?;
    Ok(Blob::Stream(stream_of(first, download)))
}

/// What came first and what is to come. Whoever wants no more of it can still wait for its end.
fn stream_of(first: Option<Bytes>, download: Download) -> BlobStream {
    let (back, rest) = oneshot::channel();
    let reading = Reading(Some((download, back)));
    let chunks = stream::unfold(reading, |mut reading| async move {
        let (download, _) = reading.0.as_mut()?;
        match download.next().await {
            Ok(piece) => Some((Ok(piece?), reading)),
            Err(error) => {
                if let Some((_, back)) = reading.0.take() {
                    let _ = back.send(Err(error.clone()));
                }
                Some((Err(error), reading))
            }
        }
    });
    let verified = async move {
        let cut_off = |_| Error::Unavailable("reading was cut off".to_owned());
        let mut download = rest.await.map_err(cut_off)??;
        while download.next().await?.is_some() {}
        Ok(())
    };
    BlobStream {
        chunks: stream::iter(first.map(Ok)).chain(chunks).boxed(),
        resume: None,
        verified: Some(verified.boxed()),
    }
}

/// A download that is given back when its reader wants no more.
struct Reading(Option<(Download, oneshot::Sender<Result<Download>>)>);

impl Drop for Reading {
    fn drop(&mut self) {
        if let Some((download, back)) = self.0.take() {
            let _ = back.send(Ok(download));
        }
    }
}

impl Download {
    /// The next piece that is wanted; the last one only once all is known to be right.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        while !self.ended {
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
                    self.is_wrong(self.wrong(&actual))?;
                }
                Err(Failure::Own(error @ Error::Mismatch { .. })) => self.is_wrong(error)?,
                Err(failure) => self.broken(failure).await?,
            }
        }
        Ok(None)
    }

    /// Waits for a while after a failure, if it is to be tried again.
    async fn broken(&mut self, failure: Failure) -> Result<()> {
        self.arriving = None;
        let progressed = self.at > self.begun_at;
        if progressed {
            self.retry.progressed();
            // Once for each time that it came further.
            self.begun_at = self.at;
        }
        if !progressed && self.zstd && failure.is_unknown_form() {
            self.known.correct(|known| known.zstd_streams = false);
            self.be_plain();
            return Ok(());
        }
        let again = failure.is_retryable() || progressed && failure.is_resumable();
        if again && self.retry.pause(Duration::MAX).await {
            Ok(())
        } else {
            Err(self.error(failure))
        }
    }

    /// Begins if need be, and waits for a piece. `None` when the peer says that this was all. It
    /// counts as an answer once a piece has come.
    async fn advance(&mut self) -> Result<Option<Bytes>, Failure> {
        if self.arriving.is_some() {
            let piece = self.piece_in_time().await;
            if let Err(failure) = &piece {
                self.peer.gate.broke_off(self.since, failure);
            }
            return piece;
        }
        let peer = Arc::clone(&self.peer);
        let (link, attempt) = peer.open(&self.retry).await?;
        let piece = match self.begin(link).await {
            Ok(()) => self.piece_in_time().await,
            Err(failure) => Err(failure),
        };
        self.since = attempt.ended(piece.as_ref().err());
        piece
    }

    async fn begin(&mut self, link: Link) -> Result<(), Failure> {
        self.resumed |= self.at > 0;
        self.overlap = self.tail.clone();
        let offset = self.at.saturating_sub(self.overlap.len() as u64);
        let request = ReadRequest {
            resource_name: self.name.clone(),
            read_offset: i64::try_from(offset).unwrap_or(i64::MAX),
            read_limit: 0,
        };
        let decompressing = self.zstd.then(Decompressing::new).transpose();
        let decompressing =
            decompressing.map_err(|why| Failure::Own(Error::Unavailable(why.to_string())))?;
        let patience = self.peer.timeout;
        self.begun_at = self.at;
        let request = grpc::body(stream::iter([grpc::framed(&request)]));
        let answer = time::timeout(patience, link.call(READ, request)).await;
        self.arriving = Some(Arriving {
            answer: answer.unwrap_or(Err(Failure::TimedOut(patience)))?,
            decompressing,
            compressed: Bytes::new(),
        });
        Ok(())
    }

    async fn piece_in_time(&mut self) -> Result<Option<Bytes>, Failure> {
        let patience = self.peer.timeout;
        let piece = time::timeout(patience, self.piece()).await;
        piece.unwrap_or(Err(Failure::TimedOut(patience)))
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some(arriving) = &mut self.arriving else {
            return Ok(None);
        };
        // One byte too many tells content of the right size from longer content.
        let most = self.digest.size().saturating_sub(self.at) + self.overlap.len() as u64 + 1;
        loop {
            if let Some(decompressing) = &mut arriving.decompressing {
                let piece = decompressing.next(&mut arriving.compressed, most);
                let piece = piece.map_err(|why| {
                    let actual = format!("not decompressible after {} bytes: {why}", self.at);
                    Failure::Own(mismatch(&self.digest, actual))
                })?;
                if piece.is_some() {
                    return Ok(piece);
                }
            }
            match arriving.answer.content().await? {
                Some(content) if arriving.decompressing.is_some() => arriving.compressed = content,
                content => return Ok(content),
            }
        }
    }

    fn error(&self, failure: Failure) -> Error {
        if failure.code() == Some(Code::NotFound) {
            return Error::NotFound(self.digest);
        }
        self.peer
            .error(&format_args!("reading {}", self.digest), failure)
    }
}
