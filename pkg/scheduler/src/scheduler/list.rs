//! Lists of what is queued and running.

use std::{sync::Arc, time::Duration};

use super::Scheduler;
use crate::{
    execution::Execution,
    name::OperationId,
    state::{ActionKey, Running, Time},
};

/// A queued or running action.
#[derive(Clone, Debug)]
pub struct ListedAction<J> {
    /// One of the operations that share the execution.
    pub operation: OperationId,
    /// The number of operations that share the execution.
    pub operations: usize,
    /// The action.
    pub key: ActionKey,
    /// The target; may be cut.
    pub target: String,
    /// The mnemonic; may be cut.
    pub mnemonic: String,
    /// The build of that operation; may be cut.
    pub build: String,
    /// The work.
    pub job: Arc<J>,
    /// The time of the submission.
    pub submitted: Time,
    /// The time since the action was submitted.
    pub age: Duration,
    /// The current attempt; `None` for a queued action.
    pub running: Option<Running>,
    /// The attempts granted so far.
    pub attempts: u32,
}

/// Numbers of operations and attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// The queued actions.
    pub queued: usize,
    /// The attempts that occupy a worker of this node, including those of other nodes and those that are being stopped.
    pub running: usize,
    /// The attempts at other nodes.
    pub elsewhere: usize,
    /// The operations that have not ended.
    pub live: usize,
    /// The completed operations that are kept.
    pub completed: usize,
    /// The bytes of the kept outcomes.
    pub completed_bytes: u64,
    /// The ends of actions and attempts since the start.
    pub ends: Ends,
}

/// Counts of ends that no worker's outcome explains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// The attempts that ended without a final outcome, so that the action was queued again.
    pub retries: u64,
    /// The actions whose last attempt failed or was lost.
    pub failed: u64,
    /// The actions that were cancelled or abandoned, or ended with the node.
    pub cancelled: u64,
}

impl<J, O> Scheduler<J, O> {
    /// Returns the queued and running actions, the oldest first.
    pub fn list(&self, now: Time) -> impl Iterator<Item = ListedAction<J>> {
        let actions = self.executions.values();
        actions.filter_map(move |execution| self.listed(execution, now))
    }

    /// Returns the work of the queued and running actions, the oldest first.
    pub fn jobs(&self) -> impl Iterator<Item = &Arc<J>> {
        self.executions.values().map(|execution| &execution.job)
    }

    /// Returns the current numbers.
    pub fn totals(&self) -> Totals {
        let (completed, completed_bytes) = self.operations.count_completed();
        Totals {
            queued: self.executions.len().saturating_sub(self.executing),
            running: self.ledger.running(),
            elsewhere: self.ledger.at_peers(),
            live: self.operations.count_live(),
            completed,
            completed_bytes,
            ends: self.ends,
        }
    }

    fn listed(&self, execution: &Execution<J>, now: Time) -> Option<ListedAction<J>> {
        let operation = *execution.operations.first()?;
        let build = self.operations.live(operation);
        Some(ListedAction {
            operation,
            operations: execution.operations.len(),
            key: execution.key.as_ref().clone(),
            target: execution.target.to_string(),
            mnemonic: execution.mnemonic.to_string(),
            build: build.map_or_else(String::new, |live| live.build.to_string()),
            job: Arc::clone(&execution.job),
            submitted: execution.submitted,
            age: now.saturating_sub(execution.submitted),
            running: execution.running.as_deref().cloned(),
            attempts: execution.attempts,
        })
    }
}
