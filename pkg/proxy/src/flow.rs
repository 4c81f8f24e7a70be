//! A blob on its way from the backing cache, and its readers.
//!
//! The blob is in the file that it is written to, except for its newest part, which is in memory. If it
//! cannot be written, the newest part is as large as the budget permits, and the fetch continues at the pace
//! of the readers.

pub(crate) mod reader;
mod state;

use std::sync::Arc;

use bytes::Bytes;
use gorego_limits::Budget;
use gorego_storage::{BlobFile, Digest, Error, Result};
use gorego_storage_local::Growth;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, OnceCell},
    time::timeout_at,
};

use self::state::FlowState;
use crate::shared::Shared;

/// The pieces in use, by offset. Readers at one offset share a piece; without that, each would get a smaller one from
/// the common budget.
type Pieces = Shared<u64, OnceCell<Bytes>>;

/// A blob on its way from the backing cache.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) digest: Digest,
    /// The budget of pieces that are read from the file.
    pieces: Budget,
    shared: Pieces,
    state: Mutex<FlowState>,
    /// Notified when content or the end arrived.
    arrived: Notify,
    /// Notified when a reader proceeded or left.
    passed: Notify,
}

impl Flow {
    pub(crate) fn new(digest: Digest, pieces: Budget) -> Self {
        Self {
            digest,
            pieces,
            shared: Pieces::default(),
            state: Mutex::default(),
            arrived: Notify::new(),
            passed: Notify::new(),
        }
    }

    pub(crate) fn growth(&self) -> Arc<Growth> {
        Arc::clone(&self.state.lock().growth)
    }

    /// Serves readers from the verified file of another writer. The last chunk is withheld until this fetch is
    /// verified: a reader may have read the beginning of its content.
    pub(crate) fn switch_to_file(&self, file: &BlobFile) {
        self.state.lock().growth = Arc::new(Growth::ended(file));
        self.arrived.notify_waiters();
        self.passed.notify_waiters();
    }

    /// Adds a chunk. If memory is full and the blob cannot be written, waits for readers.
    pub(crate) async fn push(&self, chunk: Bytes) {
        self.state.lock().push(chunk);
        self.arrived.notify_waiters();
        self.make_room().await;
    }

    async fn make_room(&self) {
        loop {
            // Created first, so that no notification is missed.
            let passed = self.passed.notified();
            let Some(until) = self.state.lock().make_room() else {
                return;
            };
            let _ = timeout_at(until, passed).await;
        }
    }

    /// Keeps up to `most` bytes in memory from now on, since the blob is no longer written.
    pub(crate) fn to_memory(&self, most: u64) {
        self.state.lock().in_memory = Some(most);
    }

    /// Ends the flow if it has no readers. Later callers need another one.
    pub(crate) fn abandon(&self) -> Result<()> {
        let mut state = self.state.lock();
        if !state.readers.is_empty() {
            return Ok(());
        }
        let digest = self.digest;
        let why = "it cannot be written to the disk, and no reader is left";
        let error = Error::Unavailable(format!("fetch of {digest} stopped: {why}"));
        state.outcome = Some(Err(error.clone()));
        Err(error)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.state.lock().outcome.is_some()
    }

    /// Returns the error of a flow that failed.
    pub(crate) fn failure(&self) -> Result<()> {
        self.state.lock().outcome.clone().unwrap_or(Ok(()))
    }

    /// Ends the flow, unless it has ended.
    pub(crate) fn finish(&self, outcome: Result<()>) {
        {
            let mut state = self.state.lock();
            state.outcome.get_or_insert(outcome);
            if let Some(Err(_)) = state.outcome {
                state.drop_before(u64::MAX);
            }
            state.drop_written();
        }
        self.arrived.notify_waiters();
    }

    /// Waits until readers have taken all content that is in memory. Call it after the fetch has ended. Disconnects
    /// readers that stall.
    pub(crate) async fn emptied(&self) {
        self.to_memory(0);
        self.make_room().await;
    }

    /// Waits until content has arrived, or for the error if none will.
    pub(crate) async fn started(&self) -> Result<()> {
        self.until(|state| match &state.outcome {
            Some(outcome) => Some(outcome.clone()),
            None => (state.end > 0).then_some(Ok(())),
        })
        .await
    }

    /// Waits until the whole blob has arrived and is verified. The caller does not count as a reader, so a fetch of an
    /// unwritten blob may stop meanwhile.
    pub(crate) async fn ended(&self) -> Result<()> {
        self.until(|state| state.outcome.clone()).await
    }

    /// Waits until `find` returns a value, which can change whenever something arrives.
    async fn until<T>(&self, mut find: impl FnMut(&mut FlowState) -> Option<T>) -> T {
        loop {
            let arrived = self.arrived.notified();
            if let Some(found) = find(&mut self.state.lock()) {
                return found;
            }
            arrived.await;
        }
    }
}

#[cfg(test)]
mod tests;
