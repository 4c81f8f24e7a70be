//! Splits an upload's content for the two tiers.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use bytes::Bytes;
use futures::{
    StreamExt as _,
    stream::{self, Fuse},
};
use gorego_storage::{Chunks, Error, Result};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;

/// The number of chunks by which the backing cache may be behind.
const BEHIND: usize = 4;

/// The content of an upload. The local tier pulls it, and the backing cache gets it at the same pace. Each chunk
/// is in the local tier first, so that it outlives the client.
#[derive(Clone)]
pub(crate) struct Tee {
    source: Arc<Mutex<Fuse<Chunks>>>,
    was_read: Arc<AtomicBool>,
}

impl Tee {
    /// Returns the tee of `chunks`, and the content for the backing cache.
    pub(crate) fn new(chunks: Chunks) -> (Self, Chunks) {
        let (backing, receiver) = mpsc::channel(BEHIND);
        let source = stream::unfold(
            (chunks, backing, None),
            |(mut chunks, backing, unsent)| async move {
                if let Some(unsent) = unsent {
                    let _ = backing.send(unsent).await;
                }
                let chunk = chunks.next().await?;
                Some((chunk.clone(), (chunks, backing, Some(chunk))))
            },
        );
        let was_read = Arc::<AtomicBool>::default();
        let read = Arc::clone(&was_read);
        let sent = ReceiverStream::new(receiver).inspect(move |_| read.store(true, Relaxed));
        let source = Arc::new(Mutex::new(source.boxed().fuse()));
        (Self { source, was_read }, sent.boxed())
    }

    /// Whether the content was read to its end.
    pub(crate) fn has_ended(&self) -> bool {
        self.source.try_lock().is_ok_and(|source| source.is_done())
    }

    /// Whether the backing cache failed before it read any content. Until then, its client retries by itself.
    pub(crate) fn is_unread(&self, error: &Error) -> bool {
        matches!(error, Error::Unavailable(_)) && !self.was_read.load(Relaxed)
    }

    /// Returns the content for the local tier.
    pub(crate) fn local(&self) -> Chunks {
        let next = |tee: Self| async move { Some((tee.next().await?, tee)) };
        stream::unfold(self.clone(), next).boxed()
    }

    /// Sends the rest to the backing cache alone.
    pub(crate) async fn send_rest(&self) {
        while self.next().await.is_some() {}
    }

    async fn next(&self) -> Option<Result<Bytes>> {
        self.source.lock().await.next().await
    }
}
