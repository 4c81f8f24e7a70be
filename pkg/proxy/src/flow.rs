//! A blob on its way from the backing cache, and all who read it meanwhile.
//!
//! What has arrived is in the file that it is written to, but for the newest part, which is in
//! memory. Where it cannot be written, memory is all there is: then the newest part is as large as
//! may be, and what no longer fits waits until the readers have passed it.

mod reader;
mod shared;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gorego_limits::Budget;
use gorego_storage::{Blob, BlobFile, BlobStream, Digest, Error, Result};
use gorego_storage_local::Growth;
use tokio::{
    sync::Notify,
    task,
    time::{Instant, timeout_at},
};

pub(crate) use self::reader::Waiter;
use self::{reader::Reader, shared::PieceCache, state::State};

/// The size of a piece read from the file.
const PIECE: usize = 128 * 1024;
/// The size of a piece where memory is short. There may be thousands of readers.
const LEAST: usize = 16 * 1024;
/// Pieces take at most one in so many of the bytes that are left for them.
const SHARE: u64 = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Flow {
    digest: Digest,
    /// For pieces that are read from the file.
    pieces: Budget,
    shared: PieceCache,
    state: Mutex<State>,
    /// Something arrived, or the end was reached.
    arrived: Notify,
    /// A reader went on, or away.
    passed: Notify,
}

/// What there is for a reader.
enum Found {
    Piece(Bytes),
    /// This much, in the file.
    Written(usize),
    Nothing,
    End(Result<()>),
}

impl Flow {
    pub(crate) fn new(digest: Digest, pieces: Budget) -> Self {
        Self {
            digest,
            pieces,
            shared: PieceCache::default(),
            state: Mutex::default(),
            arrived: Notify::new(),
            passed: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Where to write it, for those who read.
    pub(crate) fn growth(&self) -> Arc<Growth> {
        Arc::clone(&self.state().growth)
    }

    /// The same blob, verified, is in a file that others have brought: what is still to be read is
    /// read from there. The end is held back all the same, for those who have read the beginning of
    /// what arrives.
    pub(crate) fn found(&self, file: &BlobFile) {
        self.state().growth = Arc::new(Growth::ended(file));
        self.arrived.notify_waiters();
        // Nobody is to be waited for any more.
        self.passed.notify_waiters();
    }

    /// Adds what arrived. Waits for readers where memory is all there is and is full.
    pub(crate) async fn push(&self, chunk: Bytes) {
        let len = chunk.len() as u64;
        {
            let mut state = self.state();
            state.end += len;
            state.newest.push_back(chunk);
            state.drop_written();
        }
        self.arrived.notify_waiters();
        self.make_room().await;
    }

    /// Waits until the newest part is no larger than it may be. Readers that stand still for too
    /// long are left behind, and those that others have waited for too long.
    async fn make_room(&self) {
        let mut since = None;
        loop {
            let passed = self.passed.notified();
            tokio::pin!(passed);
            passed.as_mut().enable();
            let until = {
                let mut state = self.state();
                let Some(most) = state.in_memory else { return };
                let due = state.end.saturating_sub(most);
                if let Some(since) = since.replace(Instant::now()) {
                    state.leave_behind(Instant::now() - since);
                }
                state.drop_written();
                let slowest = state.slowest();
                state.drop_before(due.min(slowest));
                // A chunk that `due` falls into stays: more than `most` is held by less than that.
                if slowest >= due || state.start >= due {
                    return;
                }
                state.wait_for(due)
            };
            let _ = timeout_at(until, passed).await;
        }
    }

    /// Nothing more is written from now on; this much is kept in memory, and up to a chunk more.
    pub(crate) fn to_memory(&self, most: u64) {
        self.state().in_memory = Some(most);
    }

    /// Gives it up if nobody reads it or waits for its end; whoever comes from then on needs another.
    pub(crate) fn abandon(&self) -> Result<()> {
        let mut state = self.state();
        if state.is_wanted() {
            return Ok(());
        }
        let why = format!("{} cannot be kept, and nobody waited for it", self.digest);
        let error = Error::Unavailable(why);
        state.outcome = Some(Err(error.clone()));
        Err(error)
    }

    /// All arrived and was verified, or not.
    pub(crate) fn finish(&self, outcome: Result<()>) {
        {
            let mut state = self.state();
            state.outcome.get_or_insert(outcome);
            if let Some(Err(_)) = state.outcome {
                state.drop_before(u64::MAX);
            }
            state.drop_written();
        }
        self.arrived.notify_waiters();
    }

    /// Waits, after the end, until nothing is in memory: readers that stand still are left behind.
    pub(crate) async fn emptied(&self) {
        self.to_memory(0);
        self.make_room().await;
    }

    /// Waits until anything has arrived; an error if nothing will.
    pub(crate) async fn started(&self) -> Result<()> {
        self.until(|state| match &state.outcome {
            Some(outcome) => Some(outcome.clone()),
            None => (state.end > 0).then_some(Ok(())),
        })
        .await
    }

    /// Waits until all of it has arrived and was verified; not as one for whose sake it goes on.
    pub(crate) async fn ended(&self) -> Result<()> {
        self.until(|state| state.outcome.clone()).await
    }

    async fn until<T>(&self, look: impl Fn(&State) -> Option<T>) -> T {
        loop {
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            if let Some(found) = look(&self.state()) {
                return found;
            }
            arrived.await;
        }
    }

    /// The content from `offset` on, as it arrives; `None` when it has passed that already, and it
    /// was not written.
    pub(crate) fn read(self: &Arc<Self>, offset: u64) -> Option<Blob> {
        let reader = Reader::new(Arc::clone(self), offset)?;
        let waiter = Waiter::new(Arc::clone(self));
        let chunks = stream::try_unfold(reader, |mut reader| async move {
            Ok(reader.next().await?.map(|piece| (piece, reader)))
        });
        Some(Blob::Stream(BlobStream {
            chunks: chunks.boxed(),
            resume: None,
            verified: Some(Box::pin(async move { waiter.verified().await })),
        }))
    }

    /// Up to `len` bytes, and at least one, that were written. Readers at the same place share them.
    async fn written(&self, at: u64, len: usize) -> Result<Bytes> {
        self.shared.piece(at, self.read_written(at, len)).await
    }

    async fn read_written(&self, at: u64, len: usize) -> Result<Bytes> {
        let growth = self.growth();
        let wanted = until_next(PIECE, at, len);
        let mut share = self.pieces.share(wanted as u64, SHARE);
        let len = if share.bytes() < wanted as u64 {
            until_next(LEAST, at, len)
        } else {
            wanted
        };
        let read = task::spawn_blocking(move || growth.read(at, len)).await;
        let cut_off = |error| Error::Unavailable(format!("reading was cut off: {error}"));
        let piece = read.map_err(cut_off)??;
        if piece.is_empty() {
            let why = format!("{}: what arrived is no longer there", self.digest);
            return Err(Error::Unavailable(why));
        }
        // A reader holds no more of the budget than of the content.
        share.shrink(piece.len() as u64);
        Ok(share.hold(piece))
    }

    /// What there is at `at`. The end of the blob is held back until it was verified.
    fn look(&self, reader: u64, at: u64) -> Found {
        let mut state = self.state();
        let verified = matches!(state.outcome, Some(Ok(())));
        if verified && at >= self.digest.size() {
            return Found::End(Ok(()));
        }
        let Some(place) = state.readers.get_mut(&reader) else {
            let why =
                "too slow while others waited for the same blob, which the disk has no room for";
            return Found::End(Err(Error::Unavailable(format!("{}: {why}", self.digest))));
        };
        if place.at != at {
            place.go_on(at);
            self.passed.notify_waiters();
        }
        if let Some(Err(error)) = &state.outcome {
            return Found::End(Err(error.clone()));
        }
        let whole = |len: u64| verified || at + len < self.digest.size();
        if let Some(piece) = state.piece(at) {
            return if whole(piece.len() as u64) {
                Found::Piece(piece)
            } else {
                Found::Nothing
            };
        }
        let written = state.growth.len().saturating_sub(at);
        let len = usize::try_from(written).unwrap_or(usize::MAX).min(PIECE);
        if len > 0 && whole(len as u64) {
            Found::Written(len)
        } else if verified {
            Found::End(Ok(()))
        } else {
            Found::Nothing
        }
    }
}

/// The length from `at` to the next multiple of `size`, where readers meet, within `len`.
fn until_next(size: usize, at: u64, len: usize) -> usize {
    let past = usize::try_from(at % size as u64).unwrap_or_default();
    (size - past).min(len)
}

#[cfg(test)]
mod tests;
