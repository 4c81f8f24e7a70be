//! Slots of this node for actions of other nodes.

use std::{fmt, sync::Arc};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Runner, RunningAttempt};
use crate::{
    name::Generation,
    queue::Need,
    scheduler::ForeignClaim,
    state::{Grant, Phase, Report},
    worker::{Attempt, Worker},
};

/// The receiver of slots of this node for actions of other nodes.
pub trait Foreign<J, O>: Send + Sync {
    /// Asks the other node for an action. Must not block. Dropping the slot frees it.
    fn claimed(&self, slot: ForeignSlot<J, O>);
}

/// A slot of a worker for an action of another node, until it is dropped.
pub struct ForeignSlot<J, O> {
    pub(super) attempt: RunningAttempt<J, O>,
    pub(super) worker: Arc<dyn Worker<J, O>>,
    /// The reservation.
    pub claim: ForeignClaim,
    /// Cancelled when this node shuts down. The caller cancels it to stop the action.
    pub stop: CancellationToken,
}

impl<J, O> ForeignSlot<J, O> {
    /// Runs an attempt in the slot, which is free afterwards. Memory that the grant does not need is released at once.
    /// The slot's id and resources replace those of the attempt. `progress` gets each phase that begins, and the number
    /// of the command's current or next run.
    pub async fn run(
        self,
        grant: Grant<J>,
        progress: impl Fn(Phase, u16) + Send + Sync + 'static,
    ) -> Report<O> {
        let need = if grant.alone {
            Need::Alone
        } else {
            Need::Memory(grant.memory)
        };
        let id = self.claim.attempt;
        let shared = &self.attempt.shared;
        let memory = shared.apply(|state, _| state.scheduler.shrink(id, need));
        let last = Mutex::new((None, grant.run));
        let progress = move |phase| {
            let mut last = last.lock();
            if phase == Phase::Run && last.0 >= Some(phase) {
                last.1 = last.1.saturating_add(1);
            }
            last.0 = Some(phase);
            progress(phase, last.1);
        };
        let grant = Grant {
            attempt: id,
            memory,
            alone: grant.alone && self.claim.alone,
            ..grant
        };
        let attempt = Attempt {
            grant,
            stop: self.stop.clone(),
            progress: Arc::new(progress),
        };
        self.worker.run(attempt).await
    }
}

impl<J, O> fmt::Debug for ForeignSlot<J, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ForeignSlot").field(&self.claim).finish()
    }
}

impl<J, O> Runner<J, O>
where
    J: Send + Sync + 'static,
    O: Send + Sync + 'static,
{
    /// Sets the receiver of slots for other nodes, once. Without one, they are freed at once.
    pub fn set_foreign_handler(&self, handler: Arc<dyn Foreign<J, O>>) {
        // A second receiver is ignored.
        let _ = self.shared.foreign.set(handler);
    }

    /// Replaces the numbers of actions that another node has queued
    /// ([`Scheduler::set_foreign`](crate::Scheduler::set_foreign)), and the needs for which other nodes become free
    /// ([`Scheduler::leave_foreign`](crate::Scheduler::leave_foreign)).
    pub fn set_foreign(&self, entry: &Generation, counts: &[(Need, usize)], left: &[Need]) {
        self.shared.apply(|state, _| {
            state.scheduler.set_foreign(entry, counts);
            state.scheduler.leave_foreign(entry, left);
        });
    }

    /// Records that another node has no action for a claim with this need.
    pub fn foreign_empty(&self, entry: &Generation, need: Need) {
        self.shared
            .apply(|state, _| state.scheduler.foreign_empty(entry, need));
    }

    /// Drops the queue of another node. Its running actions keep their slots.
    pub fn foreign_gone(&self, entry: &Generation) {
        self.shared
            .apply(|state, _| state.scheduler.foreign_gone(entry));
    }
}
