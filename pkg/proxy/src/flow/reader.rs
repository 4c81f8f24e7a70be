//! Those who read a blob on its way.

use std::sync::Arc;

use bytes::Bytes;
use gorego_storage::Result;

use super::{Flow, Found, state::Place};

/// Somebody who reads a flow, until dropped.
pub(super) struct Reader {
    flow: Arc<Flow>,
    number: u64,
    at: u64,
}

impl Reader {
    pub(super) fn new(flow: Arc<Flow>, at: u64) -> Option<Self> {
        let number = {
            let mut state = flow.state();
            let gone = at < state.start && state.growth.len() < state.start;
            if gone || matches!(state.outcome, Some(Err(_))) {
                return None;
            }
            let number = state.next_reader;
            state.next_reader += 1;
            state.readers.insert(number, Place::new(at));
            number
        };
        Some(Self { flow, number, at })
    }

    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let flow = Arc::clone(&self.flow);
            let arrived = flow.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            let piece = match flow.look(self.number, self.at) {
                Found::Piece(piece) => piece,
                Found::Written(len) => flow.written(self.at, len).await?,
                Found::End(outcome) => return outcome.map(|()| None),
                Found::Nothing => {
                    arrived.await;
                    continue;
                }
            };
            self.at += piece.len() as u64;
            return Ok(Some(piece));
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.flow.state().readers.remove(&self.number);
        self.flow.passed.notify_waiters();
    }
}

/// Somebody who wants a flow to come to its end, until dropped.
pub(crate) struct Waiter {
    flow: Arc<Flow>,
    waiting: bool,
}

impl Waiter {
    pub(crate) fn new(flow: Arc<Flow>) -> Self {
        flow.state().waiters += 1;
        let waiting = false;
        Self { flow, waiting }
    }

    /// Waits for it, and reads no more.
    pub(crate) async fn verified(mut self) -> Result<()> {
        self.flow.state().waiting += 1;
        self.waiting = true;
        self.flow.ended().await
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut state = self.flow.state();
        state.waiters -= 1;
        if self.waiting {
            state.waiting -= 1;
        }
    }
}
