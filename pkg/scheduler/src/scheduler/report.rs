//! Reports of workers, and losses of them.

use std::{mem, sync::Arc};

use super::Scheduler;
use crate::{
    ledger::{AttemptId, Reservation, WorkerId},
    queue::Need,
    state::{End, Outcome, Phase, Report, Time},
};

impl<J, O> Scheduler<J, O> {
    /// Records the beginning of a phase. Those of older attempts are ignored, and so are those before the current one,
    /// except for a further run of the command.
    pub fn progress(&mut self, attempt: AttemptId, phase: Phase, now: Time) {
        let Some(execution) = self.executions.get_mut(&attempt.execution) else {
            return;
        };
        let running = execution.running.as_deref_mut();
        let Some(running) = running.filter(|running| running.attempt == attempt) else {
            return;
        };
        if running.phase < Some(phase) {
            let after = now.saturating_sub(running.since);
            running.phases.begin(phase, after);
        } else if phase == Phase::Run {
            execution.runs = execution.runs.saturating_add(1);
            running.run = execution.runs;
            running.phases.return_to(phase);
        } else {
            return;
        }
        running.phase = Some(phase);
        self.notify(attempt.execution);
    }

    /// Records the end of an attempt, whose resources are free from now on. A final outcome is used if the execution
    /// still waits, even if a later attempt is queued or runs already; that one is then stopped.
    pub fn report(&mut self, attempt: AttemptId, report: Report<O>, now: Time) {
        let worker = self.release(attempt);
        match (&report, worker) {
            (Report::Done(_) | Report::OutOfMemory(_), Some(worker)) => self.succeeded(&worker),
            (Report::Failed(_), Some(worker)) => self.failed(&worker, now),
            _ => {}
        }
        let Some(execution) = self.executions.get_mut(&attempt.execution) else {
            return;
        };
        if attempt.number > execution.attempts {
            return;
        }
        let is_current = execution.is_current(attempt);
        let outcome = match report {
            Report::Done(outcome) => outcome,
            _ if !is_current => {
                execution.end_lost(attempt.number);
                return;
            }
            Report::OutOfMemory(_) if !execution.is_alone() => {
                execution.class.need = Need::Alone;
                self.requeue(attempt.execution, now);
                return;
            }
            Report::Failed(_) | Report::Unsuited(_)
                if execution.failed.len() < allowed(self.options.max_retries) =>
            {
                let running = execution.running.as_ref();
                let worker = running.map(|running| running.worker.clone());
                execution.failed.extend(worker);
                execution.update_tried();
                self.requeue(attempt.execution, now);
                return;
            }
            Report::OutOfMemory(outcome) | Report::Failed(outcome) | Report::Unsuited(outcome) => {
                self.ends.failed += 1;
                outcome
            }
            Report::Stopped => {
                self.count_loss(attempt.execution, now);
                if let Some(execution) = self.executions.get_mut(&attempt.execution) {
                    execution.end_lost(attempt.number);
                }
                return;
            }
        };
        let Outcome { value, bytes } = outcome;
        let end = End::Outcome(Arc::new(value));
        self.end_execution(attempt.execution, &end, bytes, now);
    }

    /// Records that a worker lost an attempt, or never received its grant. The execution is queued again. The worker may
    /// still run the attempt ([`Self::adopt`]).
    pub fn lose(&mut self, attempt: AttemptId, now: Time) {
        self.release(attempt);
        let execution = self.executions.get(&attempt.execution);
        if execution.is_some_and(|execution| execution.is_current(attempt)) {
            self.count_loss(attempt.execution, now);
        }
    }

    /// Removes a worker. Its executions are queued again, and end after `max_losses` such losses.
    pub fn remove_worker(&mut self, worker: &WorkerId, now: Time) {
        self.takers.remove(worker);
        self.ahead.remove_peer(worker);
        for (attempt, reservation) in self.ledger.remove(worker) {
            self.free_slot(&reservation);
            // An attempt with a reservation is its execution's current one, or the execution has ended.
            self.count_loss(attempt.execution, now);
        }
        self.wake();
    }

    /// Releases the resources of an attempt. Returns its worker, if it had any.
    pub(super) fn release(&mut self, attempt: AttemptId) -> Option<WorkerId> {
        let reservation = self.ledger.release(attempt)?;
        self.free_slot(&reservation);
        self.wake();
        Some(reservation.worker)
    }

    fn free_slot(&mut self, reservation: &Reservation) {
        if let Some(line) = reservation.line {
            self.queue.free_slot(line);
        }
    }

    /// Queues an execution again whose current attempt is lost, unless it lost too many.
    fn count_loss(&mut self, number: u64, now: Time) {
        let Some(execution) = self.executions.get_mut(&number) else {
            return;
        };
        let running = execution.running.as_ref();
        let lost = running.map(|running| (Some(running.attempt.number), running.worker.clone()));
        execution.lost.extend(lost);
        if execution.lost.len() <= allowed(self.options.max_losses) {
            execution.update_tried();
            self.requeue(number, now);
            return;
        }
        let lost = mem::take(&mut execution.lost).into_iter();
        let end = End::WorkersLost(lost.map(|(_, worker)| worker).collect());
        self.end_execution(number, &end, 0, now);
    }

    /// Queues an execution again, at the head of the lines of its builds. Ends it if the node drains, unless it is left to
    /// a peer.
    pub(super) fn requeue(&mut self, number: u64, now: Time) {
        let execution = self.executions.get(&number);
        let has_peer = execution.is_some_and(|execution| self.has_peer(&execution.class));
        if self.draining && !(self.hands_over && has_peer) {
            self.end_execution(number, &End::ShutDown, 0, now);
            return;
        }
        let Some(execution) = self.executions.get_mut(&number) else {
            return;
        };
        self.ends.retries += 1;
        execution.queued = now;
        if !execution.lost.is_empty() {
            self.takers.avoid_lost(number, now);
        }
        if execution.running.take().is_some() {
            self.executing -= 1;
        }
        self.enter_queue(number);
        self.notify(number);
        self.wake();
    }

    /// Adds the entries of an execution that ran before to the queue.
    pub(super) fn enter_queue(&mut self, number: u64) {
        let Some(execution) = self.executions.get(&number) else {
            return;
        };
        for id in &execution.operations {
            if let Some(live) = self.operations.live_mut(*id) {
                live.rank.first_run = false;
                let class = &execution.class;
                let line = self.queue.push(&live.build, class, live.rank, number);
                live.line = Some(line);
            }
        }
        self.queue.count_execution(&execution.class);
    }
}

fn allowed(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
