//! The queues of other nodes, whose actions this node's workers run.

use std::{collections::BTreeMap, sync::Arc};

use super::Scheduler;
use crate::{
    ledger::{AttemptId, WorkerId},
    name::Generation,
    queue::{Class, LineId, Need, Next, Rank},
    state::Effect,
};

/// The length of the names of lines of other nodes, in bytes; longer than the name of a build's line.
const NAME_LEN: usize = super::MAX_BUILD_LEN + 1;

/// A slot of a worker of this node, reserved for an action of another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignClaim {
    /// The id of the reservation, which belongs to no execution. Its end is reported like the end of any attempt.
    pub attempt: AttemptId,
    /// The node that queued the action.
    pub entry: Generation,
    /// The most that the action may need.
    pub need: Need,
    /// The memory reserved on the worker, in bytes.
    pub memory: u64,
    /// Set if nothing else runs on the worker meanwhile.
    pub alone: bool,
}

/// The queued actions of another node with one need. They have one entry in this node's queue.
#[derive(Debug)]
pub(crate) struct ForeignQueue {
    entry: Generation,
    pub(super) need: Need,
    actions: usize,
    pub(super) bypassed: u32,
    /// Set if no worker of this node becomes free for the actions, since other nodes do.
    pub(super) is_left: bool,
    line: LineId,
    rank: Rank,
}

impl ForeignQueue {
    fn class(&self) -> Class {
        Class {
            platform: None,
            need: self.need,
            tried: None,
        }
    }

    /// Returns the place in this node's queue.
    pub(super) fn next(&self, number: u64) -> Next {
        Next {
            line: self.line,
            rank: self.rank,
            execution: number,
        }
    }
}

impl<J, O> Scheduler<J, O> {
    /// Replaces the numbers of actions that another node has queued, by need. They take turns with the builds of this
    /// node like one more build. The other node orders its actions; a claim gets one of them. A draining node accepts
    /// none.
    pub fn set_foreign(&mut self, entry: &Generation, counts: &[(Need, usize)]) {
        let mut numbers = BTreeMap::new();
        for (need, actions) in counts.iter().filter(|_| !self.draining && !self.is_closed) {
            let number: &mut usize = numbers.entry(need.rounded()).or_default();
            *number = number.saturating_add(*actions);
        }
        for (number, need) in self.foreign_of(entry) {
            let actions = numbers.remove(&need).unwrap_or(0);
            self.set_actions(number, actions);
        }
        for (need, actions) in numbers.into_iter().filter(|(_, actions)| *actions > 0) {
            self.add_foreign(entry, need, actions);
        }
    }

    /// Replaces the needs of another node's actions for which other nodes become free. A worker of this node gets such
    /// actions when they fit it, and starts others until then.
    pub fn leave_foreign(&mut self, entry: &Generation, left: &[Need]) {
        for (number, need) in self.foreign_of(entry) {
            let is_left = left.iter().any(|left| left.rounded() == need);
            if let Some(queue) = self.foreign.get_mut(&number) {
                queue.is_left = is_left;
            }
            if is_left && self.ledger.stop_draining(number) {
                self.wake();
            }
        }
    }

    /// Records that another node has no action for a claim with this need.
    pub fn foreign_empty(&mut self, entry: &Generation, need: Need) {
        for (number, queued) in self.foreign_of(entry) {
            if need.covers(queued) {
                self.set_actions(number, 0);
            }
        }
    }

    /// Drops the queue of a node. Its running actions keep their slots until their ends are reported.
    pub fn foreign_gone(&mut self, entry: &Generation) {
        self.set_foreign(entry, &[]);
    }

    /// Releases the memory of a foreign claim that its action does not need. Returns the remaining memory in bytes.
    pub fn shrink(&mut self, attempt: AttemptId, need: Need) -> u64 {
        let memory = self.ledger.shrink(attempt, need);
        self.wake();
        memory
    }

    /// Returns the number of reserved slots for actions of other nodes.
    pub fn count_foreign(&self) -> usize {
        self.ledger.foreign().count()
    }

    /// Drops the queues of all nodes.
    pub(super) fn forget_foreign(&mut self) {
        for number in self.foreign.keys().copied().collect::<Vec<_>>() {
            self.set_actions(number, 0);
        }
    }

    fn foreign_of(&self, entry: &Generation) -> Vec<(u64, Need)> {
        let queues = self.foreign.iter();
        let of_entry = queues.filter(|(_, queue)| queue.entry == *entry);
        of_entry
            .map(|(number, queue)| (*number, queue.need))
            .collect()
    }

    fn add_foreign(&mut self, entry: &Generation, need: Need, actions: usize) {
        self.next += 1;
        let number = self.next;
        let class = Class {
            platform: None,
            need,
            tried: None,
        };
        let rank = Rank {
            first_run: true,
            priority: 0,
            number,
        };
        let name = entry.to_string();
        let name: Arc<str> = format!("{name:>NAME_LEN$}").into();
        let line = self.queue.push(&name, &class, rank, number);
        let queue = ForeignQueue {
            entry: entry.clone(),
            need,
            actions,
            bypassed: 0,
            is_left: false,
            line,
            rank,
        };
        self.foreign.insert(number, queue);
        self.wake();
    }

    /// Changes the number of actions of a foreign queue, which is removed at 0.
    pub(super) fn set_actions(&mut self, number: u64, actions: usize) {
        let Some(queue) = self.foreign.get_mut(&number) else {
            return;
        };
        queue.actions = actions;
        if actions == 0
            && let Some(queue) = self.foreign.remove(&number)
        {
            self.queue.remove(queue.line, &queue.class(), queue.rank);
            if self.ledger.stop_draining(number) {
                self.wake();
            }
        }
    }

    /// Reserves a slot for an action of a foreign queue. The needs of a node take turns.
    pub(super) fn claim_foreign(&mut self, worker: &WorkerId, next: Next) -> Option<ForeignClaim> {
        self.next += 1;
        let attempt = AttemptId {
            execution: self.next,
            number: 1,
        };
        self.queue.reserve_slot(next.line);
        let queue = self.foreign.get_mut(&next.execution)?;
        let (entry, need) = (queue.entry.clone(), queue.need);
        let class = queue.class();
        let before = queue.rank;
        queue.rank.number = self.next;
        queue.bypassed = 0;
        let (rank, actions) = (queue.rank, queue.actions.saturating_sub(1));
        self.queue
            .replace(next.line, &class, before, rank, next.execution);
        if self.ledger.stop_draining(next.execution) {
            self.wake();
        }
        self.set_actions(next.execution, actions);
        let line = Some(next.line);
        let memory = self.ledger.reserve(worker, attempt, &need, line);
        self.ledger.set_foreign(attempt);
        Some(ForeignClaim {
            attempt,
            entry,
            need,
            memory,
            alone: need == Need::Alone,
        })
    }

    /// Stops the attempts of other nodes.
    pub(super) fn stop_foreign(&mut self) {
        let foreign = self.ledger.foreign();
        let stops = foreign.map(|(on, attempt)| Effect::Stop(on.clone(), attempt));
        self.effects.extend(stops);
    }
}
