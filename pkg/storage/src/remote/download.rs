//! `ByteStream.Read` that goes on where it broke off, and ends well only with the right content.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use reapi::bytestream::{ReadRequest, ReadResponse, byte_stream_client::ByteStreamClient};
use tokio::{sync::OwnedSemaphorePermit, time};
use tonic::{Code, Streaming};

use super::{
    RemoteCapabilities, RemoteStore,
    breaker::Since,
    compression::Decompressing,
    connect::Link,
    failure::{Backoff, Failure, mismatch},
    peer::{Peer, Turn},
};
use crate::{Blob, Compressor, Digest, Error, Hasher, Result};

/// What peers send in one piece, and then some.
const MAX_PIECE: usize = (4 << 20) + (64 << 10);

/// A download under way.
struct Download {
    peer: Arc<Peer>,
    name: String,
    digest: Digest,
    compressed: bool,
    /// How far it has come in the blob, in bytes.
    at: u64,
    /// How far it had come when it was last begun.
    begun_at: u64,
    /// Of a download from the beginning.
    hasher: Option<Hasher>,
    arriving: Option<Arriving>,
    backoff: Backoff,
    turn: Turn,
    since: Since,
    ended: bool,
    _permits: (
        OwnedSemaphorePermit,
        OwnedSemaphorePermit,
        Option<OwnedSemaphorePermit>,
    ),
}

/// One answer of the peer.
struct Arriving {
    messages: Streaming<ReadResponse>,
    decompressing: Option<Decompressing>,
    /// Arrived and not yet decompressed.
    compressed: Bytes,
    /// In use until the end.
    _connection: Link,
}

/// Content from `offset` on, which is before the end. Its first piece has come when this returns.
pub(super) async fn start(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    digest: &Digest,
    offset: u64,
) -> Result<Blob> {
    let left = digest.size().saturating_sub(offset);
    let compress = store.compress(capabilities, left);
    let compressor = if compress.is_some() {
        Compressor::Zstd
    } else {
        Compressor::Identity
    };
    let peer = Arc::clone(&store.peer);
    let permits = async { Ok((peer.stream_permit().await?, peer.window_permit(left).await?)) };
    let permits = permits.await;
    let (permit, window) =
        permits.map_err(|failure| peer.error(&format_args!("reading {digest}"), failure))?;
    let mut download = Download {
        name: store.read_name(digest, compressor),
        digest: *digest,
        compressed: compress.is_some(),
        at: offset,
        begun_at: offset,
        hasher: (offset == 0).then(|| Hasher::new(digest.function())),
        arriving: None,
        backoff: peer.backoff(),
        turn: Turn::First,
        since: Since::default(),
        ended: false,
        peer,
        _permits: (permit, window, compress),
    };
    let first = download.next().await?;
    let rest = stream::unfold(Some(download), |download| async move {
        let mut download = download?;
        match download.next().await {
            Ok(Some(piece)) => Some((Ok(piece), Some(download))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(Blob::stream(stream::iter(first.map(Ok)).chain(rest)))
}

impl Download {
    /// The next piece; the last one only once all is known to be right.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.ended {
            return Ok(None);
        }
        loop {
            match self.advance().await {
                Ok(Some(piece)) => return self.take(piece).await.map(Some),
                Ok(None) => {
                    let actual = format!("{} bytes, of which no more come", self.at);
                    return Err(self.wrong(&actual));
                }
                Err(failure) => self.broken(failure).await?,
            }
        }
    }

    async fn take(&mut self, piece: Bytes) -> Result<Bytes> {
        self.at += piece.len() as u64;
        if self.at > self.digest.size() {
            return Err(self.too_long());
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&piece);
        }
        if self.at == self.digest.size() {
            self.end().await?;
            self.ended = true;
        }
        Ok(piece)
    }

    /// Waits for a while after a failure, if it is to be tried again.
    async fn broken(&mut self, failure: Failure) -> Result<()> {
        self.arriving = None;
        let progressed = self.at > self.begun_at;
        if progressed {
            self.backoff.progressed();
        }
        let again = failure.is_retryable() || progressed && failure.is_resumable();
        let delay = again.then(|| self.backoff.next_delay()).flatten();
        match delay {
            Some(delay) => {
                time::sleep(delay).await;
                self.turn = Turn::Again;
                Ok(())
            }
            None => Err(self.error(failure)),
        }
    }

    /// Begins if need be, and waits for a piece. `None` when the peer says that this was all.
    async fn advance(&mut self) -> Result<Option<Bytes>, Failure> {
        if self.arriving.is_none() {
            self.begin().await?;
        }
        let patience = self.peer.timeout();
        let piece = time::timeout(patience, self.piece()).await;
        let piece = piece.unwrap_or(Err(Failure::TimedOut(patience)));
        if let Err(failure) = &piece {
            self.peer.broke_off(self.since, failure);
        }
        piece
    }

    async fn begin(&mut self) -> Result<(), Failure> {
        let peer = Arc::clone(&self.peer);
        let (link, attempt) = peer.open(self.turn).await?;
        let request = ReadRequest {
            resource_name: self.name.clone(),
            read_offset: i64::try_from(self.at).unwrap_or(i64::MAX),
            read_limit: 0,
        };
        let decompressing = self.compressed.then(Decompressing::new).transpose();
        let decompressing =
            decompressing.map_err(|why| Failure::Own(Error::Unavailable(why.to_string())))?;
        let mut client = ByteStreamClient::new(link.clone()).max_decoding_message_size(MAX_PIECE);
        let patience = self.peer.timeout();
        let answer = match time::timeout(patience, client.read(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(Failure::Status(status)),
            Err(_) => Err(Failure::TimedOut(patience)),
        };
        self.since = attempt.ended(answer.as_ref().err());
        self.begun_at = self.at;
        self.arriving = Some(Arriving {
            messages: answer?,
            decompressing,
            compressed: Bytes::new(),
            _connection: link,
        });
        Ok(())
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some(arriving) = &mut self.arriving else {
            return Ok(None);
        };
        // One byte too many tells content of the right size from longer content.
        let most = self.digest.size().saturating_sub(self.at) + 1;
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
            match arriving.messages.message().await? {
                None => return Ok(None),
                Some(message) if arriving.decompressing.is_some() => {
                    arriving.compressed = message.data;
                }
                Some(message) if message.data.is_empty() => {}
                Some(message) => return Ok(Some(message.data)),
            }
        }
    }

    /// Checks the content, and that no more comes. A peer that has something against it says so at
    /// the end.
    async fn end(&mut self) -> Result<()> {
        let checked = self.hasher.take().map(Hasher::finish);
        if let Some(actual) = &checked
            && *actual != self.digest
        {
            return Err(self.wrong(&actual.to_string()));
        }
        let outcome = time::timeout(self.peer.timeout(), self.piece()).await;
        self.arriving = None;
        match outcome {
            Ok(Ok(Some(_))) => Err(self.too_long()),
            Ok(Err(failure)) if checked.is_none() && failure.code().is_some() => {
                Err(self.error(failure))
            }
            _ => Ok(()),
        }
    }

    fn too_long(&self) -> Error {
        self.wrong(&format!("more than {} bytes", self.digest.size()))
    }

    fn wrong(&self, actual: &str) -> Error {
        let peer = self.peer.name();
        mismatch(&self.digest, format_args!("{actual}, from {peer}"))
    }

    fn error(&self, failure: Failure) -> Error {
        if failure.code() == Some(Code::NotFound) {
            return Error::NotFound(self.digest);
        }
        self.peer
            .error(&format_args!("reading {}", self.digest), failure)
    }
}
