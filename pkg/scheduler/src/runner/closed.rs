//! A node that accepts no new work for a time, and executions that no node can run.

use std::{collections::BTreeSet, sync::Arc};

use super::Runner;
use crate::state::Outcome;

impl<J, O> Runner<J, O>
where
    J: Send + Sync + 'static,
    O: Send + Sync + 'static,
{
    /// Closes this node, or opens it again ([`Scheduler::set_closed`](crate::Scheduler::set_closed)).
    pub fn set_closed(&self, is_closed: bool) {
        self.shared
            .apply(|state, _| state.scheduler.set_closed(is_closed));
    }

    /// Returns the number of operations that have not ended, and of actions of other nodes that run on this node.
    pub fn unfinished(&self) -> usize {
        let scheduler = &self.shared.state.lock().scheduler;
        let live = scheduler.totals().live;
        live.saturating_add(scheduler.count_foreign())
    }

    /// Returns the requirements of the queued executions, each once.
    pub fn queued_platforms(&self) -> BTreeSet<Arc<str>> {
        self.shared.state.lock().scheduler.queued_platforms()
    }

    /// Ends the queued executions with any of these requirements, with this outcome.
    pub fn end_queued(&self, platforms: &BTreeSet<Arc<str>>, outcome: Outcome<O>) {
        self.shared
            .apply(|state, now| state.scheduler.end_queued(platforms, outcome, now));
    }
}
