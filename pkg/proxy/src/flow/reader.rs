//! Reads a blob that is on its way.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gorego_storage::{Blob, BlobStream, Error, Result};
use tokio::{sync::OnceCell, task};

use super::{
    Flow, Pieces,
    state::{END, FlowState},
};

pub(super) const PIECE: usize = 128 * 1024;
/// The size of a piece when memory is short. There may be thousands of readers.
pub(super) const MIN_PIECE: usize = 16 * 1024;
/// A piece takes at most this fraction of the free memory.
const SHARE: u64 = 16;

pub(crate) struct Reader {
    flow: Arc<Flow>,
    number: u64,
}

/// The content at a reader's place.
enum Content {
    Piece(Bytes),
    /// The number of bytes in the file.
    Written(usize),
    End,
}

impl Reader {
    fn new(flow: &Arc<Flow>, at: u64) -> Option<Self> {
        let number = flow.state.lock().add_reader(at)?;
        let flow = Arc::clone(flow);
        Some(Self { flow, number })
    }

    /// Joins a flow only for its end; `None` if it failed.
    pub(crate) fn at_end(flow: &Arc<Flow>) -> Option<Self> {
        Self::new(flow, END)
    }

    /// Waits until the whole blob is verified, without reading on.
    pub(crate) async fn verified(&self) -> Result<()> {
        if let Some(place) = self.flow.state.lock().readers.get_mut(&self.number) {
            place.at = END;
        }
        self.flow.passed.notify_waiters();
        self.flow.ended().await
    }

    /// Waits for the content at `at`; `None` at the end.
    async fn read(&self, at: u64) -> Result<Option<Bytes>> {
        let flow = &self.flow;
        let content = flow.until(|state| self.content(state, at).transpose());
        match content.await? {
            Content::Piece(piece) => Ok(Some(piece)),
            Content::Written(len) => flow.written(at, len).await.map(Some),
            Content::End => Ok(None),
        }
    }

    /// Returns the content at `at`, if it has arrived. The blob's last chunk is withheld until the blob is
    /// verified.
    fn content(&self, state: &mut FlowState, at: u64) -> Result<Option<Content>> {
        let digest = self.flow.digest;
        let verified = matches!(state.outcome, Some(Ok(())));
        if verified && at >= digest.size() {
            return Ok(Some(Content::End));
        }
        let Some(place) = state.readers.get_mut(&self.number) else {
            let why = "too slow for other readers of a blob for which the disk has no room";
            return Err(Error::Unavailable(format!("read of {digest} ended: {why}")));
        };
        if place.at != at {
            place.at = at;
            self.flow.passed.notify_waiters();
        }
        if let Some(Err(error)) = &state.outcome {
            return Err(error.clone());
        }
        let written = state.growth.len().saturating_sub(at);
        let written = usize::try_from(written).unwrap_or(usize::MAX).min(PIECE);
        let (content, len) = match state.piece(at) {
            Some(piece) => (Content::Piece(piece.clone()), piece.len()),
            None if written > 0 => (Content::Written(written), written),
            None => return Ok(verified.then_some(Content::End)),
        };
        Ok((verified || at + (len as u64) < digest.size()).then_some(content))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.flow.state.lock().readers.remove(&self.number);
        self.flow.passed.notify_waiters();
    }
}

impl Flow {
    /// Returns the content from `offset` on as it arrives; `None` if it is no longer available.
    pub(crate) fn read(self: &Arc<Self>, offset: u64) -> Option<Blob> {
        let reader = Arc::new(Reader::new(self, offset)?);
        let verified = Arc::clone(&reader);
        let chunks = stream::try_unfold((reader, offset), |(reader, at)| async move {
            let piece = reader.read(at).await?;
            Ok(piece.map(|piece| {
                let next = at + piece.len() as u64;
                (piece, (reader, next))
            }))
        });
        Some(Blob::Stream(BlobStream {
            chunks: chunks.boxed(),
            resume: None,
            verified: Some(Box::pin(async move { verified.verified().await })),
        }))
    }

    /// Reads up to `len` written bytes, at least one. Readers at the same offset share them.
    pub(super) async fn written(&self, at: u64, len: usize) -> Result<Bytes> {
        shared_piece(&self.shared, at, self.read_written(at, len)).await
    }

    async fn read_written(&self, at: u64, len: usize) -> Result<Bytes> {
        let (growth, digest) = (self.growth(), self.digest);
        let most = until_next(PIECE, at, len);
        let mut share = self.pieces.share(most as u64, SHARE);
        let len = if share.bytes() < most as u64 {
            until_next(MIN_PIECE, at, len)
        } else {
            most
        };
        let cancelled = |error| Error::Unavailable(format!("read of {digest} failed: {error}"));
        let read = task::spawn_blocking(move || growth.read(at, len)).await;
        let piece = read.map_err(cancelled)??;
        if piece.is_empty() {
            let why = format!("read of {digest} failed: its file was truncated");
            return Err(Error::Unavailable(why));
        }
        // A reader holds no more of the budget than of the content.
        share.shrink(piece.len() as u64);
        Ok(share.hold(piece))
    }
}

/// Returns the length from `at` to the next multiple of `size`, where readers meet, at most `len`.
pub(super) fn until_next(size: usize, at: u64, len: usize) -> usize {
    let past = usize::try_from(at % size as u64).unwrap_or_default();
    (size - past).min(len)
}

/// Returns the piece at `at`. The first caller reads it; the others wait for that.
pub(super) async fn shared_piece(
    pieces: &Pieces,
    at: u64,
    read: impl Future<Output = Result<Bytes>>,
) -> Result<Bytes> {
    let piece = Piece(pieces.get_or_default(&at));
    piece.0.get_or_try_init(|| read).await?;
    Ok(Bytes::from_owner(piece))
}

/// A piece, shared as long as a reader or its connection holds it.
struct Piece(Arc<OnceCell<Bytes>>);

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        self.0.get().map_or(&[], |bytes| bytes)
    }
}
