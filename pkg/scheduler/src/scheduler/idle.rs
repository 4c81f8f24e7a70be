//! Slots for work that no client waits for.

use super::Scheduler;
use crate::{
    ledger::{AttemptId, WorkerId},
    queue::Need,
    state::Effect,
};

impl<J, O> Scheduler<J, O> {
    /// Reserves a slot of a worker and memory in bytes for work that no client waits for. Refused while an action is
    /// queued or the node drains. As soon as a queued action does not fit beside it, it gets [`Effect::Stop`]; its end
    /// is reported like that of any attempt.
    pub fn claim_idle(&mut self, worker: &WorkerId, memory: u64) -> Option<AttemptId> {
        let need = Need::Memory(memory);
        if self.has_queued()
            || self.draining
            || !self.ledger.has_slot(worker)
            || !self.ledger.fits(worker, &need)
        {
            return None;
        }
        // The number of no execution, so that its end concerns none.
        self.next += 1;
        let attempt = AttemptId {
            execution: self.next,
            number: 1,
        };
        self.ledger.reserve(worker, attempt, &need, None);
        Some(attempt)
    }

    /// Stops the work of a worker that no client waits for. Stopping it again has no effect.
    pub(super) fn stop_idle(&mut self, worker: Option<&WorkerId>) {
        let idle = self.ledger.idle();
        let idle = idle.filter(|(on, _)| worker.is_none_or(|worker| worker == *on));
        let stops = idle.map(|(on, attempt)| Effect::Stop(on.clone(), attempt));
        self.effects.extend(stops);
    }

    /// Stops idle work for actions that are queued although the worker's claim was refused.
    pub(super) fn make_way(&mut self, worker: &WorkerId) {
        if self.has_queued() {
            self.stop_idle(Some(worker));
        }
    }

    /// Returns whether an action of this node or of another one is queued at this node.
    fn has_queued(&self) -> bool {
        self.executions.len() > self.executing || !self.foreign.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{Bench, GIB, done, request, worker};
    use crate::state::Report;

    fn claim(bench: &mut Bench, memory: u64) -> Option<crate::AttemptId> {
        bench.scheduler.claim_idle(&worker("w"), memory)
    }

    #[test]
    fn idle_work_starts_only_while_nothing_is_queued_and_a_slot_is_free() {
        let mut bench = Bench::new(2);
        bench.submit(&request(1));
        assert!(claim(&mut bench, 0).is_none());
        let attempt = bench.claims(1);
        assert!(claim(&mut bench, 8 * GIB + 1).is_none());
        let idle = claim(&mut bench, 0).unwrap();
        assert!(claim(&mut bench, 0).is_none());
        assert_eq!(bench.scheduler.totals().running, 2);
        bench.report(attempt, done(7));
        bench.report(idle, Report::Stopped);
        assert!(bench.scheduler.ledger.is_idle());
        bench.scheduler.drain(Duration::ZERO);
        assert!(claim(&mut bench, 0).is_none());
    }

    #[test]
    fn a_queued_action_that_finds_no_slot_stops_idle_work() {
        let mut bench = Bench::new(2);
        let idle = claim(&mut bench, 0).unwrap();
        bench.submit(&request(1));
        bench.claims(1);
        bench.effects();
        let second = bench.submit(&request(2));
        assert!(bench.try_claim("w").is_none());
        assert_eq!(bench.effects(), ["stop w 1"]);
        bench.report(idle, Report::Stopped);
        bench.claims(2);
        assert_eq!(bench.stage(second), "run 1");
    }

    #[test]
    fn a_refused_claim_without_queued_actions_stops_no_idle_work() {
        let mut bench = Bench::new(1);
        claim(&mut bench, 0).unwrap();
        assert!(bench.try_claim("w").is_none());
        assert!(bench.effects().is_empty());
        bench.scheduler.drain(bench.now);
        assert_eq!(bench.effects(), ["stop w 1"]);
    }
}
