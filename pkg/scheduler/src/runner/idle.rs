//! Slots for work that no client waits for.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Runner, RunningAttempt};
use crate::ledger::WorkerId;

/// A slot of a worker for work that no client waits for, until it is dropped.
pub struct IdleSlot<J, O> {
    _attempt: RunningAttempt<J, O>,
    /// Cancelled when an action needs the slot, or the runner shuts down.
    pub stop: CancellationToken,
}

impl<J, O> Runner<J, O>
where
    J: Send + Sync + 'static,
    O: Send + Sync + 'static,
{
    /// Waits for a slot of a worker, and memory in bytes, that no action needs; `None` once the runner shuts down.
    pub async fn idle_slot(&self, worker: &WorkerId, memory: u64) -> Option<IdleSlot<J, O>> {
        let mut changed = self.shared.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if let Some(slot) = self.claim_idle(worker, memory) {
                return Some(slot);
            }
            tokio::select! {
                biased;
                () = self.stop.0.cancelled() => return None,
                _ = changed.changed() => {}
            }
        }
    }

    fn claim_idle(&self, worker: &WorkerId, memory: u64) -> Option<IdleSlot<J, O>> {
        let stop = self.stop.0.child_token();
        let id = self.shared.apply(|state, _| {
            let attempt = state.scheduler.claim_idle(worker, memory)?;
            state.attempts.insert(attempt, stop.clone());
            Some(attempt)
        })?;
        let shared = Arc::clone(&self.shared);
        Some(IdleSlot {
            _attempt: RunningAttempt { shared, id },
            stop,
        })
    }
}
