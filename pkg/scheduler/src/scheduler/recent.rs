//! The actions that ended last.

use std::{collections::VecDeque, sync::Arc};

use super::Scheduler;
use crate::{
    execution::Execution,
    name::OperationId,
    state::{ActionKey, Running, Time},
};

/// The most actions that are remembered after their end.
const RECENT: usize = 50;

/// An action that has ended.
#[derive(Clone, Debug)]
pub struct EndedAction {
    /// One of the operations that shared the execution. It may have expired.
    pub operation: OperationId,
    /// The number of operations that shared the execution at its end.
    pub operations: usize,
    /// The action.
    pub key: Arc<ActionKey>,
    /// The target; may be cut.
    pub target: Arc<str>,
    /// The mnemonic; may be cut.
    pub mnemonic: Arc<str>,
    /// The build of that operation; may be cut.
    pub build: Arc<str>,
    /// The time of the submission.
    pub submitted: Time,
    /// The time of the end.
    pub ended: Time,
    /// The last attempt; `None` if the action was queued at its end.
    pub running: Option<Running>,
    /// The attempts granted.
    pub attempts: u32,
}

/// The newest ended actions.
#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<EndedAction>);

impl Recent {
    fn push(&mut self, action: EndedAction) {
        if self.0.len() >= RECENT {
            self.0.pop_back();
        }
        self.0.push_front(action);
    }
}

impl<J, O> Scheduler<J, O> {
    /// Returns the actions that ended last, the newest first.
    pub fn recent(&self) -> impl Iterator<Item = &EndedAction> {
        self.recent.0.iter()
    }

    /// Remembers an execution that ends.
    pub(super) fn remember(&mut self, execution: &Execution<J>, now: Time) {
        let Some(operation) = execution.operations.first().copied() else {
            return;
        };
        let live = self.operations.live(operation);
        self.recent.push(EndedAction {
            operation,
            operations: execution.operations.len(),
            key: Arc::clone(&execution.key),
            target: Arc::clone(&execution.target),
            mnemonic: Arc::clone(&execution.mnemonic),
            build: live.map_or_else(|| "".into(), |live| Arc::clone(&live.build)),
            submitted: execution.submitted,
            ended: now,
            running: execution.running.as_deref().cloned(),
            attempts: execution.attempts,
        });
    }
}
