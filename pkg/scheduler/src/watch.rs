//! A client's view of an operation.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{name::OperationId, runner::Shared, state::Stage};

/// A watcher of an operation, which leaves when dropped.
pub struct Watch<J, O> {
    id: OperationId,
    shared: Arc<Shared<J, O>>,
    /// The stage to return next, without waiting.
    first: Option<Stage<O>>,
    /// The later stages; `None` after the operation's completion.
    stages: Option<watch::Receiver<Stage<O>>>,
}

impl<J, O> Watch<J, O> {
    pub(crate) fn new(
        id: OperationId,
        shared: Arc<Shared<J, O>>,
        first: Stage<O>,
        stages: Option<watch::Receiver<Stage<O>>>,
    ) -> Self {
        let first = Some(first);
        Self {
            id,
            shared,
            first,
            stages,
        }
    }

    /// The operation.
    pub fn operation(&self) -> OperationId {
        self.id
    }

    /// Returns the current stage at once, then each later one; `None` after the completion. A slow caller misses
    /// stages, but neither the newest nor the completion. Cancelling the call loses no stage.
    pub async fn next(&mut self) -> Option<Stage<O>> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let stages = self.stages.as_mut()?;
        let changed = stages.changed().await;
        // The sender is dropped with the completion, which is seen first.
        let stage = changed.is_ok().then(|| stages.borrow_and_update().clone());
        if !matches!(stage, Some(Stage::Queued | Stage::Executing(_))) {
            self.stages = None;
        }
        stage
    }
}

impl<J, O> Drop for Watch<J, O> {
    fn drop(&mut self) {
        self.stages = None;
        self.shared.detach(self.id);
    }
}
