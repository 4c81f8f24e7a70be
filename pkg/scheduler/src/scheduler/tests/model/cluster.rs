//! The steps of other nodes.

use super::*;
use crate::{Generation, scheduler::ForeignClaim};

/// The number of the worker that is a peer.
const PEER: usize = WORKERS;
const NEEDS: [Need; 4] = [
    Need::Memory(0),
    Need::Memory(3 * GIB),
    Need::Memory(9 * GIB),
    Need::Alone,
];

impl Model {
    /// Holds the slot of a claim for another node.
    pub(super) fn hold(&mut self, worker: usize, claim: &ForeignClaim) {
        let place = (worker, claim.memory, claim.alone);
        assert!(self.held.insert(claim.attempt, place).is_none());
        self.attempts.push(claim.attempt);
    }

    pub(super) fn set_foreign(&mut self, entry: u8, need: usize, actions: usize) {
        let entry = Generation::new(&format!("e{entry}"), 1).unwrap();
        let counts = [(NEEDS[need], actions), (NEEDS[0], 1)];
        self.bench.scheduler.set_foreign(&entry, &counts);
        if actions == 0 {
            self.bench.scheduler.foreign_empty(&entry, NEEDS[need]);
        }
    }

    pub(super) fn claim_for(&mut self, need: usize) {
        let (now, need) = (self.bench.now, NEEDS[need]);
        let scheduler = &mut self.bench.scheduler;
        let queued = scheduler.queued_by_need(|platform| platform == "any");
        let peer = name(PEER);
        let grant = scheduler.claim_for(&peer, need, |platform| platform == "any", now);
        let covered = |(queued, _): &(Need, usize)| need.covers(*queued);
        assert_eq!(grant.is_some(), queued.iter().any(covered));
        if let Some(grant) = grant {
            self.held.insert(grant.attempt, (PEER, 0, grant.alone));
            self.attempts.push(grant.attempt);
        }
    }

    pub(super) fn decline(&mut self, attempt: AttemptId) {
        self.declined += 1;
        self.held.remove(&attempt);
        self.bench.scheduler.decline(attempt, self.bench.now);
    }

    /// Checks the numbers of queued executions, and that peers are refused nothing.
    pub(super) fn check_queue(&self) {
        let scheduler = &self.bench.scheduler;
        let queued = scheduler.queued_by_need(|_| true);
        let queued: usize = queued.iter().map(|(_, executions)| executions).sum();
        assert_eq!(queued, scheduler.totals().queued);
    }
}
