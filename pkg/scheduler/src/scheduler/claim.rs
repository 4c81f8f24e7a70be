//! Workers, their claims and their grants.

use std::sync::Arc;

use super::{ForeignClaim, Scheduler};
use crate::{
    ledger::{AttemptId, Capacity, Ledger, WorkerId},
    queue::{Class, Need, Next},
    state::{Grant, Time},
};

/// The most claims that executions get in front of one whose turn was next: smaller ones if it needs more memory than
/// is free, those whose inputs the claiming peer has fetched, and others if another peer has fetched its inputs.
pub(super) const MAX_BYPASSED: u32 = 16;

/// The work that a free slot of this node got.
#[derive(Debug)]
pub enum Claimed<J> {
    /// An attempt of an execution of this node.
    Own(Grant<J>),
    /// An action of another node, which this node must still request.
    Foreign(ForeignClaim),
}

impl<J, O> Scheduler<J, O> {
    /// Adds a worker, or changes its capacity. Running attempts keep their resources.
    pub fn set_worker(&mut self, worker: &WorkerId, capacity: Capacity) {
        self.ledger.set(worker, capacity);
        self.wake();
    }

    /// Grants the next execution to a free slot of a worker, whose platform meets the requirements for which `fits`
    /// returns true. The queues of other nodes take turns with this node's.
    ///
    /// A claim is refused if no slot is free, if nothing fits, or if the worker has to become free for an execution that
    /// needs all its memory, or that 16 smaller ones have passed already. At most one worker at a time
    /// is kept free for an execution.
    pub fn claim(
        &mut self,
        worker: &WorkerId,
        fits: impl Fn(&str) -> bool,
        now: Time,
    ) -> Option<Claimed<J>> {
        let claimed = self.claim_queued(worker, fits, now);
        if claimed.is_none() {
            self.make_way(worker);
        }
        claimed
    }

    fn claim_queued(
        &mut self,
        worker: &WorkerId,
        fits: impl Fn(&str) -> bool,
        now: Time,
    ) -> Option<Claimed<J>> {
        if self.draining || !self.ledger.has_slot(worker) {
            return None;
        }
        let next = if let Some(awaited) = self.ledger.drains_for(worker) {
            self.entry_that_fits(worker, awaited)?
        } else {
            let first = self
                .queue
                .next(|class| self.may_run(worker, class, &fits))?;
            if self.fits(worker, first.execution) {
                let is_free = |class: &Class| {
                    self.ledger.fits(worker, &class.need) && self.may_run(worker, class, &fits)
                };
                let chosen = self.choose_near(None, first, is_free);
                self.count_bypassed(&first, &chosen);
                chosen
            } else {
                self.pass(worker, first.execution, &fits)?
            }
        };
        if self.foreign.contains_key(&next.execution) {
            return self.claim_foreign(worker, next).map(Claimed::Foreign);
        }
        let reserve = |ledger: &mut Ledger, attempt, need: &Need| {
            ledger.reserve(worker, attempt, need, Some(next.line))
        };
        let grant = self.grant(worker, next, now, reserve);
        grant.map(Claimed::Own)
    }

    /// Returns an entry to start before an execution that does not fit the worker now.
    fn pass(
        &mut self,
        worker: &WorkerId,
        passed: u64,
        fits: impl Fn(&str) -> bool,
    ) -> Option<Next> {
        let is_due = *self.bypassed(passed)? >= MAX_BYPASSED;
        let is_left = self.foreign.get(&passed).is_some_and(|queue| queue.is_left);
        if !is_left
            && (is_due || self.need(passed) == Some(Need::Alone))
            && self.ledger.drain_for(worker, passed)
        {
            return None;
        }
        let is_free = |class: &Class| self.ledger.fits(worker, &class.need);
        let next = self
            .queue
            .next(|class| is_free(class) && self.may_run(worker, class, &fits))?;
        let bypassed = self.bypassed(passed)?;
        *bypassed = bypassed.saturating_add(1);
        Some(next)
    }

    /// The claims that others got in front of an execution or of a foreign queue.
    pub(super) fn bypassed(&mut self, number: u64) -> Option<&mut u32> {
        if let Some(execution) = self.executions.get_mut(&number) {
            return Some(&mut execution.bypassed);
        }
        let queue = self.foreign.get_mut(&number)?;
        Some(&mut queue.bypassed)
    }

    /// The need of an execution or of a foreign queue.
    fn need(&self, number: u64) -> Option<Need> {
        let execution = self.executions.get(&number);
        let own = execution.map(|execution| execution.class.need);
        own.or_else(|| Some(self.foreign.get(&number)?.need))
    }

    /// Returns an entry of a queued execution if the execution fits the worker.
    fn entry_that_fits(&self, worker: &WorkerId, number: u64) -> Option<Next> {
        if let Some(queue) = self.foreign.get(&number) {
            return self.fits(worker, number).then(|| queue.next(number));
        }
        let next = self.entry(number)?;
        self.fits(worker, number).then_some(next)
    }

    /// Returns an entry of a queued execution.
    pub(super) fn entry(&self, number: u64) -> Option<Next> {
        let execution = self.executions.get(&number)?;
        let entry = self.operations.live(*execution.operations.first()?)?;
        Some(Next {
            line: entry.line?,
            rank: entry.rank,
            execution: number,
        })
    }

    /// Returns whether a worker of this node meets the requirements of a class, and does not leave it to others. A closed
    /// node leaves all that it can to peers.
    fn may_run(&self, worker: &WorkerId, class: &Class, fits: impl Fn(&str) -> bool) -> bool {
        let is_left = self.leaves(worker, class) || self.is_closed && self.has_peer(class);
        class.is_met(fits) && !is_left
    }

    /// Returns whether an execution fits the worker's free resources.
    fn fits(&self, worker: &WorkerId, number: u64) -> bool {
        let need = self.need(number);
        need.is_some_and(|need| self.ledger.fits(worker, &need))
    }

    /// Begins an attempt. `reserve` reserves its resources, and returns its memory in bytes.
    pub(super) fn grant(
        &mut self,
        worker: &WorkerId,
        next: Next,
        now: Time,
        reserve: impl FnOnce(&mut Ledger, AttemptId, &Need) -> u64,
    ) -> Option<Grant<J>> {
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
        let memory = reserve(&mut self.ledger, attempt, &execution.class.need);
        execution.begin(attempt, worker, now);
        self.executing += 1;
        let grant = Grant {
            attempt,
            key: execution.key.as_ref().clone(),
            job: Arc::clone(&execution.job),
            target: Arc::clone(&execution.target),
            mnemonic: Arc::clone(&execution.mnemonic),
            memory,
            alone: execution.is_alone(),
            run: execution.runs,
            waited: now.saturating_sub(execution.queued),
        };
        self.notify(number);
        Some(grant)
    }
}
