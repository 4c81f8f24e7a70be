//! A node that accepts no new work for a time, and executions that no node can run.

use std::{collections::BTreeSet, sync::Arc};

use super::Runner;
use crate::state::Outcome;

/// A function that returns whether a peer runs actions with these requirements.
pub type Elsewhere = Arc<dyn Fn(&str) -> bool + Send + Sync>;

impl<J, O> Runner<J, O>
where
    J: Send + Sync + 'static,
    O: Send + Sync + 'static,
{
    /// Refuses new operations and the actions of other nodes. Leaves the queued actions to peers where `elsewhere`
    /// returns true. The workers of this node run the rest. To be called again when peers come or go. `None` ends it.
    pub fn close(&self, elsewhere: Option<Elsewhere>) {
        self.shared.apply(|state, _| {
            state.scheduler.set_closed(elsewhere.is_some());
            state.elsewhere = elsewhere;
        });
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
