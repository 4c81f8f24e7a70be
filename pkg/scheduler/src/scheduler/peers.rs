//! Grants to other nodes, which claim for their own free slots.

use std::{collections::BTreeMap, sync::Arc};

use super::Scheduler;
use crate::{
    ledger::{AttemptId, WorkerId},
    queue::{Class, Need},
    state::{Grant, Phase, Time},
};

impl<J, O> Scheduler<J, O> {
    /// Grants the next execution to a slot of a peer, which reserved the resources for `need` there. `fits` returns
    /// whether the peer meets the requirements of a platform.
    ///
    /// The execution is the first one in the order of the queue whose need is covered. In its line, those of
    /// [`Self::look_ahead`] are preferred if they are as urgent; an execution is passed so 16 times at most. A slot
    /// without other work goes to an execution that must be alone, if there is one. Neither passed executions nor the
    /// draining of this node's workers are affected.
    pub fn claim_for(
        &mut self,
        peer: &WorkerId,
        need: Need,
        fits: impl Fn(&str) -> bool,
        now: Time,
    ) -> Option<Grant<J>> {
        let is_fitting = |class: &Class| self.suits(peer, class, &fits);
        let is_alone = |class: &Class| class.need == Need::Alone && is_fitting(class);
        let alone = (need == Need::Alone).then(|| self.queue.next(is_alone));
        let covered = |class: &Class| need.covers(class.need) && is_fitting(class);
        let next = if let Some(alone) = alone.flatten() {
            alone
        } else {
            let first = self.queue.next(covered)?;
            let chosen = self.choose_near(Some(peer), first, covered);
            self.count_bypassed(&first, &chosen);
            chosen
        };
        self.grant(peer, next, now, |ledger, attempt, need| {
            ledger.reserve_at_peer(peer, attempt, next.line);
            match *need {
                Need::Memory(bytes) => bytes,
                Need::Alone => 0,
            }
        })
    }

    /// Returns whether a peer may run the executions of a class, and does not leave them to others.
    pub(super) fn suits(
        &self,
        peer: &WorkerId,
        class: &Class,
        fits: impl Fn(&str) -> bool,
    ) -> bool {
        class.platform.as_deref().is_some_and(fits) && !self.leaves(peer, class)
    }

    /// Returns the numbers of queued executions by need that a peer may run: it has the memory for them, and their
    /// platform meets `fits`. The cost grows with the number of different platforms and needs.
    pub fn queued_by_need(
        &self,
        peer: &WorkerId,
        fits: impl Fn(&str) -> bool,
    ) -> Vec<(Need, usize)> {
        let mut counts = BTreeMap::new();
        // The memory of a peer that cannot be reached is not known, so it excludes nothing.
        let taker = self.peer(peer);
        let has_memory = |class| taker.is_none_or(|taker| self.has_memory_at(taker, class));
        for (class, executions) in self.queue.executions() {
            if self.suits(peer, class, &fits) && has_memory(class) {
                *counts.entry(class.need).or_default() += executions;
            }
        }
        counts.into_iter().collect()
    }

    /// Returns the most peers that shall become free for queued executions, by need: one for each execution, except for
    /// one that a worker of this node becomes free for.
    pub fn peers_to_free(&self) -> BTreeMap<Need, usize> {
        let mut counts = BTreeMap::new();
        for (class, executions) in self.queue.executions() {
            let (all, is_own) = counts.entry(class.need).or_insert((0_usize, false));
            *all += executions;
            *is_own |= self.has_own_taker(class);
        }
        let counts = counts.into_iter();
        let peers = counts.map(|(need, (all, is_own))| (need, all - usize::from(is_own)));
        peers.collect()
    }

    /// Returns the number of classes that [`Self::queued_by_need`] has to count.
    pub fn count_classes(&self) -> usize {
        self.queue.executions().len()
    }

    /// Returns the target and the mnemonic of the next execution in the order of the queue.
    pub fn next_target(&self) -> Option<(Arc<str>, Arc<str>)> {
        let next = self.queue.next(|class| class.platform.is_some())?;
        let execution = self.executions.get(&next.execution)?;
        let names = (&execution.target, &execution.mnemonic);
        Some((Arc::clone(names.0), Arc::clone(names.1)))
    }

    /// Returns a number that grows whenever [`Self::queued_by_need`] may have changed.
    pub fn queue_version(&self) -> u64 {
        self.queue.version()
    }

    /// Returns whether the attempt's execution has not ended, so that the outcome of the attempt would be used.
    pub fn is_awaited(&self, attempt: AttemptId) -> bool {
        let execution = self.executions.get(&attempt.execution);
        execution.is_some_and(|execution| attempt.number <= execution.attempts)
    }

    /// Resumes an attempt that was lost, but that its peer still runs. Returns false if the attempt was not lost at this
    /// peer, or if its execution is no longer queued; then the first outcome is used.
    pub fn adopt(&mut self, peer: &WorkerId, attempt: AttemptId, now: Time) -> bool {
        let number = attempt.execution;
        let Some(next) = self.entry(number) else {
            return false;
        };
        let lost = (Some(attempt.number), peer.clone());
        let execution = self.executions.get(&number);
        if !execution.is_some_and(|execution| execution.lost.contains(&lost)) {
            return false;
        }
        self.queue.reserve_slot(next.line);
        self.leave_queue(number);
        self.ledger.reserve_at_peer(peer, attempt, next.line);
        if let Some(execution) = self.executions.get_mut(&number) {
            execution.lost.retain(|other| *other != lost);
            execution.update_tried();
            execution.begin(attempt, peer, now);
        }
        self.executing += 1;
        self.notify(number);
        true
    }

    /// Records that a peer did not begin an attempt, for lack of a slot. The execution is queued again at the head, and
    /// no loss is counted.
    pub fn decline(&mut self, attempt: AttemptId, now: Time) {
        self.release(attempt);
        let Some(execution) = self.executions.get_mut(&attempt.execution) else {
            return;
        };
        if execution.is_current(attempt) {
            execution.runs = execution.runs.saturating_sub(1);
            self.requeue(attempt.execution, now);
        } else {
            execution.end_lost(attempt.number);
        }
    }

    /// Records the phase and the run of the command that a peer reports. Reports of older attempts, and repeated ones,
    /// are ignored.
    pub fn progress_at_peer(&mut self, attempt: AttemptId, phase: Phase, run: u16, now: Time) {
        let Some(execution) = self.executions.get_mut(&attempt.execution) else {
            return;
        };
        let running = execution.running.as_deref_mut();
        let Some(running) = running.filter(|running| running.attempt == attempt) else {
            return;
        };
        if running.run < run && phase >= Phase::Run {
            execution.runs = run;
            running.run = run;
            running.phases.return_to(Phase::Run);
            running.phase = Some(Phase::Run);
            if phase == Phase::Run {
                self.notify(attempt.execution);
                return;
            }
        }
        if running.phase < Some(phase) {
            self.progress(attempt, phase, now);
        }
    }
}
