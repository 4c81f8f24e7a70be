//! Content for the local tier and for one other reader.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use bytes::Bytes;
use futures::{
    Stream, StreamExt as _,
    stream::{self, Fuse},
};
use gorego_storage::{Chunks, Result};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;

/// The number of chunks by which the backing cache may be behind.
const BEHIND: usize = 4;

/// Content that the local tier reads, and whose rest is read without it.
#[derive(Clone)]
pub(crate) struct Tee(Arc<Mutex<Fuse<Chunks>>>);

impl Tee {
    /// Creates a tee of `chunks`, which pass to the other reader as they are read.
    pub(crate) fn new(chunks: impl Stream<Item = Result<Bytes>> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(chunks.boxed().fuse())))
    }

    /// Returns the tee of an upload, the content for the backing cache, and a flag that is set once any of that was
    /// read. The backing cache gets a chunk once it is in the local tier, so that it outlives the client.
    pub(crate) fn of_upload(chunks: Chunks) -> (Self, Chunks, Arc<AtomicBool>) {
        let (backing, receiver) = mpsc::channel(BEHIND);
        let source = stream::unfold(
            (chunks, backing, None),
            |(mut chunks, backing, unsent)| async move {
                if let Some(unsent) = unsent {
                    let is_last = Result::is_err(&unsent);
                    let _ = backing.send(unsent).await;
                    if is_last {
                        return None;
                    }
                }
                let chunk = chunks.next().await?;
                Some((chunk.clone(), (chunks, backing, Some(chunk))))
            },
        );
        let was_read = Arc::<AtomicBool>::default();
        let read = Arc::clone(&was_read);
        let sent = ReceiverStream::new(receiver).inspect(move |_| read.store(true, Relaxed));
        (Self::new(source), sent.boxed(), was_read)
    }

    /// Returns the content for the local tier.
    pub(crate) fn local(&self) -> Chunks {
        let next = |tee: Self| async move { Some((tee.next().await?, tee)) };
        stream::unfold(self.clone(), next).boxed()
    }

    pub(crate) async fn next(&self) -> Option<Result<Bytes>> {
        self.0.lock().await.next().await
    }

    /// Whether the content was read to its end.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.try_lock().is_ok_and(|source| source.is_done())
    }
}
