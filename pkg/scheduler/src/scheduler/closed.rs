//! A scheduler that is closed for a time, and executions that no node can run.

use std::{collections::BTreeSet, sync::Arc};

use super::Scheduler;
use crate::state::{End, Outcome, Time};

impl<J, O> Scheduler<J, O> {
    /// Refuses new operations and the queues of other nodes, or accepts them again. Running work continues. Queued
    /// executions are left to peers that may run them, and this node's workers run the rest.
    pub fn set_closed(&mut self, is_closed: bool) {
        self.is_closed = is_closed;
        if is_closed {
            self.forget_foreign();
        }
        self.wake();
    }

    /// Returns the requirements of the queued executions, each once.
    pub fn queued_platforms(&self) -> BTreeSet<Arc<str>> {
        let classes = self.queue.executions();
        let platforms = classes.filter_map(|(class, _)| class.platform.clone());
        platforms.collect()
    }

    /// Ends the queued executions with any of these requirements, with this outcome.
    pub fn end_queued(&mut self, platforms: &BTreeSet<Arc<str>>, outcome: Outcome<O>, now: Time) {
        let is_ended = |platform: &Arc<str>| platforms.contains(platform);
        let queued = self.executions.iter().filter(|(_, execution)| {
            let platform = execution.class.platform.as_ref();
            execution.running.is_none() && platform.is_some_and(is_ended)
        });
        let queued: Vec<_> = queued.map(|(number, _)| *number).collect();
        let end = End::Outcome(Arc::new(outcome.value));
        for number in queued {
            self.end_execution(number, &end, outcome.bytes, now);
        }
    }
}
