//! An upload's content, for two who want it at once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gorego_storage::{Chunks, Result};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;

/// How many chunks the backing cache may be behind.
const BEHIND: usize = 4;

/// Content that is read by the local store, and sent to the backing cache as it is. Whatever was
/// taken from the client is in the local store's hands at once, so that it outlives the client.
#[derive(Clone)]
pub(crate) struct Source {
    state: Arc<Mutex<State>>,
    /// Whether the backing cache read any of it. Before that its client retries by itself.
    was_read: Arc<AtomicBool>,
}

struct State {
    chunks: Chunks,
    /// The newest chunk, which is still to be sent up.
    unsent: Option<Bytes>,
    /// Gone when the backing cache wants no more.
    up: Option<mpsc::Sender<Result<Bytes>>>,
    ended: bool,
}

impl Source {
    /// The content, and what of it is sent up.
    pub(crate) fn new(chunks: Chunks) -> (Self, Chunks) {
        let (up, receiver) = mpsc::channel(BEHIND);
        let state = State {
            chunks,
            unsent: None,
            up: Some(up),
            ended: false,
        };
        let source = Self {
            state: Arc::new(Mutex::new(state)),
            was_read: Arc::default(),
        };
        let was_read = Arc::clone(&source.was_read);
        let sent = ReceiverStream::new(receiver).inspect(move |_| was_read.store(true, Relaxed));
        (source, sent.boxed())
    }

    /// The content for the local store.
    pub(crate) fn chunks(&self) -> Chunks {
        let next = |source: Self| async move {
            let chunk = source.state.lock().await.next().await?;
            Some((chunk, source))
        };
        stream::unfold(self.clone(), next).boxed()
    }

    /// Sends up the rest, which the local store has no use for.
    pub(crate) async fn drain(&self) {
        let mut state = self.state.lock().await;
        while state.up.is_some() && state.next().await.is_some_and(|chunk| chunk.is_ok()) {}
    }

    pub(crate) fn was_read(&self) -> bool {
        self.was_read.load(Relaxed)
    }

    /// Whether the end was reached; not, while anybody waits for more.
    pub(crate) fn has_ended(&self) -> bool {
        self.state.try_lock().is_ok_and(|state| state.ended)
    }
}

impl State {
    async fn next(&mut self) -> Option<Result<Bytes>> {
        if let Some(chunk) = self.unsent.clone() {
            self.send(Ok(chunk)).await;
            self.unsent = None;
        }
        match self.chunks.next().await {
            None => {
                self.ended = true;
                self.up = None;
                None
            }
            Some(Ok(chunk)) => {
                self.unsent = Some(chunk.clone());
                Some(Ok(chunk))
            }
            Some(Err(error)) => {
                self.send(Err(error.clone())).await;
                Some(Err(error))
            }
        }
    }

    async fn send(&mut self, chunk: Result<Bytes>) {
        if let Some(up) = &self.up
            && up.send(chunk).await.is_err()
        {
            self.up = None;
        }
    }
}
