//! Splits an upload's content for the two tiers.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gorego_storage::{Chunks, Result};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;

/// The number of chunks by which the backing cache may be behind.
const BEHIND: usize = 4;

/// The content of an upload. The local tier pulls it, and the backing cache gets it at the same pace. Each chunk
/// is in the local tier first, so that it outlives the client.
#[derive(Default)]
pub(crate) struct Tee {
    source: Mutex<Option<Source>>,
    /// True once the content was read to its end.
    pub(crate) ended: AtomicBool,
    /// True once the backing cache has read any content. Until then, its client retries by itself.
    pub(crate) was_read: AtomicBool,
}

struct Source {
    chunks: Chunks,
    unsent: Option<Bytes>,
    backing: mpsc::Sender<Result<Bytes>>,
}

impl Tee {
    /// Returns the tee of `chunks`, and the content for the backing cache.
    pub(crate) fn new(chunks: Chunks) -> (Arc<Self>, Chunks) {
        let (backing, receiver) = mpsc::channel(BEHIND);
        let source = Source {
            chunks,
            unsent: None,
            backing,
        };
        let tee = Arc::new(Self {
            source: Mutex::new(Some(source)),
            ..Self::default()
        });
        let read = Arc::clone(&tee);
        let sent = ReceiverStream::new(receiver);
        let sent = sent.inspect(move |_| read.was_read.store(true, Relaxed));
        (tee, sent.boxed())
    }

    /// Returns the content for the local tier.
    pub(crate) fn local(self: &Arc<Self>) -> Chunks {
        let next = |tee: Arc<Self>| async move { Some((tee.next().await?, tee)) };
        stream::unfold(Arc::clone(self), next).boxed()
    }

    /// Sends the rest to the backing cache alone.
    pub(crate) async fn send_rest(&self) {
        while self.next().await.is_some() {}
    }

    async fn next(&self) -> Option<Result<Bytes>> {
        let mut source = self.source.lock().await;
        let Source {
            chunks,
            unsent,
            backing,
        } = source.as_mut()?;
        if let Some(chunk) = unsent {
            let _ = backing.send(Ok(chunk.clone())).await;
            *unsent = None;
        }
        let chunk = chunks.next().await;
        match &chunk {
            Some(Ok(chunk)) => *unsent = Some(chunk.clone()),
            Some(Err(error)) => {
                let _ = backing.send(Err(error.clone())).await;
                *source = None;
            }
            None => {
                self.ended.store(true, Relaxed);
                *source = None;
            }
        }
        chunk
    }
}
