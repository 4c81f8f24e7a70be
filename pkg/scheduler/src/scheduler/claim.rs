//! Workers, their claims and their grants.

use std::sync::Arc;

use super::Scheduler;
use crate::{
    ledger::{AttemptId, Capacity, WorkerId},
    phases::Phases,
    queue::{Class, Next},
    state::{Grant, Running, Time},
};

/// The most claims that smaller executions get in front of one that needs more memory than is free.
const MAX_BYPASSED: u32 = 16;

impl<J, O> Scheduler<J, O> {
    /// Adds a worker, or changes its capacity. Running attempts keep their resources.
    pub fn set_worker(&mut self, worker: &WorkerId, capacity: Capacity) {
        self.ledger.set(worker, capacity);
        self.wake();
    }

    /// Grants the next execution to a free slot of a worker, whose platform meets the requirements for which `fits`
    /// returns true.
    ///
    /// A claim is refused if no slot is free, if nothing fits, or if the worker has to become free for an execution that
    /// needs all its memory, or that 16 smaller ones have passed already. At most one worker at a time
    /// is kept free for an execution.
    pub fn claim(
        &mut self,
        worker: &WorkerId,
        fits: impl Fn(&str) -> bool,
        now: Time,
    ) -> Option<Grant<J>> {
        let grant = self.claim_queued(worker, fits, now);
        if grant.is_none() {
            self.make_way(worker);
        }
        grant
    }

    fn claim_queued(
        &mut self,
        worker: &WorkerId,
        fits: impl Fn(&str) -> bool,
        now: Time,
    ) -> Option<Grant<J>> {
        if !self.ledger.has_slot(worker) {
            return None;
        }
        let next = if let Some(awaited) = self.ledger.drains_for(worker) {
            self.entry_that_fits(worker, awaited)?
        } else {
            let first = self.queue.next(|class| fits(&class.platform))?;
            if self.fits(worker, first.execution) {
                first
            } else {
                self.pass(worker, first.execution, &fits)?
            }
        };
        self.grant(worker, next, now)
    }

    /// Returns an entry to start before an execution that does not fit the worker now.
    fn pass(
        &mut self,
        worker: &WorkerId,
        passed: u64,
        fits: impl Fn(&str) -> bool,
    ) -> Option<Next> {
        let execution = self.executions.get_mut(&passed)?;
        let is_due = execution.is_alone() || execution.bypassed >= MAX_BYPASSED;
        if is_due && self.ledger.drain_for(worker, passed) {
            return None;
        }
        let is_free = |class: &Class| self.ledger.fits(worker, &class.need);
        let next = self
            .queue
            .next(|class| is_free(class) && fits(&class.platform))?;
        execution.bypassed = execution.bypassed.saturating_add(1);
        Some(next)
    }

    /// Returns an entry of a queued execution if the execution fits the worker.
    fn entry_that_fits(&self, worker: &WorkerId, number: u64) -> Option<Next> {
        let execution = self.executions.get(&number)?;
        let entry = self.operations.live(*execution.operations.first()?)?;
        let next = Next {
            line: entry.line?,
            execution: number,
        };
        self.fits(worker, number).then_some(next)
    }

    /// Returns whether an execution fits the worker's free resources.
    fn fits(&self, worker: &WorkerId, number: u64) -> bool {
        let execution = self.executions.get(&number);
        execution.is_some_and(|execution| self.ledger.fits(worker, &execution.class.need))
    }

    fn grant(&mut self, worker: &WorkerId, next: Next, now: Time) -> Option<Grant<J>> {
        let number = next.execution;
        self.queue.reserve_slot(next.line);
        self.leave_queue(number);
        let execution = self.executions.get_mut(&number)?;
        execution.attempts += 1;
        execution.runs = execution.runs.saturating_add(1);
        let attempt = AttemptId {
            execution: number,
            number: execution.attempts,
        };
        let need = &execution.class.need;
        let memory = self.ledger.reserve(worker, attempt, need, Some(next.line));
        execution.running = Some(Running {
            attempt,
            worker: worker.clone(),
            phase: None,
            run: execution.runs,
            since: now,
            phases: Phases::default(),
        });
        self.executing += 1;
        let grant = Grant {
            attempt,
            key: execution.key.as_ref().clone(),
            job: Arc::clone(&execution.job),
            target: Arc::clone(&execution.target),
            memory,
            alone: execution.is_alone(),
            run: execution.runs,
            waited: now.saturating_sub(execution.queued),
        };
        self.notify(number);
        Some(grant)
    }
}
